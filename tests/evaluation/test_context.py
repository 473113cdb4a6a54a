"""What a context is worth: what is scored, with what in the prompt, against which anchor."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

import prlhf_kit as kit
from prlhf_kit.data.context import Contexts, with_context
from prlhf_kit.evaluation import context as ways
from prlhf_kit.evaluation.accuracy import by_implicit_reward
from prlhf_kit.evaluation.context import BOTH, NEITHER, PROMPT, SOFT
from prlhf_kit.evaluation.statistics import crossed_interval, holm
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.models.user_index import GENERIC


@pytest.fixture
def told(pairs):
    people = {"a": "Short.", "b": "Long, please.", "c": "I like poems."}
    rows = [row | {"user_text": people[row["user_id"]]} for row in pairs]
    return Dataset.from_list(rows), Contexts("none", people, "user_text", seed=5)


def test_pairs_are_ranked_against_the_anchor_with_each_context(make_tiny, tokenizer, told):
    """The contexts are those that `with_context` puts in for SFT and DPO."""
    pairs, contexts = told
    model, anchor = make_tiny(), score_pairs(make_tiny(), tokenizer, pairs)
    kinds = ("none", "user_text", "random")
    results = ways.tried(model, tokenizer, pairs, contexts, kinds, anchor=anchor, method="mine")
    for kind in kinds:
        put = with_context(pairs, Contexts(kind, contexts.people, "user_text", seed=5))
        found = results[results.context == kind]
        assert found.item.tolist() == pairs["pair_id"][:]
        assert found.value.tolist() == by_implicit_reward(score_pairs(model, tokenizer, put), anchor).tolist()
    assert set(results[results.context == "none"].value) == {0.5}  # the anchor itself
    assert set(results[results.context == "random"].value) != {0.5}


def test_users_without_a_row_get_the_generic_one(personal, tokenizer, told):
    pairs, contexts = told
    anchor, found = score_pairs(personal, tokenizer, pairs), []
    for index, rows in ((kit.UserIndex(["a", "b", "c"]), None), (kit.UserIndex([]), [GENERIC] * len(pairs))):
        found.append(ways.tried(personal, tokenizer, pairs, contexts, ["none"], index, anchor).value.tolist())
        rows = rows or index.rows(pairs["user_id"])
        assert found[-1] == by_implicit_reward(score_pairs(personal, tokenizer, pairs, rows), anchor).tolist()
    assert found[0] != found[1]


def test_four_way():
    """Every user asked every prompt; each method is right at its rate."""
    rates = {NEITHER: 0.5, PROMPT: 0.9, SOFT: 0.7, BOTH: 0.9, "length rule": 0.4}
    asked = [(f"u{u}", f"{p}", f"{u}-{p}", "dsp") for u in range(4) for p in range(30)]
    asked = pd.DataFrame(asked, columns=["user_id", "prompt", "item", "dataset"])
    draws = np.random.default_rng(0).random((len(rates), len(asked)))
    parts = zip(rates.items(), draws, strict=True)
    table = pd.concat([asked.assign(method=m, value=(drawn < rate).astype(float)) for (m, rate), drawn in parts])
    found, gaps = ways.four_way(table, named=True)
    assert found[["dataset", "method"]].to_numpy().tolist() == [["dsp", method] for method in rates]
    assert found[["n", "users"]].to_numpy().tolist() == [[120, 4]] * 5
    first = table[table.method == NEITHER]
    i = crossed_interval(first.value, first.prompt)  # the communities are named
    assert found.loc[0, ["value", "low", "high"]].tolist() == [i.estimate, i.low, i.high]
    assert list(zip(gaps.one, gaps.other, strict=True)) == list(ways.FOUR_WAY_COMPARISONS)
    assert gaps.p_holm.tolist() == holm(gaps.p.tolist())
    by_pair = gaps.set_index(["one", "other"]).p_holm
    assert by_pair[PROMPT, NEITHER] < 0.01 < by_pair[BOTH, PROMPT]
    _, gaps = ways.four_way(table, named=False)
    assert (gaps.p >= 0.125).all()  # four users as a sample of users can't show even the greatest difference


def test_labels_keep_each_way_with_its_own_context():
    rows = [(method, context) for method in ("untrained", "SFT") for context in ("none", "true")]
    rows += [(NEITHER, "none"), (SOFT, "none"), (BOTH, "true")]
    rows += [(PROMPT, context) for context in ("true", "none", "random", "shuffled")]
    pairs = pd.DataFrame(rows, columns=["method", "context"])
    table = ways.labelled(pairs)
    controls = ["untrained, by likelihood", "untrained, context", "SFT, by likelihood", "SFT, context"]
    assert table.method.tolist() == [*controls, NEITHER, SOFT, BOTH, PROMPT]
    assert table[table.method == PROMPT].context.item() == "true"
