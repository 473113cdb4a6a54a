"""Votes: what one becomes, that it is never lost, and that it is training data."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

import prlhf_kit as kit
from compare.conftest import votes_in
from prlhf_kit.compare import votes
from prlhf_kit.data.schema import COLUMNS, message

ASKED = message("user", "What is tea?")
ANSWERS = [("A drink.", {"system": "base"}), ("<script>alert(1)</script> Tea!", {"system": "PAD"}), ("No.", {"x": 1})]


def test_a_vote_is_a_preference_over_every_other_answer():
    answers = [*ANSWERS, (f" {ANSWERS[1][0]} ", {}), ("", {})]  # the chosen one again, and an empty one
    rows = votes.records(" ann ", ASKED, answers, 1, " I like tea. ", blind=True, order=["a", "b"])
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows] == [
        (ANSWERS[1][0], "A drink."),
        (ANSWERS[1][0], "No."),
    ]
    first = rows[0]
    assert set(COLUMNS) <= set(first)
    assert (first["user_id"], first["user_text"], first["group"]) == ("ann", "I like tea.", None)
    assert (first["chosen_from"], first["rejected_from"]) == ({"system": "PAD"}, {"system": "base"})
    assert (first["blind"], first["order"], first["prompt"]) == (True, ["a", "b"], ASKED)
    assert first["vote"] == rows[1]["vote"]
    assert first["pair_id"] != rows[1]["pair_id"]
    assert votes.records("ann", ASKED, ANSWERS, 0)[0]["user_text"] is None


@pytest.mark.parametrize(
    ("voter", "texts", "chosen", "told"),
    [
        (" ", ["a", "b"], 0, "Type your name"),
        ("ann", [" ", "b"], 0, "empty"),
        ("ann", ["same", " same "], 1, "the same"),
    ],
)
def test_what_is_no_preference_is_refused(voter, texts, chosen, told):
    with pytest.raises(ValueError, match=told):
        votes.records(voter, ASKED, [(text, {}) for text in texts], chosen)


def test_votes_are_training_data(tmp_path):
    path = tmp_path / "votes.jsonl"
    for voter in ("ann", "bob"):
        for i in range(3):
            votes.append(path, votes.records(voter, message("user", f"Question {i}?"), ANSWERS, i, settings={"k": 10}))
    data = kit.data.load("files", path, test_share=0.0)
    checked, report = kit.data.check(data)
    assert (report.kept, len(checked["train"])) == (12, 12)
    assert set(checked["train"]["user_id"]) == {"ann", "bob"}
    assert checked["train"][0]["chosen"] == message("assistant", "A drink.")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path, link = tmp_path / "votes.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(path)
    path.write_text('{"user_id": "ann é"}', encoding="utf-8")  # edited by hand: without a line break
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            votes.append(link, [{"user_id": "bob"}])
    assert path.read_bytes() == before
    votes.append(link, [{"user_id": "bob"}])
    assert [row["user_id"] for row in votes_in(path)] == ["ann é", "bob"]
    assert link.is_symlink()


def test_votes_at_once_lose_nothing(tmp_path):
    path = tmp_path / "votes.jsonl"

    def vote(voter):
        for i in range(20):
            votes.append(path, [{"user_id": voter, "i": i}, {"user_id": voter, "i": i}])

    with ThreadPoolExecutor(4) as pool:  # each opens and locks the file anew, as another process would
        list(pool.map(vote, "abcd"))
    rows = votes_in(path)
    assert len(rows) == 160
    assert rows[::2] == rows[1::2]  # the two lines of a vote stay together
