"""Pairs made of raw rows against those that the authors' own scripts made of the same rows.

The rows are made up and packed as numbers; the tests write them out in the datasets' real schema. Pairs are compared
as sorted lists: none may be missing, and none may be more.
"""

import hashlib

import pytest
from raw import comparison, write

import prlhf_kit as kit
from authors.golden import golden
from prlhf_kit.data.registry import Tally


def read(name, folder, **options):
    """(split, record) of everything that a loader gives, before the checks that drop pairs."""
    return list(kit.data.DATASETS[name].read(Tally(), folder, **options))


def texts(row):
    """Last question, chosen, rejected."""
    return row["prompt"][-1]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"]


# TL;DR ---------------------------------------------------------------------------------------------------------------

TLDR_ROWS = golden("tldr_rows.json")
TLDR = golden("tldr_expected.json")


@pytest.fixture(scope="module")
def tldr(tmp_path_factory):
    """What the kit reads. Summaries are one letter repeated; a second one of length 0 is the first once more."""
    folder = tmp_path_factory.mktemp("tldr")
    for split, word in (("train", "train"), ("validation", "valid1")):
        rows = []
        for number, (worker, first, second, policy, subreddit, choice) in enumerate(TLDR_ROWS[split]):
            summaries = ("x" * first, "y" * second or "x" * first)
            policies = ("sup4_t.7", TLDR_ROWS["policies"][policy])
            row = comparison(number, TLDR_ROWS["workers"][worker], word, summaries, choice, policies)
            row["info"] = dict.fromkeys(row["info"]) | {"article": "An article."}
            if subreddit >= 0:
                about = {"subreddit": TLDR_ROWS["subreddits"][subreddit], "title": f"Title {number // 2}"}
                row["info"] = about | {"post": f"Post {word} {number // 2}.", "article": None}
            rows.append(row)
        write(folder / f"{split}.jsonl", rows)
    return read("tldr", folder, mode="synthetic", top=TLDR["top"])


def test_tldr_workers(tldr):
    assert sorted({row["user_id"] for split, row in tldr if split == "train"}) == sorted(TLDR["top_workers"])
    found = {row["user_id"]: {"longer": 0, "shorter": 1}[row["group"]] for _, row in tldr}
    assert found == {worker: TLDR["preference_of_worker"][worker] for worker in found}
    assert found.keys() == TLDR["preference_of_worker"].keys()


@pytest.mark.parametrize("name", ["train", "eval"])
def test_tldr_pairs(tldr, name):
    splits = {"train": ("train",), "eval": ("test_seen", "test_unseen")}[name]
    number = {worker: i for i, worker in enumerate(TLDR["top_workers"], 1)}  # 0: a worker who is not seen
    found, found_posts = [], []
    for split, row in tldr:
        question, chosen, rejected = texts(row)
        if split in splits and chosen != rejected:  # pairs of equal texts are dropped by the kit's checks
            pair = (number.get(row["user_id"], 0), chosen, rejected)
            found.append(pair)
            if not question.startswith("ARTICLE"):
                found_posts.append((question.rstrip(), *pair))
    word = {"train": "train", "eval": "valid1"}[name]
    wanted, wanted_posts = [], []
    for user, post, subreddit, letter, length, other_letter, other_length in TLDR[f"{name}_pairs"]:
        pair = (user, letter * length, other_letter * other_length)
        wanted.append(pair)
        if post >= 0:
            title = f"SUBREDDIT: r/{TLDR_ROWS['subreddits'][subreddit]}\nTITLE: Title {post}"
            wanted_posts.append((f"{title}\nPOST: Post {word} {post}.\nTL;DR:", *pair))
    assert sorted(found) == sorted(wanted)
    # news articles are left out here: the kit lays them out without the lines for subreddit and title
    assert sorted(found_posts) == sorted(wanted_posts)


# Personalized Soups --------------------------------------------------------------------------------------------------


def test_psoups_pairs(tmp_path):
    gold = golden("psoups.json")
    asked = [question.strip() for question in gold["questions"]]
    for profile, packed in gold["raw_rows"].items():
        rows = []
        for question, *numbers in packed:
            first, second = (f"ans {number} of {asked[question]}" for number in numbers)
            said = f"{gold['questions'][question]} Answer in the way of profile {profile}."
            rows.append({"user_input": said, "completion_a": first, "completion_b": second})
        write(tmp_path / f"{profile}.json", rows)
    found = []
    for _, row in read("psoups", tmp_path):
        question, chosen, rejected = texts(row)
        if chosen != rejected:  # as in the authors' script; the kit's checks drop them
            found.append((row["user_id"], question, chosen, rejected))
    profiles = list(gold["raw_rows"])
    wanted = []
    for user, question, first, second in gold["authors_pairs"]:
        answers = (f"ans {number} of {asked[question]}" for number in (first, second))
        wanted.append((profiles[user - 1], asked[question], *answers))
    # the split differs and is not compared: the authors' is by pair, the kit's by prompt
    assert sorted(found) == sorted(wanted)


