"""Community Alignment, PersonalRewardBench and UF-P on rows of the schema that their users' code reads."""

import pytest
from raw import dialogue, pairs_of, refused, sizes, write

import prlhf_kit as kit
from prlhf_kit.data.personal import BENCHES, COMMUNITY, TURNS
from prlhf_kit.data.schema import SPLITS


def talk(i, turns=1, language="en", preferred="response_b"):
    row = {"conversation_id": i, "assigned_lang": language, "annotator_id": i % 20, "annotator_country": "india"}
    for number, turn in enumerate(TURNS):
        there = number < turns
        row[f"{turn}_turn_prompt"] = f"Ask {i % 30}, {turn}?" if there else None
        row |= {f"{turn}_turn_response_{x}": f"{x} {i}, {turn}.<|end_of_text|>" if there else None for x in "abcd"}
        row[f"{turn}_turn_preferred_response"] = preferred if there else None
    return row


def test_community_alignment_pairs(tmp_path):
    rows = [talk(i, turns=1 + i % 3, language=("en", "fr")[i % 5 == 0]) for i in range(60)]
    rows[1]["second_turn_preferred_response"] = None  # of two turns
    rows[2]["second_turn_prompt"] = None  # of three
    rows[3]["first_turn_preferred_response"] = None
    rows[4]["first_turn_response_d"] = rows[4]["first_turn_response_b"]
    data, report = kit.data.load_with_report("community_alignment", write(tmp_path / "x.csv", rows), test_share=0)
    of = {i: [row for rows in data.values() for row in rows if row["pair_id"].startswith(f"{i}-")] for i in range(9)}
    assert [len(of[i]) for i in range(6)] == [0, 3, 3, 0, 5, 0]  # 0 and 5 are in French
    assert [row["pair_id"] for row in of[8]] == [f"8-{turn}-{x}" for turn in TURNS[:3] for x in "acd"]
    last = of[8][-1]
    assert (last["user_id"], last["user_text"], last["group"]) == ("8", None, "india")
    told = ["Ask 8, first?", "b 8, first.", "Ask 8, second?", "b 8, second.", "Ask 8, third?"]
    assert [m["content"] for m in last["prompt"]] == told
    assert (last["chosen"][0]["content"], last["rejected"][0]["content"]) == ("b 8, third.", "d 8, third.")
    reasons = report.table.groupby("reason").pairs.sum().to_dict()
    assert reasons == {"first turn without a question or a choice": 3, "chosen equals rejected": 1}
    assert report.counts == {"conversations": 60, "conversations, en": 48}


def test_community_alignment_splits_by_user_and_by_question(tmp_path):
    file = write(tmp_path / "x.jsonl", [talk(i, language=("en", "hi")[i % 2]) for i in range(240)])
    data = kit.data.load("community_alignment", file, languages=["en", "hi"], unseen_share=0.3, test_share=0.3)
    assert set(data) == set(SPLITS)  # the checks refuse users and prompts that are on both sides
    assert sum(sizes(data)) == 720
    refused("no language 'english'", "community_alignment", file, languages="english")


def choice(user, i, split, **change):
    context = [{"role": "user", "content": f"Hi {user}."}, {"role": "model", "content": "Hello."}]
    context += [{"role": "user", "content": f"Ask {user} {i}?"}]
    answers = {key: {"role": "model", "content": f"{key} {i}"} for key in ("chosen", "rejected")}
    return {"user_id": user, "conversation_id": "c", "context": context, **answers, "split": split, **change}


@pytest.fixture
def bench(tmp_path):
    folder = tmp_path / BENCHES["prism"]
    for part, users in (("train", ["ann", "bob"]), ("validation", ["cy"]), ("test", ["dee", "bob"])):
        own = [(i, split) for i, split in enumerate(["train", "val", "test"])]
        rows = [choice(f"{user}", f"{part} {i}", split) for user in users for i, split in own]
        write(folder / "data" / f"{part}-00000-of-00001.parquet", rows)
    return folder


def test_personalrewardbench_keeps_both_of_its_splits(bench):
    data, report = kit.data.load_with_report("personalrewardbench", bench.parent)
    assert [set(data[split]["user_id"]) for split in SPLITS] == [{"ann", "bob"}, {"ann", "bob"}, {"dee"}, {"dee"}]
    assert sizes(data) == [6, 3, 1, 2]
    row = data["test_unseen"][0]
    assert [m["role"] for m in row["prompt"]] == ["user", "assistant", "user"]
    assert row["chosen"] == [{"role": "assistant", "content": "chosen test 2"}]
    assert row["rejected"] == [{"role": "assistant", "content": "rejected test 2"}]
    assert report.counts == {"prism, train": 6, "prism, test": 6}
    refused("no subset 'prisms'", "personalrewardbench", bench, subset="prisms")


def test_a_response_of_personalrewardbench_may_be_a_list(tmp_path):
    for part in ("train", "test"):
        rows = [choice(part, i, "train", chosen=[{"role": "assistant", "content": "Yes."}]) for i in range(2)]
        write(tmp_path / f"{part}.jsonl", rows)
    data = kit.data.load("personalrewardbench", tmp_path, subset="arena")
    assert pairs_of(data, "adapt_unseen")[1] == ("test", "Ask test 1?", "Yes.", "rejected 1")


def test_the_hub_gives_what_local_files_give(bench, tmp_path, monkeypatch):
    file = write(tmp_path / COMMUNITY / "community_alignment.csv", [talk(i, 2) for i in range(40)])
    monkeypatch.chdir(tmp_path)  # `datasets` looks for a local folder of that name first
    for name, path in (("community_alignment", file), ("personalrewardbench", bench)):
        assert kit.data.fingerprint(kit.data.load(name)) == kit.data.fingerprint(kit.data.load(name, path))


def test_ufp(tmp_path):
    for number in "8421":
        for part, n in (("train", 6), ("test", 2)):
            texts = [(dialogue(f"{part} {i}?", number), dialogue(f"{part} {i}?", "no")) for i in range(n)]
            rows = [{"chosen": a, "rejected": b, "controversial": i % 2 == 0} for i, (a, b) in enumerate(texts)]
            write(tmp_path / number / f"{part}.jsonl", rows)
    data, report = kit.data.load_with_report("ufp", tmp_path, unseen="truthfulness")
    assert sizes(data) == [9, 3, 1, 3]
    assert ("honesty", "train 2?", "4", "no") in pairs_of(data)
    assert data["adapt_unseen"][0]["user_text"] == "Tell me only what is true."
    assert report.counts["helpfulness, train"] == 3
    two = kit.data.load("ufp", tmp_path, users=("helpfulness", "honesty"), controversial=False)
    assert sizes(two) == [12, 4, 0, 0]
    assert set(two["train"]["user_id"]) == {"helpfulness", "honesty"}
    refused("no user 'helpful'", "ufp", tmp_path, users="helpful")
