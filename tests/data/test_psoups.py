from raw import pairs_of, refused, write

import prlhf_kit as kit
from prlhf_kit.data.psoups import PROFILES


def raw(folder, ending="", questions=("What?", "Who?"), **other):
    """`rm_training` with a wish behind each question, one pair twice; and the questions of some profiles changed."""
    for user in PROFILES:
        asked = other.get(user, [f"{question}{ending.format(user)}" for question in questions])
        rows = [{"user_input": q, "completion_a": f"{user} yes {q[:5]}", "completion_b": "no"} for q in asked]
        write(folder / "rm_training" / f"{user}.json", [*rows, rows[0]])


def test_a_wish_that_is_not_everywhere_is_not_cut_off(tmp_path):  # others: tests/authors
    raw(tmp_path, " is a good capital? Be brief.", "AB")
    raw(tmp_path, P1A=["What", "Who"])
    refused("questions of P1A do not all end with the same sentence", "psoups", tmp_path)


def test_both_forms_agree(tmp_path):
    questions = [f"{verb} is number {i}?" for i, verb in enumerate(["What", "Who", "Where"] * 4)]
    raw(tmp_path, " Be as {}, please.", questions)
    clean = [
        {"user_id": number, "user_input": q, "completion_a": f"{user} yes {q[:5]}", "completion_b": "no"}
        for number, user in enumerate(PROFILES, 1)
        for q in questions
    ]
    one = write(tmp_path / "one" / "allcombo_8_cleaned.json", clean)
    from_raw, report = kit.data.load_with_report("psoups", tmp_path, test_share=0.3)
    data = kit.data.load("psoups", one, test_share=0.3)
    assert sorted(pairs_of(from_raw)) == sorted(pairs_of(data))
    assert set(data["train"]["user_id"]) == set(PROFILES)
    assert report.counts["pairs"] == 72
    assert report.table.pairs.sum() == 6
    held = kit.data.load("psoups", one, test_share=0.3, unseen=["P3B"])
    assert set(held["adapt_unseen"]["user_id"]) == {"P3B"} == set(held["test_unseen"]["user_id"])
    refused("no profile 'P9'", "psoups", one, unseen=["P9"])


def test_alignx_layout_in_five_folds(tmp_path):
    rows = [
        {"user_id": user, "user_text": f"Be {user}.", "prompt": f"Why {i}?", "chosen": f"yes {i}", "rejected": "no"}
        for user in ("P1A", "P3B")
        for i in range(30)
    ]
    path = write(tmp_path / "pairs.jsonl", rows)
    asked = []
    for fold in range(5):
        data = kit.data.load("psoups", path, test_share=0.2, fold=fold)
        questions = {split: {pair[1] for pair in pairs_of(data, split)} for split in data}
        assert questions["train"] | questions["test_seen"] == {f"Why {i}?" for i in range(30)}
        assert not questions["train"] & questions["test_seen"]
        asked += questions["test_seen"]
    assert sorted(asked) == sorted(f"Why {i}?" for i in range(30))
    assert set(data["train"]["user_text"]) == {"Be P1A.", "Be P3B."}
    assert pairs_of(kit.data.load("psoups", tmp_path)) == pairs_of(kit.data.load("psoups", path))
    for wrong in (5, -1):
        refused("fold=", "psoups", path, test_share=0.2, fold=wrong)
