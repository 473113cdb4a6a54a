"""Texts with marks of who speaks, and what is no pair."""

import pytest
from raw import dialogue, write_json

import prlhf_kit as kit
from prlhf_kit.data.dialogue import NotAPair, common_prompt, parse, write_text_score
from prlhf_kit.data.schema import record


def test_text_marks_and_what_is_no_pair():
    assert parse("\n\nHuman: A\n\nB\n\nAssistant: C") == parse("## Human:\nA\n\nB\n\n## Assistant:\nC")
    joined = parse("\n\nHuman: A\n\nAssistant: B\n\nAssistant: C")
    assert joined[1] == {"role": "assistant", "content": "B\n\nC"}
    for texts, reason in {
        ("\n\nHuman: A\n\nAssistant: B", "\n\nHuman: X\n\nAssistant: B"): "differ before",
        ("\n\nHuman: A\n\nAssistant: B\n\nHuman: C", "\n\nHuman: A\n\nAssistant: D"): "does not end with the assistant",
        ("\n\nAssistant: A", "\n\nAssistant: B"): "does not begin with the human",
        ("just text", "\n\nHuman: A\n\nAssistant: D"): "without Human",
    }.items():
        with pytest.raises(NotAPair, match=reason):
            common_prompt(*texts)


def test_text_score_ties_in_part_and_texts_it_cannot_hold(tmp_path):
    row = {"text": [dialogue("Q", "a"), dialogue("Q", "b"), dialogue("Q", "c")], "score": [1.0, 1.0, 0.0]}
    data, report = kit.data.load_with_report("gpt4llm", write_json(tmp_path / "g.json", [row]), test_share=0)
    assert len(data["train"]) == 2
    assert report.table[["reason", "pairs"]].to_dict("records") == [{"reason": "tie", "pairs": 1}]
    system = [{"role": "system", "content": "s"}, {"role": "user", "content": "Q"}]
    for bad in (record("p", "u", "Q", "hello\n\nHuman: hi", "b"), record("p", "u", system, "a", "b")):
        with pytest.raises(kit.data.SchemaError, match="can't hold"):
            write_text_score([bad], tmp_path / "out.json")
