"""Texts with marks of who speaks, and what is no pair."""

import json

import pytest

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


def test_texts_that_text_score_cannot_hold(tmp_path):
    system = [{"role": "system", "content": "s"}, {"role": "user", "content": "Q"}]
    bad = [record("p", "u", "Q", *pair) for pair in (("hello\n\nHuman: hi", "b"), ("b", "hello\n\nHuman: hi"))]
    out = tmp_path / "out.json"
    assert write_text_score([*bad, record("p", "u", system, "a", "b"), record("p", "u", "Q", "a", "b")], out) == 3
    [kept] = json.loads(out.read_text())
    assert kept == {"text": [f"## Human:\nQ\n\n## Assistant:\n{answer}" for answer in "ab"], "score": [1.0, 0.0]}