# PRISM ---------------------------------------------------------------------------------------------------------------

PRISM = golden("prism.json")
SPLITS = {"train": ("train",), "test": ("test_seen", "test_unseen")}


@pytest.fixture(scope="module")
def prism(tmp_path_factory):
    """What the kit reads, with nothing of unseen users kept for adaptation, as in the authors' split."""
    folder = tmp_path_factory.mktemp("prism")
    people = [{**PRISM["survey_constant"], **person} for person in PRISM["survey"]]
    write(folder / "survey.jsonl", people)
    talks = []
    for number, user, turns in PRISM["conversations"]:
        history = []
        for turn, (asked, answers, chosen) in enumerate(turns):
            said = {"turn": turn, "role": "user", "content": f"Q{number}.{turn} " + "q" * asked}
            history.append({**said, "if_chosen": None})
            for i, length in enumerate(answers):
                said = {"turn": turn, "role": "model", "content": f"a{number}.{turn}.{i} " + "x" * length}
                history.append({**said, "if_chosen": i == chosen})
        talks.append({"conversation_id": f"c{number}", "user_id": f"user{user}", "conversation_history": history})
    write(folder / "conversations.jsonl", talks)
    return read("prism", folder, adapt_share=0, max_characters=PRISM["max_characters"])


def test_prism_users(prism):
    """Who is seen and who is not."""
    users = {split: {row["user_id"] for s, row in prism if s == split} for split in dict(prism)}
    assert users["train"] == PRISM["seen_users"].keys()
    assert users["test_seen"] <= PRISM["seen_users"].keys()
    assert sorted(users["test_unseen"]) == PRISM["unseen_users"]
    assert users.keys() == {"train", "test_seen", "test_unseen"}


@pytest.mark.parametrize("name", list(SPLITS))
def test_prism_dialogues(prism, name):
    found = {row["pair_id"].rsplit("-", 2)[0] for split, row in prism if split in SPLITS[name]}
    assert sorted(found) == sorted(PRISM[f"{name}_dialogues"])


@pytest.mark.parametrize("name", list(SPLITS))
def test_prism_pairs(prism, name):
    """A prompt is compared by the hash of its Llama 3 layout, each message followed by a line break."""
    found = {}
    for split, row in prism:
        if split not in SPLITS[name]:
            continue
        prompt = ""
        for message in [*row["prompt"], {"role": "assistant", "content": None}]:
            prompt += f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n"
            if message["content"] is not None:
                prompt += message["content"] + "<|eot_id|>\n"
        chosen, rejected = (row[side][0]["content"].split(" ")[0] for side in ("chosen", "rejected"))
        pair = (PRISM["seen_users"].get(row["user_id"], 0), chosen, rejected)
        assert pair not in found
        found[pair] = hashlib.sha256(prompt.encode()).hexdigest()[:16], len(prompt)
    wanted, differ = {}, set()
    for user, chosen, rejected, digest, length, two_user_turns in PRISM[f"{name}_pairs"]:
        wanted[user, chosen, rejected] = digest, length
        if two_user_turns:
            differ.add((user, chosen, rejected))
    assert len(wanted) == len(PRISM[f"{name}_pairs"])
    assert sorted(found) == sorted(wanted)
    # where nothing was chosen in a turn, the kit joins its question with the next one; the authors have both in a row
    same = sorted(found.keys() - differ)
    assert [found[pair] for pair in same] == [wanted[pair] for pair in same]


# ComPO ---------------------------------------------------------------------------------------------------------------


def test_compo_pairs(tmp_path):
    gold = golden("compo.json")
    rows = [{**gold["constant_columns"], **dict(zip(gold["columns"], row, strict=True))} for row in gold["rows"]]
    write(tmp_path / gold["factor"] / "train_pref-0.parquet", rows)
    other = {**rows[0], "domain": rows[0]["domain"].replace("_train", "_test"), "post_id": "other"}
    write(tmp_path / gold["factor"] / "test_pref-0.parquet", [other])  # the loader wants some
    limits = {"min_score_ratio": gold["min_score_ratio"], "max_pairs_per_post": gold["max_per_post"]}
    found = []
    for split, row in read("compred", tmp_path, factors=gold["factor"], **limits):
        if split == "train":
            _, chosen, rejected = texts(row)
            found.append((chosen, rejected, f"r/{row['user_id']}_train"))  # as the authors name a community
    assert sorted(found) == sorted(map(tuple, gold["pairs"]))
