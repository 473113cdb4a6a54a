"""What an LLM judge is told of a person, and how its answer is read."""

import pytest
from datasets import Dataset

from prlhf_kit.data.psoups import PROFILES
from prlhf_kit.data.schema import record
from prlhf_kit.evaluation.endpoint import JudgeError
from prlhf_kit.evaluation.judge_templates import CRITERIA, PARSERS, about

JSON = "criterion"


@pytest.mark.parametrize(
    ("name", "text", "verdict"),
    [
        (JSON, '{"preference": "A", "confidence": 0.9}', "a"),
        (JSON, '{"preference": "B", "confidence": 0.75}', "b"),
        (JSON, '{"preference": "tie", "confidence": 0.8}', "tie"),
        (JSON, '{"preference": "B"}', "b"),
        (JSON, ' \n```json\n\n{"preference": "A",\n"confidence": 0.9}```\n ', "a"),
        (JSON, '{"preference": "a"}', None),
        (JSON, '["A"]', None),
        (JSON, '{"preference": "A", "confidence": 0.49}', None),
        (JSON, '{"preference": "tie", "confidence": 0.2}', None),
        (JSON, '{"preference": "A"}\n{"preference": "B"}', None),
        (JSON, 'Sure: {"preference": "A"}', None),
        (JSON, '```json\n{"preference": "A"}', None),
        (JSON, "[" * 100_000, None),
        ("prlhf_prism", "Output (a)", "a"),
        ("prlhf_prism", " TIE\n", "tie"),
        ("prlhf_psoups", "Output (a) is long, Output (b) is short.\n\nOutput (b)", "b"),
        ("prlhf_psoups", "Output (a)\nOn second thoughts:\nOutput (b)", None),
        ("prlhf_psoups", "Output (b)\nbecause it is short.", None),
        ("prlhf_psoups", "Output (c)", None),
        ("compo", "m", "a"),
        ("compo", "M\n", "b"),
        ("compo", '"m"', None),
        ("args", "8 7.5\nThe first is clearer.", "a"),
        ("args", "3 9", "b"),
        ("args", "10 10\n", "tie"),
        ("args", "8, 7", None),
        ("args", "0 7", None),
    ],
)
def test_how_answers_are_read(name, text, verdict):
    """Of one that has not the form that was asked for nothing is guessed."""
    assert PARSERS[name](text) == verdict
    assert PARSERS[name](None) is PARSERS[name]("") is None


def test_a_template_without_an_answer_is_refused(make_judge, tmp_path):
    (tmp_path / "t.txt").write_text("{prompt} {answer_a}")
    with pytest.raises(JudgeError, match="lacks answer_b"):
        make_judge(template=tmp_path / "t.txt")


def test_what_a_judge_is_told():
    people = {"a": "I cook.", "b": None, "P2A": "Be brief."}
    earlier = [record("p", "a", "Tea?", "Green.", "Black."), record("q", "b", "Rain?", "Yes.", "No.")]
    known = about(people, Dataset.from_list(earlier))
    history = "Asked: Tea?\nChose: Green.\nRather than: Black."
    assert known("a", "Why?") == {"community": "a", "profile": "I cook.", "criterion": "I cook.", "history": history}
    assert known("a", "Tea?")["history"] == about(people)("a", "Why?")["history"] == "none known"
    assert set(known("b", "Why?")) == {"community", "history"}
    assert known("P2A", "Why?")["criterion"] == CRITERIA["P2A"]
    assert set(PROFILES) | {"helpful", "harmless", "humour"} <= set(CRITERIA)
    assert known("z", "Why?") == known(None, "Why?") == {}
