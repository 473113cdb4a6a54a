"""Personalized Soups, in both forms."""

import pytest
from raw import pairs_of, write_json

import prlhf_kit as kit
from prlhf_kit.data.psoups import PROFILES


def raw(folder, ending="", questions=("What?", "Who?"), **other):
    """`rm_training` with a wish behind each question, one pair twice; and the questions of some profiles changed."""
    for user in PROFILES:
        asked = other.get(user, [f"{question}{ending.format(user)}" for question in questions])
        rows = [{"user_input": q, "completion_a": f"{user} yes {q[:5]}", "completion_b": "no"} for q in asked]
        write_json(folder / "rm_training" / f"{user}.json", [*rows, rows[0]])


def test_the_wish_is_cut_off(tmp_path):
    raw(tmp_path, " is a good capital? Be brief.", "AB")
    data = kit.data.load("psoups", tmp_path, test_share=0)
    assert {pair[1] for pair in pairs_of(data)} == {"A is a good capital?", "B is a good capital?"}
    raw(tmp_path, P1A=["What", "Who"])
    with pytest.raises(kit.data.SchemaError, match="questions of P1A do not all end with the same sentence"):
        kit.data.load("psoups", tmp_path)


def test_both_forms_agree(tmp_path):
    questions = [f"{verb} is number {i}?" for i, verb in enumerate(["What", "Who", "Where"] * 4)]
    raw(tmp_path, " Be as {}, please.", questions)
    clean = [
        {"user_id": number, "user_input": q, "completion_a": f"{user} yes {q[:5]}", "completion_b": "no"}
        for number, user in enumerate(PROFILES, 1)
        for q in questions
    ]
    one = write_json(tmp_path / "one" / "allcombo_8_cleaned.json", clean)
    from_raw, report = kit.data.load_with_report("psoups", tmp_path, test_share=0.3)
    data = kit.data.load("psoups", one, test_share=0.3)
    assert sorted(pairs_of(from_raw)) == sorted(pairs_of(data))
    assert set(data["train"]["user_id"]) == set(PROFILES)
    assert report.counts["pairs"] == 72
    assert report.table.pairs.sum() == 6
    held = kit.data.load("psoups", one, test_share=0.3, unseen=["P3B"])
    assert set(held["adapt_unseen"]["user_id"]) == {"P3B"} == set(held["test_unseen"]["user_id"])
    assert "P3B" not in held["train"]["user_id"]
    with pytest.raises(kit.data.SchemaError, match="no profile 'P9'"):
        kit.data.load("psoups", one, unseen=["P9"])
