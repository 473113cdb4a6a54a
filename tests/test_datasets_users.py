"""Loaders of datasets that say who preferred what, on rows of their real schema."""

import numpy as np
import pandas as pd
import pytest
from raw import comparison, conversation, pairs_of, participant, write_json, write_lines, write_parquet

import prlhf_kit as kit
from prlhf_kit.data import compred, personalllm

# TL;DR ---------------------------------------------------------------------------------------------------------------


def test_tldr_real(tldr_rows, tmp_path):
    train, valid = tldr_rows
    write_parquet(tmp_path / "comparisons" / "train" / "0000.parquet", train)
    write_parquet(tmp_path / "comparisons" / "validation" / "0000.parquet", valid)
    data, report = kit.data.load_with_report("tldr", tmp_path, top=2)
    assert set(data["train"]["user_id"]) == {"ann", "bob"}
    assert data["adapt_unseen"]["user_id"] == ["cy"]
    assert sorted(data["test_unseen"]["user_id"]) == ["cy", "dee"]
    assert pairs_of(data)[1] == (
        "ann", "SUBREDDIT: r/tifu\nTITLE: Title 1\nPOST: Post 1.\nTL;DR: ", "A much longer summary.", "Short one."
    )  # fmt: skip
    assert report.counts["comparisons, train"] == 10
    assert report.counts["comparisons, validation"] == 4
    assert len(data["train"]) == 9  # no policy filter in this mode


def test_tldr_synthetic_follows_length_and_filters_policies(tldr_rows, tmp_path):
    train, valid = tldr_rows
    write_lines(tmp_path / "batch3.json", train + valid)  # OpenAI's own files: JSON lines, both splits
    data, report = kit.data.load_with_report("tldr", tmp_path, mode="synthetic", top=2)
    assert report.counts["after the policy filter, train"] == 9
    assert report.counts["of the top 2 workers, train"] == 8
    assert report.table[["reason", "pairs"]].to_dict("records") == [
        {"reason": "not from two supervised policies", "pairs": 1}
    ]
    for split in data.values():
        for row in split:
            longer = len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"])
            assert longer == (row["group"] == "longer")


def test_tldr_preferences_are_p_rlhfs(tmp_path):
    """Counts of the ten workers and of those who prefer longer summaries in P-RLHF's released notebook."""
    train = [5245, 2920, 2437, 2366, 2200, 2126, 1824, 1606, 1366, 1209]
    valid = [1175, 643, 381, 604, 586, 360, 321, 263, 177, 411]
    rows = [comparison(f"{w}-{i}", f"w{w}") for w in range(10) for i in range(10 - w)]  # the same ranks
    data = kit.data.load("tldr", write_lines(tmp_path / "batch3.json", rows), mode="synthetic")
    taste = dict(zip(data["train"]["user_id"], data["train"]["group"], strict=True))
    longer = [taste[f"w{w}"] == "longer" for w in range(10)]
    assert np.array(train)[longer].sum() == 16607
    assert np.array(valid)[longer].sum() == 3371


def test_tldr_mode_is_checked(tmp_path):
    with pytest.raises(kit.data.SchemaError, match="expected 'real'"):
        kit.data.load("tldr", tmp_path, mode="fake")
    with pytest.raises(kit.data.SchemaError, match="Did you mean 'mode'"):
        kit.data.load("tldr", tmp_path, moed="real")
    row = {key: value for key, value in comparison(1, "ann").items() if key not in ("choice", "split")}
    path = write_lines(tmp_path / "x.jsonl", [row])
    with pytest.raises(kit.data.SchemaError, match="no 'choice', 'split' in a row"):
        kit.data.load("tldr", path)


# Personalized Soups --------------------------------------------------------------------------------------------------


