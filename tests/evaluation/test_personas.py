"""Personas from choices: who gets one, by which check, and that nothing is lost or asked twice."""

import numpy as np
import pytest
from datasets import Dataset
from faults import FaultServer

from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.evaluation.endpoint import JudgeError
from prlhf_kit.evaluation.judge_templates import about
from prlhf_kit.evaluation.personas import FEW, KEPT, SILENT, UNREAD, WORSE, by_judge, personas, with_personas

CHOICES = {"many": 9, "few": 3, "two": 2, "one": 1}


@pytest.fixture
def pairs():
    rows = [record(f"{u}{i}", u, f"Q {u} {i}?", f"A {i}", f"B {i}") for u, n in CHOICES.items() for i in range(n)]
    return Dataset.from_list([*rows, record("one1", "one", "Q one 0?", "A again", "B again", user_text="I am one.")])


def right(after):
    """Ranks every pair right with 1/2, and with the persona by `after`."""
    return lambda pairs: np.array([after if text and "like" in text else 0.5 for text in pairs["user_text"]])


def like(asked):
    return [" I like A. " for _ in asked]


def test_choices_are_read_or_held_out_and_who_has_too_few_gets_none(pairs):
    asked = []
    table = personas(pairs, lambda d: asked.extend(d) or like(d), right(0.5), k=4, checked=3).set_index("user_id")
    assert table.outcome.to_dict() == {"many": KEPT, "few": KEPT, "two": KEPT, "one": FEW}
    assert table.read.map(len).tolist() == [4, 2, 1, 0]
    assert table.held_out.map(len).tolist() == table.checked.tolist() == [3, 1, 1, 0]
    for (_, row), dialogue in zip(table[:3].iterrows(), asked, strict=True):
        text, by_id = dialogue[-1]["content"], {pair["pair_id"]: pair["prompt"][0]["content"] for pair in pairs}
        assert all(by_id[pair] in text for pair in row.read)
        assert not any(by_id[pair] in text for pair in row.held_out)
    filled = with_personas(pairs, table.reset_index())
    assert dict(zip(filled["user_id"], filled["user_text"], strict=True)) == {
        **dict.fromkeys(("many", "few", "two"), "I like A."),
        "one": "I am one.",
    }


@pytest.mark.parametrize(
    ("write", "after", "outcome"),
    [(like, 1.0, KEPT), (like, 0.4, WORSE), (like, np.nan, UNREAD), (lambda d: [None, " "] * 9, 1.0, SILENT)],
)
def test_a_persona_is_kept_if_it_ranks_held_out_choices_no_worse(pairs, write, after, outcome):
    table = personas(pairs.select(range(12)), lambda d: write(d)[: len(d)], right(after))
    assert set(table.outcome) == {outcome}
    if outcome == WORSE:
        assert (set(table.before), set(table.after)) == ({0.5}, {0.4})
        assert table.persona.notna().all()
    assert set(with_personas(pairs, table)["user_text"][:12]) == ({"I like A."} if outcome == KEPT else {None})


def test_nothing_to_check_with_is_refused(pairs):
    with pytest.raises(SchemaError, match="checked=0"):
        personas(pairs, like, right(1), checked=0)


def test_an_endpoint_writes_and_judges_and_is_asked_for_nothing_twice(pairs, make_judge):
    """It fails on the way, and the same call goes on. With the persona it prefers A, and without it the first."""

    def answer(body):
        text = body["messages"][-1]["content"]
        if "<profile>" not in text:
            return "I like A."
        known = "I like A." in text.split("</profile>")[0]
        first = text.index("A 1") < text.index("B 1") if known else True
        return f'{{"preference": "{"A" if first else "B"}"}}'

    two = pairs.select([i for i, pair in enumerate(pairs["pair_id"]) if pair in ("two0", "two1", "few1", "few2")])
    server = FaultServer({"Q few": ["400"]}, answer)
    judge = make_judge(server, template="profile", concurrency=1, retries=0)
    for seed in range(9):  # one at which both prompts with a 1 are held out
        table = personas(two, like, right(1), seed=seed)
        if table.held_out.explode().tolist() == ["few1", "two1"]:
            break
    with pytest.raises(JudgeError, match="400"):
        personas(two, judge.ask, by_judge(judge), seed=seed)
    table = personas(two, judge.ask, by_judge(judge), seed=seed)
    assert table[["outcome", "before", "after"]].to_numpy().tolist() == [[KEPT, 0.5, 1.0]] * 2
    sent = len(server.seen)
    assert sent == 1 + 2 + 2 * 2 * 2  # the one that failed, two personas, and two pairs in two orders, twice
    assert judge.spent["requests"] == 10
    assert judge.spent["unreadable"] == 0
    assert personas(two, judge.ask, by_judge(judge), seed=seed).equals(table)
    assert len(server.seen) == sent
    assert judge.told(about({"u": "I cook."})).spent == judge.spent
