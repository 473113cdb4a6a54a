"""Personalized Soups, in both forms."""

import pytest
from raw import pairs_of, write_json

import prlhf_kit as kit


def test_psoups_wish_of_few_and_of_wishless_questions(tmp_path):
    from prlhf_kit.data.psoups import PROFILES

    for user in PROFILES:
        rows = [
            {"user_input": f"Is {c} a good capital? Be brief.", "completion_a": "yes", "completion_b": "no"}
            for c in "AB"
        ]
        write_json(tmp_path / f"{user}.json", rows)
    data = kit.data.load("psoups", tmp_path, test_share=0)
    assert {pair[1] for pair in pairs_of(data)} == {"Is A a good capital?", "Is B a good capital?"}
    write_json(
        tmp_path / "P1A.json", [{"user_input": q, "completion_a": "a", "completion_b": "b"} for q in ("What", "Who")]
    )
    with pytest.raises(kit.data.SchemaError, match="do not all end with the same sentence"):
        kit.data.load("psoups", tmp_path)


def test_psoups_both_forms_agree(tmp_path):
    wishes = {
        "P1A": "Be simple, please.",
        "P1B": "Be deep.",
        "P2A": "Be short.",
        "P2B": "Be long.",
        "P3A": "Be nice.",
        "P3B": "Be rude.",
    }
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
