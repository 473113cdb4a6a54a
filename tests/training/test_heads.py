"""Rewards on frozen features: against scipy, on data with a known truth, and what they refuse."""

import functools

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, softmax

import prlhf_kit as kit
from prlhf_kit.data.simulated import oracle_accuracy
from prlhf_kit.evaluation import heads as head_comparison
from prlhf_kit.models.features import embed, load_embedder
from prlhf_kit.models.rewards import best_of_n
from prlhf_kit.training.heads import KINDS, FeatureReward, fit_heads

WEIGHTS = {"a": [2.0, 0.0, 0.0], "b": [-2.0, 0.0, 0.0], "c": [2.0, 0.0, 1.0], "d": [-2.0, 0.0, 1.0]}
PERSONAL = KINDS[1:]


def simulate(n=400, seed=0, users=tuple(WEIGHTS)):
    """Differences of features, users, prompts, and a chosen one drawn by Bradley-Terry."""
    rng = np.random.default_rng(seed)
    who = [users[i % len(users)] for i in range(n)]
    z = rng.normal(size=(n, 3))
    odds = (z * np.array([WEIGHTS[u] for u in who])).sum(1)
    z[rng.random(n) > expit(odds)] *= -1
    return z, who, [f"prompt {i // 2}" for i in range(n)]


@functools.cache
def fitted(kind):
    return fit_heads(kind, *simulate(), np.ones(3), strengths=(0.1, 1.0, 1e3), sizes=(1, 2))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="expected one of pooled, per_user"):
        fit_heads("best", *simulate(20), np.ones(3))


@pytest.mark.parametrize("kind", ["low_rank", "mixture"])
def test_of_one_user_nothing_is_personal(kind):
    z, who, prompts = simulate(40, users=("a",))
    one, pooled = (fit_heads(name, z, who, prompts, np.ones(3), strengths=(1.0,)) for name in (kind, "pooled"))
    for found in (one, one.adapt(z[:4], ["new"] * 4)):
        assert found.reward(z, ["new"] * 40) == pytest.approx(pooled.reward(z, who))


@pytest.mark.parametrize("kind", KINDS)
def test_scipy_finds_no_better_weights_from_there(kind):
    z, who, prompts = simulate(120)
    found = fit_heads(kind, z, who, prompts, np.ones(3), strengths=(0.3,), sizes=(2,))
    rows, own = np.unique(who, return_inverse=True)[1], np.array(list(found.users.values()))
    ends = np.cumsum([3, own.size])

    def objective(weights):
        w0, own_numbers, shared = np.split(weights, ends)
        own_numbers, shared = own_numbers.reshape(own.shape), shared.reshape(found.shared.shape)
        heads = own_numbers if kind == "per_user" else own_numbers @ shared
        if kind == "mixture":
            heads = softmax(own_numbers, 1) @ shared
        ridge = 0.02 if kind == "mixture" else 0.3
        penalty = 0.3 * (w0 @ w0 + (shared**2).sum()) + ridge * (own_numbers**2).sum()
        return np.logaddexp(0, -((z / found.scale) * (w0 + heads[rows])).sum(1)).sum() + penalty / 2

    start = np.concatenate([found.pooled, own.ravel(), found.shared.ravel()])
    assert minimize(objective, start, method="L-BFGS-B").fun > objective(start) - 1e-3  # nats, of all pairs


def test_a_known_reward_is_where_the_pooled_head_starts_from():
    z, known = np.random.default_rng(0).normal(size=(6, 8)), np.arange(8.0)  # fewer pairs than features
    found = fit_heads("pooled", z[:4], list("abab"), range(4), np.ones(8), strengths=(1e9,), prior=known)
    assert found.reward(z, ["a"] * 6) == pytest.approx(z @ known, abs=1e-5)
    free = fit_heads("pooled", z[:4], list("abab"), range(4), np.ones(8), strengths=(0.1,), prior=-known)
    nll = [np.logaddexp(0, -odds).sum() for odds in (free.reward(z[:4], ["a"] * 4), -z[:4] @ known)]
    assert nll[0] < nll[1]  # and goes from there where the pairs want it


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_setting_is_chosen_and_finds_opposite_users_which_pooled_does_not(kind):
    found = fitted(kind)
    z, who, _ = simulate(seed=1)
    right = (found.reward(z, who) > 0).mean()
    truth = ((z * np.array([WEIGHTS[u] for u in who])).sum(1) > 0).mean()
    assert right > truth - 0.03 if kind != "pooled" else right < 0.7
    assert found.strength < 1e3  # which leaves nothing to learn
    assert (found.size > 0) == (kind in ("low_rank", "mixture"))


@pytest.mark.parametrize("kind", PERSONAL)
def test_a_new_user_is_known_after_few_pairs_and_nobody_else_changes(kind):
    found = fitted(kind)
    few = simulate(12, seed=2, users=("b",))[0]
    adapted = found.adapt(few, ["new"] * 12)
    z = simulate(200, seed=3, users=("b",))[0]
    before, after = ((h.reward(z, ["new"] * 200) > 0).mean() for h in (found, adapted))
    best = (z @ np.array(WEIGHTS["b"]) > 0).mean()
    assert after > max(best - 0.08, before)
    assert np.array_equal(adapted.reward(z, ["a"] * 200), found.reward(z, ["a"] * 200))
    assert set(found.users) == set(WEIGHTS)


def test_low_rank_reaches_the_oracle_on_features_that_carry_the_attributes():
    """Within 3 points of the oracle for seen users, and within 8 for new ones with 8 pairs."""
    data = kit.data.load("simulated")
    embedded = embed(data, [load_embedder("attributes")])
    train, settings = embedded["train"], {"strengths": (0.1, 1.0), "sizes": (3, 4)}  # of all settings, to save time
    told = train.difference, data["train"]["user_id"], data["train"]["prompt"], np.concatenate(train).std(0)
    found = fit_heads("low_rank", *told, **settings)
    seen = head_comparison.held_out(found, data, embedded).groupby("split").value.mean()["test_seen"]
    assert seen > oracle_accuracy(data["test_seen"]["p_chosen"]) - 0.03
    few = head_comparison.ranked_after_few_shot(found, data, embedded, [0, 8, 1000]).groupby("k").value.mean()
    assert few.index.tolist() == [0, 8]
    assert few[8] > oracle_accuracy(data["test_unseen"]["p_chosen"]) - 0.08
    per_user = fit_heads("per_user", *told, **settings)
    reward = FeatureReward(load_embedder("attributes"), per_user)
    bullets, warm = "- Boil water.\n- Add tea.\n- Wait.", "Oh my dear friend, I love tea! Shall we have a cup together?"
    best = [best_of_n(reward, ["Tea?"], [[bullets, warm]], [user])[0][0] for user in ("structured-1", "companion-1")]
    assert best == [0, 1]
    assert reward.score(["Tea?"], [bullets]).shape == (1,)
