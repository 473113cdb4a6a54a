"""What an LLM judge is told of a person, and how its answer is read."""

import pytest
from datasets import Dataset

from prlhf_kit.data.psoups import PROFILES
from prlhf_kit.data.schema import record
from prlhf_kit.evaluation.endpoint import JudgeError
from prlhf_kit.evaluation.judge_templates import CRITERIA, PARSERS, about, parse_verdict
from prlhf_kit.evaluation.judges import UNREADABLE, Verdict

A = Verdict("a", 0.9)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"preference": "A", "confidence": 0.9}', A),
        ('{"preference": "B", "confidence": 0.75}', Verdict("b", 0.25)),
        ('{"preference": "tie", "confidence": 0.8}', Verdict("tie", 0.5)),
        ('{"preference": "B"}', Verdict("b", 0.0)),
        (' \n```json\n\n{"preference": "A",\n"confidence": 0.9}```\n ', A),
    ],
)
def test_readable(text, verdict):
    assert parse_verdict(text) == verdict


@pytest.mark.parametrize(
    "text",
    [
        None,
        '{"preference": "a"}',
        '{"preference": "A", "confidence": 0.49}',
        '{"preference": "tie", "confidence": 0.2}',
        '{"preference": "A"}\n{"preference": "B"}',
        'Sure: {"preference": "A"}',
        '```json\n{"preference": "A"}',
        "[" * 100_000,
    ],
)
def test_unreadable(text):
    assert parse_verdict(text) is UNREADABLE


@pytest.mark.parametrize(
    ("name", "text", "preference"),
    [
        ("prlhf_prism", "Output (a)", "a"),
        ("prlhf_prism", " TIE\n", "tie"),
        ("prlhf_psoups", "Output (a) is long, Output (b) is short.\n\nOutput (b)", "b"),
        ("prlhf_psoups", "Output (a)\nOn second thoughts:\nOutput (b)", None),
        ("prlhf_psoups", "Output (b)\nbecause it is short.", None),
        ("prlhf_psoups", "Output (c)", None),
        ("compo", "m", "a"),
        ("compo", "M\n", "b"),
        ("compo", '"m"', None),
        ("compo", "m or M", None),
        ("args", "8 7.5\nThe first is clearer.", "a"),
        ("args", "3 9", "b"),
        ("args", "10 10\n", "tie"),
        ("args", "8, 7", None),
        ("args", "0 7", None),
        ("args", "Scores: 8 7", None),
    ],
)
def test_forms_of_answer_of_the_papers(name, text, preference):
    wanted = {"a": Verdict("a", 1.0), "b": Verdict("b", 0.0), "tie": Verdict("tie", 0.5), None: UNREADABLE}
    assert PARSERS[name](text) is wanted[preference] or PARSERS[name](text) == wanted[preference]
    assert PARSERS[name](None) is PARSERS[name]("") is UNREADABLE


def test_a_template_without_an_answer_is_refused(make_judge, tmp_path):
    (tmp_path / "t.txt").write_text("{prompt} {answer_a}")
    with pytest.raises(JudgeError, match="lacks answer_b"):
        make_judge(template=tmp_path / "t.txt")


# ---- what a judge is told of the person


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
