"""What an LLM judge is told of a person, and how its answer is read."""

import re

import pytest
from datasets import Dataset

from prlhf_kit.data.psoups import PROFILES
from prlhf_kit.data.schema import message, record
from prlhf_kit.evaluation.endpoint import JudgeError
from prlhf_kit.evaluation.judge_templates import CRITERIA, PARSERS, about, earlier_choices, parse_verdict
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


def dialogue(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_no_choice_of_the_judged_turn_or_a_later_one_is_told():
    """Also where the judged prompt is a text or cut, where their histories are cut, or where a dialogue branches."""
    be_good, rows, texts = message("system", "Be good."), [], []  # one message for all dialogues
    for i in range(4):
        texts.append(f"<asked {i}>")
        rows.append(record(f"{i}", "u", be_good + dialogue(*texts), f"<chosen {i}>", f"<rejected {i}>"))
        texts.append(f"<chosen {i}>")
    other = record("o", "u", dialogue("<asked o>"), "<chosen o>", "<rejected o>")
    judged_prompt = rows[2]["prompt"]
    cut = [row | {"prompt": row["prompt"][-3:]} for row in rows]
    by_text = (rows, " <asked 2>\n")
    for pairs, prompt in ((rows, judged_prompt), (cut, judged_prompt), (rows, judged_prompt[-3:]), by_text):
        told = earlier_choices([*pairs, other], prompt, limit=99)
        assert not re.search(r"<(asked|rejected) [23]>|<chosen 2>|Be good", told)
        assert "<chosen o>" in told
    told = earlier_choices(rows, judged_prompt)
    assert all(f"<{what} {i}>" in told for what in ("asked", "chosen", "rejected") for i in (0, 1))
    branch = record("b", "u", dialogue("<asked 0>", "<rejected 0>", "<asked b>"), "<chosen b>", "<rejected b>")
    assert earlier_choices([branch], judged_prompt) == "none known"  # begins alike, but is no part of the judged one


def test_earlier_choices_are_few_short_and_of_different_questions():
    rows = [record(f"p{i}", "u", f"ask {i // 2}", f"yes {i} " + "x" * 1000, f"no\n\n{i}") for i in range(10)]
    told = earlier_choices(rows, "hi", limit=3)
    assert re.findall(r"Asked: (.*)\n", told) == ["ask 0", "ask 1", "ask 2"]
    assert re.findall(r"Chose: (yes \d)", told) == ["yes 0", "yes 2", "yes 4"]
    assert re.findall(r"Rather than: (.*)", told) == ["no 0", "no 2", "no 4"]
    assert len(told) < 3 * 450