def test_psoups_both_forms_agree(tmp_path):
    wishes = {"P1A": "Be simple, please.", "P1B": "Be deep.", "P2A": "Be short.", "P2B": "Be long.", "P3A": "Be nice.",
              "P3B": "Be rude."}  # fmt: skip
    questions = [f"{verb} is number {i}?" for i, verb in enumerate(["What", "Who", "Where"] * 4)]
    clean = []
    for number, (user, wish) in enumerate(wishes.items(), 1):
        raw = [
            {"user_input": f"{q} {wish}", "completion_a": f"{user} yes {q}", "completion_b": "no"} for q in questions
        ]
        write_json(tmp_path / "rm_training" / f"{user}.json", [*raw, raw[0]])  # with a duplicate
        clean += [{"user_id": number, **row, "user_input": q} for row, q in zip(raw, questions, strict=True)]
    one = write_json(tmp_path / "one" / "allcombo_8_cleaned.json", clean)
    raw_data, report = kit.data.load_with_report("psoups", tmp_path, test_share=0.3)
    data = kit.data.load("psoups", one, test_share=0.3)
    assert sorted(pairs_of(raw_data)) == sorted(pairs_of(data))
    assert set(data["train"]["user_id"]) == set(wishes)
    assert report.counts["pairs"] == 72
    assert report.table.pairs.sum() == 6
    assert "number" in pairs_of(raw_data)[0][1]
    assert not any(wish in q for wish in wishes.values() for _, q, _, _ in pairs_of(raw_data))
    held = kit.data.load("psoups", one, test_share=0.3, unseen=["P3B"])
    assert set(held["adapt_unseen"]["user_id"]) == {"P3B"} == set(held["test_unseen"]["user_id"])
    assert "P3B" not in held["train"]["user_id"]
    with pytest.raises(kit.data.SchemaError, match="no profile 'P9'"):
        kit.data.load("psoups", one, unseen=["P9"])
    with pytest.raises(kit.data.SchemaError, match="not on the hub"):
        kit.data.load("psoups")


# PRISM ---------------------------------------------------------------------------------------------------------------


def test_prism_pairs_history_and_user_text(prism_folder):
    data, report = kit.data.load_with_report("prism", prism_folder)
    rows = [row for split in data.values() for row in split]
    one = [row for row in rows if row["pair_id"].startswith("c0-")]
    assert [row["pair_id"] for row in one] == ["c0-0-0", "c0-0-1", "c0-0-2", "c0-1-0"]  # chosen against each rejected
    assert {row["chosen"][0]["content"] for row in one} == {"answer 0.0.1 " + "x" * 10, "answer 0.1.1 " + "x" * 10}
    assert [m["content"] for m in one[3]["prompt"]] == ["Hello 0.0?", "answer 0.0.1 " + "x" * 10, "Hello 0.1?"]
    assert [m["role"] for m in one[3]["prompt"]] == ["user", "assistant", "user"]
    assert one[0]["user_text"] == (
        "How I want you to behave: Be honest with me.\n"
        "What matters most to me: creative and inspiring answers, facts, answers that do no harm.\n"
        "About me: I am 0.\n"
        "Facts: age 25-34 years old; gender Female; work Student; family Single; English Fluent."
    )
    assert report.counts["users"] == 20  # 99 completed nothing
    assert report.counts["conversations without a usable turn"] == 1
    assert report.table.set_index("user_id").pairs.to_dict() == {"user3": 4}


def test_prism_splits_as_p_rlhf(prism_folder):
    """The same draws as in P-RLHF's notebook, written down again with NumPy's global generator."""
    data = kit.data.load("prism", prism_folder, adapt_share=0)
    np.random.seed(123)
    users = np.array([f"user{i}" for i in range(20)])
    np.random.shuffle(users)
    train, test = set(), set()
    for place, user in enumerate(users):
        talks = np.array([f"c{10 * int(user[4:]) + k}" for k in range(1 if user == "user7" else 4)])
        if place < 18:
            np.random.shuffle(talks)
            cut = int(len(talks) * 0.9)
            train, test = train | set(talks[:cut]), test | set(talks[cut:])
        else:
            test |= set(talks)
    found = {split: {i.split("-")[0] for i in rows["pair_id"]} for split, rows in data.items()}
    assert found["train"] == train
    assert found["test_seen"] | found["test_unseen"] == test
    assert "user7" not in data["train"]["user_id"]  # has one conversation only
    with_adapt = kit.data.load("prism", prism_folder)
    assert set(with_adapt["adapt_unseen"]["user_id"]) <= set(with_adapt["test_unseen"]["user_id"])


def test_prism_stranger_is_refused(prism_folder):
    write_lines(prism_folder / "conversations.jsonl", [conversation(1, "user99")])
    with pytest.raises(kit.data.SchemaError, match="'c1' is of 'user99'"):
        kit.data.load("prism", prism_folder)


