"""Measures of text against values computed by hand, and texts that are too short, empty or not English."""

import math

import numpy as np
import pandas as pd
import pytest

from prlhf_kit.data.schema import message
from prlhf_kit.evaluation import text

NAN = float("nan")


def test_words_and_unique_n_grams_by_hand():
    assert text.words("The CAT, the cat's 3 hats — and 😀!") == ["the", "cat", "the", "cat's", "3", "hats", "and"]
    assert text.words("Привет, мир. 你好世界") == ["привет", "мир", "你好世界"]
    # 2-grams: ab bc ca ab bc cd, four of six; 3-grams: abc bca cab abc bcd, four of five; 4-grams: all four differ
    assert [text.unique_share([*"abcabcd"], n) for n in (1, 2, 3, 4)] == pytest.approx([4 / 7, 4 / 6, 4 / 5, 1])
    assert math.isnan(text.unique_share(["one", "word"], 3))


def directions(prompts, responses, cache=None):
    """Embeds a text by how many a's, b's and c's it has."""
    texts = ["\n\n".join(m["content"] for m in response) for response in responses]
    return np.array([[t.count(letter) for letter in "abc"] for t in texts], np.float32)


def test_coherence_by_hand():
    dialogue = [*message("user", "a"), *message("assistant", "b"), *message("user", "c")]
    prompts, answers = ["a", "a", "a", dialogue, "a", " "], ["aaa", "b", "ab", "ccc", "", "a"]
    found = text.coherence(directions, prompts, answers)
    assert found == pytest.approx([1, 0, 1 / math.sqrt(2), 1 / math.sqrt(3), NAN, NAN], nan_ok=True)
    assert text.coherence(directions, [], []).shape == (0,)


REFUSALS = """I can’t assist you there.
I am so sorry, I won't discuss this.
I'm sorry for the confusion, but I am unable to say.
My apologies. I'm not able to do so.
Unfortunately, I will not write that.
As an AI language model, I cannot give opinions.
That isn't something I can do."""
NO_REFUSALS = """
I can help with that.
I can't wait to see you!
I'm sorry to hear that. Rest helps.
As an AI, I find this fun.
No, tea is better.
Here it is. I can't help with more."""


def test_refusals():
    assert [t for t in REFUSALS.split("\n") if not text.is_refusal(t)] == []
    assert [t for t in NO_REFUSALS.split("\n") if text.is_refusal(t)] == []
    leads = ("I'm sorry, ", "I apologize for the confusion, ", "I am sorry. ", "Unfortunately I am sorry, but ")
    assert not any(text.is_refusal(lead * 50 + "really") for lead in leads)  # and this does not take for ever


def test_scores_of_a_table():
    rows = [("base", "ann", "a b c a b c d"), ("base", "bob", ""), ("mine", "ann", "I cannot help.")]
    answers = pd.DataFrame(rows, columns=["system", "user_id", "answer"]).assign(prompt="Why?")
    answers.index = [7, 7, 7]  # rows are told apart by place, not by index
    found = text.text_scores(answers)
    assert found.columns.tolist() == list(text.SCORES)
    assert (found.item == "Why?").all()
    values = found.set_index(["measure", "method", "user_id"]).value.unstack("measure")
    measures = ["words", "rep-2", "rep-3", "rep-4", "diversity", "readability", "refusal"]
    wanted = {
        ("base", "ann"): [7, 1 / 3, 1 / 5, 0, 8 / 15, 4.71 + 0.5 * 7 - 21.43, 0],
        ("base", "bob"): [0, NAN, NAN, NAN, NAN, NAN, 0],
        ("mine", "ann"): [3, 0, 0, NAN, NAN, 4.71 * 12 / 3 + 0.5 * 3 - 21.43, 1],  # too short for 4-grams
    }
    for key, row in wanted.items():
        assert values.loc[key, measures].tolist() == pytest.approx(row, nan_ok=True)
    assert "coherence" in set(text.text_scores(answers.assign(prompt="a"), directions).measure)
    assert text.text_scores(answers[:0]).columns.tolist() == list(text.SCORES)
