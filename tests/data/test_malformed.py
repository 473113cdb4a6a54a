"""Any field of any source may be null or of another kind: it is refused, or dropped and counted."""

import pytest
from raw import comparison, dialogue, pairs_of, write_lines

import prlhf_kit as kit
from prlhf_kit.data import dsp


def webgpt(i):
    return {"question": {"full_text": f"Why {i}?"}, "answer_0": "a", "answer_1": "b", "score_0": 0.5, "score_1": -0.5}


def gpt4llm(i):
    return {
        "user_input": f"Do {i}.",
        "responses_and_scores": [{"response": "a", "score": 2}, {"response": "b", "score": 1}],
    }


def prefeval(i):
    return {
        "topic": "t",
        "preference": f"I like {i}.",
        "question": f"Which {i}?",
        "classification_task_options": [f"right {i}", "wrong", "bad"],
    }


def text_score(i):
    return {"text": [dialogue(f"Q{i}", "yes"), dialogue(f"Q{i}", "no")], "score": [1.0, 0.0]}


def relabelled(i):
    return {"chosen": dialogue(f"Q{i}", "yes"), "rejected": dialogue(f"Q{i}", "no"), "objective": "helpful"}


def domains(i):
    return {"query": f"Q{i}", "responses": {d: f"{d} {i}" for d in dsp.DOMAINS}}


ROWS = {
    "tldr": lambda i: comparison(i, "ann", choice=1),
    "webgpt": webgpt,
    "gpt4llm": gpt4llm,
    "prefeval": prefeval,
    "hh": text_score,
    "hh_relabelled": relabelled,
    "dsp": domains,
}


def paths(value, at=()):
    """Every place in a row that holds a value of its own."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*at, key)
        yield from paths(inner, (*at, key))


CASES = [(name, at) for name, make in ROWS.items() for at in paths(make(0))]


@pytest.mark.parametrize("value", [None, 3], ids=str)
@pytest.mark.parametrize(("name", "at"), CASES, ids=lambda v: v if isinstance(v, str) else ".".join(map(str, v)))
def test_any_field_may_be_null_or_of_another_kind(name, at, value, tmp_path):
    """Either a SchemaError, or every pair that is left is one of the untouched rows or the changed one with a text."""
    rows = [ROWS[name](i) for i in range(12)]
    changed = rows[5]
    for key in at[:-1]:
        changed = changed[key]
    changed[at[-1]] = value
    path = write_lines(tmp_path / "rows.jsonl", rows)
    good = [ROWS[name](i) for i in range(12) if i != 5]
    clean = kit.data.load(name, write_lines(tmp_path / "good.jsonl", good))
    known = {pair for split in clean for pair in pairs_of(clean, split)}
    try:
        data = kit.data.load(name, path)
    except kit.data.SchemaError as error:
        assert len(str(error)) > 30  # noqa: PT017
        return
    found = {pair for split in data for pair in pairs_of(data, split)}
    extra = [pair for pair in found - known if value not in pair and "5" not in pair[1] and "None" not in pair[1]]
    assert found >= known or at[-1] in ("info", "worker", "choice", "split", "topic")
    assert not [pair for pair in extra if at[-1] not in ("text", "question", "user_input", "query", "preference")]