def test_shortened_history_keeps_the_last_user_turn(tokenizer, tmp_path):
    write_lines(tmp_path / "survey.jsonl", [participant(i) for i in range(20)])
    talks = [conversation(10 * i + k, f"user{i}", turns=6) for i in range(20) for k in range(4)]
    write_lines(tmp_path / "conversations.jsonl", talks)
    full = kit.data.load("prism", tmp_path)
    data, report = kit.data.load_with_report("prism", tmp_path, tokenizer=tokenizer, max_prompt_tokens=150)
    assert report.table.empty
    assert report.checks.set_index("check").pairs["over-long prompt"] > 0
    whole = {row["pair_id"]: row["prompt"] for split in full.values() for row in split}
    shorter = 0
    for split in data.values():
        for row in split:
            before, after = whole[row["pair_id"]], row["prompt"]
            assert after == before[len(before) - len(after) :]
            assert after[0]["role"] == "user" == after[-1]["role"]
            ids = tokenizer.apply_chat_template(after, add_generation_prompt=True, return_dict=True)["input_ids"]
            assert len(ids) <= 150
            shorter += len(after) < len(before)
            if len(after) < len(before):  # one more turn would have been too long
                more = before[len(before) - len(after) - 2 :]
                ids = tokenizer.apply_chat_template(more, add_generation_prompt=True, return_dict=True)["input_ids"]
                assert len(ids) > 150
    assert shorter == report.checks.set_index("check").pairs["over-long prompt"]


# ComPRed -------------------------------------------------------------------------------------------------------------


def test_compred(compred_folder):
    data, report = kit.data.load_with_report("compred", compred_folder, factors=["history", "politics"])
    assert set(data["train"]["user_id"]) == {"historyA", "historyB", "politicsA", "politicsB"}
    assert set(data["train"]["group"]) == {"history", "politics"}
    assert len(data["train"]) == 2 * (5 + 1)
    reasons = report.table.groupby("reason").pairs.sum().to_dict()
    assert reasons == {"more than 5 pairs of a post": 8, "score ratio below 2": 2}
    for user, question, chosen, rejected in pairs_of(data):
        better, worse = ("B", "A") if user.endswith("A") else ("A", "B")  # labels 0: B preferred
        assert (chosen[0], rejected[0]) == (better, worse)
        assert question.startswith("Title")
        assert "\n\nText" in question
    again = kit.data.load("compred", compred_folder, factors=["history", "politics"])
    other = kit.data.load("compred", compred_folder, factors=["history", "politics"], seed=5)
    assert pairs_of(data) == pairs_of(again) != pairs_of(other)
    held = kit.data.load("compred", compred_folder, factors=["history"], unseen=["historyB"])
    assert set(held["test_unseen"]["user_id"]) == {"historyB"} == set(held["adapt_unseen"]["user_id"])
    prompts = compred.prompts(compred_folder, ["science"])
    assert prompts[0] == {"user_id": "scienceA", "user_text": "r/scienceA", "group": "science",
                          "prompt": [{"role": "user", "content": "Why?"}]}  # fmt: skip


# PersonalLLM ---------------------------------------------------------------------------------------------------------


def test_personalllm_truth(personalllm_folder):
    options = {"users": 10, "pairs_per_user": 20, "test_pairs_per_user": 10}
    data, report = kit.data.load_with_report("personalllm", personalllm_folder, **options)
    assert {split: len(rows) for split, rows in data.items()} == {
        "train": 160, "test_seen": 80, "test_unseen": 20, "adapt_unseen": 40,
    }  # fmt: skip
    assert report.counts["reward models"] == 3
    train = pd.read_parquet(personalllm_folder / "data" / "train-00000-of-00001.parquet").set_index("prompt")
    models = ["beaver_7b", "gemma_2b", "llama3_sfairx"]
    scores = np.array([[train[f"response_{k}_{m}"] for k in range(1, 9)] for m in models])  # [models, 8, prompts]
    scores = (scores - scores.mean((1, 2), keepdims=True)) / scores.std((1, 2), keepdims=True)
    truth = personalllm.weights(models, 10)
    assert np.allclose(truth.sum(axis=1), 1)
    for user, prompt, chosen, rejected in pairs_of(data):  # utility by hand
        at = train.index.get_loc(prompt)
        utility = truth.loc[user].to_numpy() @ scores[:, :, at]
        assert utility[int(chosen[1]) - 1] > utility[int(rejected[1]) - 1]
    assert set(data["train"]["p_chosen"]) == {1.0}
    noisy = kit.data.load("personalllm", personalllm_folder, temperature=1.0, **options)
    p = np.array(noisy["train"]["p_chosen"])
    assert ((p > 0) & (p < 1)).all()
    assert (p < 0.5).any()
    with pytest.raises(kit.data.SchemaError, match="61 pairs a user were asked for, but the train split has 60"):
        kit.data.load("personalllm", personalllm_folder, pairs_per_user=61)


def test_dirichlet_concentration():
    peaked = personalllm.weights(list("abcdefghij"), 500, 0.01)
    flat = personalllm.weights(list("abcdefghij"), 500, 100.0)
    assert peaked.max(axis=1).mean() > 0.9
    assert flat.max(axis=1).mean() < 0.2
