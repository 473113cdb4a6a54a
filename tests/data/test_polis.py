"""Polis: pairs from votes, and what is new to whom."""

import numpy as np
import pandas as pd
import pytest
from raw import refused

import prlhf_kit as kit
from prlhf_kit.data.chat import prompt_texts_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 statements, 20 people in two groups who vote against each other; person 3 has hardly voted."""
    folder = tmp_path_factory.mktemp("polis")
    ids = [str(10 + i) for i in range(40)]
    pd.DataFrame({"comment-id": ids, "comment-body": [f"Statement {i}" for i in ids]}).to_csv(
        folder / "comments.csv", index=False
    )
    rng = np.random.default_rng(0)
    sides = rng.choice([1, -1], 40)
    votes = pd.DataFrame([sides * (1 if person % 2 else -1) for person in range(20)], columns=ids)
    votes.iloc[3, 4:] = None
    votes.insert(0, "group-id", [person % 2 for person in range(20)])
    votes.insert(0, "participant", range(20))
    votes.to_csv(folder / "participants-votes.csv", index=False)
    (folder / "summary.csv").write_text("topic,JOIN: Land use\nurl,x\n")
    return folder


def statements(pairs):
    return {m["content"] for column in ("chosen", "rejected") for messages in pairs[column] for m in messages}


def test_what_is_new_to_whom(folder):
    data = kit.data.load("polis", folder, pairs_per_user=30)
    assert list(data) == ["train", "test_seen", "test_unseen", "adapt_unseen", "test_own"]
    trained = statements(data["train"]) | statements(data["adapt_unseen"])
    assert not statements(data["test_seen"]) & trained
    for told, test in (("train", "test_own"), ("adapt_unseen", "test_unseen")):
        assert statements(data[test]) <= trained
        for user in set(data[test]["user_id"]):
            own = [data[split].filter(lambda row: row["user_id"] == user) for split in (told, test)]  # noqa: B023
            assert not statements(own[0]) & statements(own[1])
    assert not set(data["train"]["user_id"]) & set(data["test_unseen"]["user_id"])
    assert "3" not in set(data["train"]["user_id"]) | set(data["test_unseen"]["user_id"])  # too few votes
    assert set(data["train"]["group"]) == {"0", "1"}


def test_one_prompt_a_split_names_the_topic(folder):
    data = kit.data.load("polis", folder, pairs_per_user=4)
    for split, pairs in data.items():
        turn = 2 if split.startswith("test") else 1
        assert {row["prompt"][0]["content"] for row in pairs} == {
            f"Land use: which statement do you agree with? (round {turn})"
        }
    assert prompt_texts_of(data["train"]) == [row["chosen"][0]["content"] for row in data["train"]]
    own = data["train"].filter(lambda row: row["user_id"] == data["train"][0]["user_id"])
    assert len(own) == 4
    assert len(statements(own)) == 8  # none is in a second pair before all are in one


def test_refusals(folder, tmp_path):
    refused(r"it is empty; expected .* folder with comments\.csv", "polis", tmp_path)
    refused(r"0 people of .* Lower min_votes", "polis", folder, min_votes=30)
