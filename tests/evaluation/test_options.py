"""Multiple choice by likelihood."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset

import prlhf_kit as kit
from prlhf_kit.data.context import Contexts, people_of, with_context
from prlhf_kit.data.schema import SchemaError, message, record
from prlhf_kit.data.sources import rows_of
from prlhf_kit.evaluation.options import RULES, choose, questions
from prlhf_kit.models.tokenize import tokenize_completions

REAL = Path(__file__).parents[3] / "shared" / "data" / "prefeval"
OPTIONS = {
    "a": ["Tea.", "A cup of coffee."],
    "b": ["Go by train.", "Take the car, it is faster.", "Fly."],
    "c": ["Soup.", "Steak with fries.", "Sushi.", "Ham."],
    "d": ["A novel about the sea.", "Poems.", "A comic.", "A play in five acts.", "News."],
}


@pytest.fixture
def asked():
    """Four users' questions of two to five options, as preference pairs."""
    rows = [
        record(f"{user}-{i}", user, f"What would you advise, {user}?", options[0], other, f"I like {user}.", "g")
        for user, options in OPTIONS.items()
        for i, other in enumerate(options[1:])
    ]
    return Dataset.from_list(rows)


def texts(rows):
    return {row["user_id"]: [option[0]["content"] for option in row["options"]] for row in rows}


def test_questions_come_back_from_their_pairs(asked):
    found = questions(asked)
    assert texts(found) == OPTIONS
    assert found["right_option"] == [0] * 4
    assert found["question_id"] == [f"{user}-0" for user in OPTIONS]
    assert found["user_text"] == [f"I like {user}." for user in OPTIONS]
    assert found[1]["prompt"] == message("user", "What would you advise, b?")
    shuffled = texts(questions(asked.select([5, 0, 4, 3, 2, 1])))  # options with their own question
    assert {user: set(options) for user, options in shuffled.items()} == {u: set(OPTIONS[u]) for u in "abc"}
    told = questions(with_context(asked, Contexts("true", people_of(asked))))
    assert told["context_user"] == list("abcd")
    assert told["prompt"] == with_context(found, Contexts("true", people_of(asked)))["prompt"]


def test_one_prompt_asked_under_two_preferences_is_two_questions():
    rows = [
        record(f"{user}{i}", user, "Same?", right, other)
        for user, right, others in ("uxy", "vyx")
        for i, other in enumerate(others + "z")
    ]
    assert texts(questions(Dataset.from_list(rows))) == {"u": ["x", "y", "z"], "v": ["y", "x", "z"]}


def test_a_question_of_one_option_is_refused():
    with pytest.raises(SchemaError, match="1 questions have one option only, first the pair 'p'"):
        questions(Dataset.from_list([record("p", "u", "Why?", "same", "same")]))


@torch.no_grad()
def plainly(model, tokenizer, prompt, option):
    """Log-probs (nats) of an option's tokens, by itself and without padding."""
    before, after = tokenize_completions(tokenizer, prompt, option)
    logps = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    return [logps[len(before) + i - 1, token].item() for i, token in enumerate(after)]


def test_choose_is_a_plain_loop_over_options_in_any_order(asked, make_tiny, tokenizer):
    model, rows = make_tiny(), questions(asked)
    table = choose(model, tokenizer, rows, batch_size=3)
    assert table.options.tolist() == [2, 3, 4, 5]
    for row, found in zip(rows, table.itertuples(), strict=True):
        logps = [plainly(model, tokenizer, row["prompt"], option) for option in row["options"]]
        means, sums, lengths = ([f(p) for p in logps] for f in (np.mean, np.sum, len))
        assert found.logps == pytest.approx(means, abs=1e-4)
        assert found.right == (np.argmax(means) == 0)
        assert found.right_sum == (np.argmax(sums) == 0)
        for rule, best in ((found.right_shortest, min(lengths)), (found.right_longest, max(lengths))):
            assert rule == (lengths[0] == best) / lengths.count(best)
    turned = rows.map(lambda row: {"options": row["options"][::-1], "right_option": len(row["options"]) - 1})
    other = choose(model, tokenizer, turned)
    pd.testing.assert_frame_equal(table[[*RULES.values()]], other[[*RULES.values()]])


def test_ties_share_the_point(make_tiny, tokenizer):
    same = {"question_id": "q", "user_id": "u", "prompt": message("user", "Which?"), "options": []}
    rows = [same | {"options": [message("assistant", "x")] * n, "right_option": n - 1} for n in (3, 2)]
    table = choose(make_tiny(), tokenizer, Dataset.from_list(rows))
    assert table[[*RULES.values()]].to_numpy() == pytest.approx(np.array([[1 / 3] * 4, [1 / 2] * 4]))


def test_choose_hears_the_user_and_the_context(asked, make_tiny, tokenizer):
    model, rows = make_tiny(users=3, offsets=0.8), questions(asked)
    nobody, first, second = (choose(model, tokenizer, rows, users) for users in (None, [1] * 4, [2] * 4))
    mixed = choose(model, tokenizer, rows, [1, 2, 1, 2])
    assert mixed.logps[0] == pytest.approx(first.logps[0], abs=1e-4)
    assert mixed.logps[3] == pytest.approx(second.logps[3], abs=1e-4)
    told = choose(model, tokenizer, with_context(rows, Contexts("true", people_of(asked))))
    for one, other in ((nobody, first), (first, second), (nobody, told)):
        assert abs(one.logps[0][0] - other.logps[0][0]) > 1e-3


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data in {REAL}")
def test_prefeval_has_its_questions_again():
    stated = {
        (row["preference"], row["question"]): [text.strip() for text in row["classification_task_options"]]
        for row in rows_of([REAL / "mcq_options.json"])
    }
    total = 0
    for pairs in kit.data.load("prefeval", REAL).values():
        for row in questions(pairs):
            total += 1
            source = stated[row["user_text"], row["prompt"][0]["content"]]
            assert [option[0]["content"] for option in row["options"]] == source
            assert len(source) == 4
    assert total == 2_541 / 3
