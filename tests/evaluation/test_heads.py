"""Heads on frozen features: what is asked of new users, and the trade-off against values worked out by hand."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from scipy.special import entr, expit
from scipy.stats import norm

from prlhf_kit.data.schema import record
from prlhf_kit.evaluation import heads
from prlhf_kit.models.features import Embedded, Embedder
from prlhf_kit.training.heads import Heads

# people differ in the first two features, most in the first; the third is the same for all
USERS = {str(i): np.array(own) for i, own in enumerate([(2.0, 0.5), (-2.0, 0.5), (2.0, -0.5), (-2.0, -0.5)])}
HEADS = Heads("low_rank", np.ones(3), np.array([0.0, 0.0, 1.0]), np.eye(3)[:2], USERS, 1.0, 4)
NOTHING = np.zeros((0, 3))


def test_information_is_that_of_an_answer_before_it_is_known():
    pair = np.array([[0.7, 0.0, 0.4]])
    deviation = 0.7 * np.sqrt(np.linalg.inv(HEADS.prior()[1])[0, 0])
    odds = np.linspace(-30, 30, 20_001)
    density = norm.pdf(odds, 0.4, deviation)
    entropy = [entr(p) + entr(1 - p) for p in (np.trapezoid(expit(odds) * density, odds), expit(odds))]
    by_hand = entropy[0] - np.trapezoid(entropy[1] * density, odds)
    assert heads.expected_information(HEADS, None, pair, NOTHING) == pytest.approx(by_hand, abs=1e-4)
    assert heads.expected_information(HEADS, None, -pair, NOTHING) == pytest.approx(by_hand, abs=1e-4)


def test_what_was_asked_tells_less_and_what_all_agree_on_nothing():
    pairs = np.array([[1.0, 0, 0], [0, 0, 3]])
    before = heads.expected_information(HEADS, None, pairs, NOTHING)
    after = heads.expected_information(HEADS.adapt(pairs[:1], ["new"]), "new", pairs, pairs[:1])
    assert before[0] > after[0] > before[1] == pytest.approx(0)


def test_the_next_questions_are_about_something_else():
    pairs = np.array([[0, 0, 1], [1.1, 0, 0], [1.0, 0, 0], [0, 3.0, 0]])
    assert heads.most_informative(HEADS, None, pairs, NOTHING, 2) == [1, 3]
    assert sorted(heads.most_informative(HEADS, None, pairs, NOTHING, 9)) == [0, 1, 2, 3]


def test_only_low_rank_knows_how_people_differ():
    pooled = Heads("pooled", np.ones(3), np.ones(3), np.zeros((0, 3)), {"a": np.zeros(0)}, 1.0, 1)
    with pytest.raises(ValueError, match="expected 'low_rank'"):
        heads.expected_information(pooled, None, NOTHING, NOTHING)


def test_questions_that_tell_something_beat_random_ones():
    """Ten pairs of each new user, of which only one shows what is theirs."""
    users = {str(i): np.array([sign]) for i, sign in enumerate([3.0, -3.0])}
    low_rank = Heads("low_rank", np.ones(2), np.zeros(2), np.array([[1.0, 0]]), users, 1.0, 2)
    data, embedded = DatasetDict(), {}
    for split, first in (("adapt_unseen", np.eye(10)[7]), ("test_unseen", np.ones(10))):
        rows = [record(f"{split}-{u}-{i}", u, f"{split} {i}", "Yes.", "No.") for u in "ab" for i in range(10)]
        data[split] = Dataset.from_list(rows)
        taste = np.concatenate([first, -first])  # b wants the opposite of what a does
        embedded[split] = Embedded(np.column_stack([taste, np.ones(20)]), np.zeros((20, 2)))
    table = heads.questions_asked(low_rank, data, embedded, most=3, draws=4)
    found = table.groupby(["k", "method"]).value.mean().unstack()
    assert found.index.tolist() == [0, 1, 2, 3]
    assert found[heads.INFORMATIVE].tolist() == [0.5, 1, 1, 1]
    assert found[heads.RANDOM][0] == 0.5
    assert found[heads.RANDOM][3] < 1
    assert heads.questions_asked(low_rank, DatasetDict(train=data["test_unseen"]), embedded).empty


def test_the_head_of_a_reward_model_is_what_is_regularised_towards():
    pairs = Dataset.from_list([record(f"p{i}", "ab"[i % 2], f"Prompt {i}?", "Yes.", "No.") for i in range(10)])
    nothing = Embedded(np.zeros((10, 2)), np.zeros((10, 2)))
    reward_model, other = Embedder("rm", head=np.array([1.0, 2.0])), Embedder("other")
    for embedders, expected in (([reward_model], [1.0, 2.0]), ([reward_model, other], [0.0, 0.0]), ([], [0.0, 0.0])):
        found = heads.fit("pooled", pairs, nothing, embedders)
        assert found.reward(np.eye(2), ["a", "b"]) == pytest.approx(expected)


def two_tastes(few=16):
    """Everybody likes the first feature; a domain has few pairs, likes the first and not the second."""
    rng = np.random.default_rng(0)

    def pairs(n, weights):
        difference = rng.normal(size=(n, 3))
        difference[difference @ weights < 0] *= -1
        rows = [record(f"p{i}", "a", f"Prompt {i}?", "Yes.", "No.") for i in range(n)]
        return Dataset.from_list(rows), Embedded(difference, np.zeros((n, 3)))

    everybody, own = np.array([1.0, 0, 0]), np.array([1.0, -1, 0])
    return pairs(200, everybody), {"own": pairs(few, own)}, pairs(150, everybody), {"own": pairs(150, own)}


def test_a_head_that_starts_from_the_general_one_keeps_more_of_it():
    table = heads.trade_off(*two_tastes(), strengths=(0.01, 10.0))
    assert set(table.n) == {150}
    wide = table.pivot(index=["strategy", "strength", "chosen"], columns="of", values="value").reset_index()
    wide = wide.sort_values("strength", ascending=False).set_index("strategy")
    alone, after, mixed = (wide.loc[path] for path in heads.PATHS)
    assert after.general.iloc[0] > 0.9 > after.custom.iloc[0]  # the general head itself
    assert alone.general.iloc[0] == alone.custom.iloc[0] == 0.5  # all rewards 0
    assert after.custom.iloc[-1] > after.custom.iloc[0]
    assert after.general[after.chosen].item() > alone.general[alone.chosen].item()
    assert mixed.general.iloc[-1] >= after.general.iloc[-1]
    assert wide.chosen.sum() == 3
    assert len(heads.trade_off(*two_tastes(few=3), strengths=(1.0,))) == 3 * 2 * 2  # of fewer prompts than folds, too
    with pytest.raises(ValueError, match="pairs of one prompt, expected several"):
        heads.trade_off(*two_tastes(few=1), strengths=(1.0,))
