"""Every way to tell a model who asks: what is scored, with what in the prompt, against which anchor."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

import prlhf_kit as kit
from prlhf_kit.data.chat import prompt_text
from prlhf_kit.data.context import Contexts, people_of, with_context
from prlhf_kit.data.schema import record
from prlhf_kit.evaluation import context as ways
from prlhf_kit.evaluation.accuracy import USER_LENGTH
from prlhf_kit.evaluation.context import PROMPT, rewarded
from prlhf_kit.evaluation.intervals import intervals
from prlhf_kit.evaluation.options import LIKELIHOOD, RULES, choose, questions
from prlhf_kit.evaluation.statistics import cluster_bootstrap
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.models.user_index import GENERIC


@pytest.fixture
def told(pairs):
    people = {"a": "Short.", "b": "Long, please.", "c": "I like poems."}
    rows = [row | {"user_text": people[row["user_id"]]} for row in pairs]
    return Dataset.from_list(rows), {
        kind: Contexts(kind, people, "user_text") for kind in ("none", "user_text", "random")
    }


def test_pairs_are_ranked_against_the_anchor_with_each_reader(make_tiny, tokenizer, told):
    pairs, readers = told
    model, anchor = make_tiny(), score_pairs(make_tiny(), tokenizer, pairs)
    kinds = tuple(readers)
    results = ways.tried(model, tokenizer, pairs, readers["none"], kinds, anchor=anchor, method="mine")
    assert set(results.rule) == {LIKELIHOOD}
    for kind, reader in readers.items():
        wanted = rewarded(score_pairs(model, tokenizer, with_context(pairs, reader)), anchor)
        found = results[results.context == kind]
        assert found.item.tolist() == pairs["pair_id"][:]
        assert found.value.tolist() == wanted.tolist()
    assert set(results[results.context == "none"].value) == {0.5}  # the anchor itself
    assert set(results[results.context == "random"].value) != {0.5}


def test_users_without_a_row_get_the_generic_one(personal, tokenizer, told):
    pairs, readers = told
    anchor = score_pairs(personal, tokenizer, pairs)
    index = kit.UserIndex(["a", "b", "c"])

    def values(known):
        return ways.tried(personal, tokenizer, pairs, readers["none"], ["none"], known, anchor).value.tolist()

    by_row = [rewarded(score_pairs(personal, tokenizer, pairs, rows), anchor).tolist()
              for rows in (index.rows(pairs["user_id"]), [GENERIC] * len(pairs))]  # fmt: skip
    assert values(index) == by_row[0]
    assert values(kit.UserIndex([])) == by_row[1]
    assert by_row[0] != by_row[1]


def test_questions_are_chosen_by_likelihood(make_tiny, tokenizer):
    rows = [
        record(f"p{i}{j}", f"u{i}", f"Question {i}?", "Yes, this.", f"No, that {j}.", f"I am {i}.")
        for i in range(4)
        for j in range(3)
    ]
    asked = questions(Dataset.from_list(rows))
    reader = Contexts("user_text", people_of(Dataset.from_list(rows)))
    told = with_context(asked, reader)
    results = ways.tried(make_tiny(), tokenizer, asked, reader, ["user_text"], dataset="mine", method="x")
    assert results.chance.tolist() == [0.25] * 16
    assert set(results.context) == {"user_text"}
    assert not set(results.prompt) & {prompt_text(prompt) for prompt in told["prompt"]}  # compared on the same prompts
    chosen = choose(make_tiny(), tokenizer, told)
    for rule, column in RULES.items():
        assert results[results.rule == rule].value.tolist() == chosen[column].tolist()
    found = intervals(results, by=["rule"], cluster="user_id", **ways.NUMBERS).set_index("rule").loc[LIKELIHOOD]
    i = cluster_bootstrap(chosen.right, chosen.user_id)
    assert (found.value, found.low, found.high, found.n, found.users) == (*i[:4], 4)


def test_the_length_rule_is_each_users_own(told):
    pairs, _ = told
    found = ways.by_length(pairs, pairs, dataset="mine")
    assert set(found.method) == {USER_LENGTH}
    gap = [
        len(c[0]["content"].split()) - len(r[0]["content"].split())
        for c, r in zip(pairs["chosen"], pairs["rejected"], strict=True)
    ]
    longer = {u: np.sign(sum(np.sign(g) for g, v in zip(gap, pairs["user_id"], strict=True) if v == u)) for u in "abc"}
    sure = [i for i, (g, u) in enumerate(zip(gap, pairs["user_id"], strict=True)) if g and longer[u]]
    assert sure
    assert found.value[sure].tolist() == [float(np.sign(gap[i]) == longer[pairs["user_id"][i]]) for i in sure]


def test_labels_keep_each_way_with_its_own_context():
    rows = [(method, context) for method in ("untrained", "SFT") for context in ("none", "true")]
    rows += [("neither", "none"), ("soft tokens", "none"), ("both", "true")]
    rows += [(PROMPT, context) for context in ("true", "none", "random", "shuffled")]
    pairs = pd.DataFrame(rows, columns=["method", "context"])
    table = ways.labelled(pairs.assign(chance=0.5))
    assert table.method.tolist() == [
        "untrained, by likelihood", "untrained, context", "SFT, by likelihood", "SFT, context", "neither",
        "soft tokens", "both", PROMPT,
    ]  # fmt: skip
    assert ways.labelled(pairs.assign(chance=0.25)).method[0] == "untrained"  # questions: all by likelihood
    assert table[table.method == PROMPT].context.item() == "true"
