"""Encoders of users: what they read off pairs, that they learn how users differ, and what they refuse."""

import functools

import numpy as np
import pytest
import torch
from scipy.special import expit

import prlhf_kit as kit
from prlhf_kit.data.simulated import oracle_accuracy
from prlhf_kit.evaluation import heads as comparison
from prlhf_kit.models.features import embed, load_embedder
from prlhf_kit.training import encoder
from prlhf_kit.training.encoder import KINDS, episodes, fit_encoder
from prlhf_kit.training.heads import FeatureReward

TASTES = {"a": [2.0, 0.0, 1.0], "b": [-2.0, 0.0, 1.0]}  # opposite in the first feature, agreed on the third


def simulate(users, pairs, seed=0):
    """Differences of features and users, `users` of each taste, and a chosen one drawn by Bradley-Terry."""
    rng = np.random.default_rng(seed)
    who = [f"{taste}{i}" for taste in TASTES for i in range(users) for _ in range(pairs)]
    z = 2 * rng.normal(size=(len(who), 3))
    odds = (z * np.array([TASTES[user[0]] for user in who])).sum(1)
    z[rng.random(len(z)) > expit(odds)] *= -1
    return z, who


@functools.cache
def fitted(kind):
    z, who = simulate(10, 20)
    responses = [[f"{side} {i}" for i in range(len(z))] for side in ("chosen", "rejected")]
    return fit_encoder(kind, z, who, responses, np.ones(3), strengths=(1.0,), size=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_user_is_known_by_one_forward_pass_and_without_pairs_is_everybody(kind):
    found, (z, who) = fitted(kind), simulate(20, 40, seed=1)
    first = np.arange(len(z)) % 40 < 8
    new = found.adapt(z[first], [who[i] + " new" for i in np.flatnonzero(first)])
    z, who = z[~first], [who[i] + " new" for i in np.flatnonzero(~first)]
    truth = ((z * np.array([TASTES[user[0]] for user in who])).sum(1) > 0).mean()
    before, after = ((one.reward(z, who) > 0).mean() for one in (found, new))
    assert after > max(truth - 0.05, before + 0.1)
    assert found.reward(z, who) == pytest.approx(found.reward(z, [None] * len(z)))
    assert new.reward(z, ["a0"] * len(z)) == pytest.approx(found.reward(z, ["a0"] * len(z)))


def test_the_variational_encoder_does_not_collapse():
    """Pairs make q narrower than the prior, and users of opposite tastes are not told the same."""
    z = simulate(1, 16, seed=2)[0]
    found = fitted("variational")
    seen = torch.tensor((z / found.scale) @ found.shared.T).float()
    mean, variance = found.encoder.posterior(seen, torch.arange(32) // 16, 2)
    assert variance.min() < 0.5
    assert torch.cosine_similarity(mean[0], mean[1], dim=0) < 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_read_whatever_its_place_and_company(kind):
    found, (z, who) = fitted(kind), simulate(2, 5, seed=3)
    together = found.encode(z, who)
    assert found.encode(z[::-1], who[::-1])["b1"] == pytest.approx(together["b1"], abs=1e-6)
    assert found.encode(z[-5:], who[-5:])["b1"] == pytest.approx(together["b1"], abs=1e-6)


def test_the_posterior_of_no_pairs_is_the_prior_and_of_swapped_pairs_the_mirror_image():
    read = fitted("variational").encoder.posterior
    seen, rows = torch.randn(10, 2), torch.tensor([0] * 5 + [2] * 5)
    (mean, variance), (mirrored, same) = read(seen, rows, 3), read(-seen, rows, 3)
    assert mean[1].tolist() == [0, 0]
    assert variance[1].tolist() == [1, 1]
    assert torch.allclose(mirrored, -mean)
    assert torch.equal(same, variance)


def test_no_target_shares_a_response_with_what_the_encoder_reads(monkeypatch):
    who = np.repeat([0, 1, 2], 12)
    same = np.stack([np.arange(36) % 5, 5 + np.arange(36) % 7], 1)
    for name, most in {"PAIRS": 4, "TARGETS": 3, "USERS": 2}.items():
        monkeypatch.setattr(encoder, name, most)
    rng = np.random.default_rng(0)
    for _ in range(20):
        shown, asked, rows = episodes(who, same, rng)
        assert set(rows[shown]) | set(rows[asked]) <= {0, 1}
        for row in (0, 1):
            read, targets = (pairs[rows[pairs] == row] for pairs in (shown, asked))
            assert len(read) <= 4
            assert len(targets) <= 3
            assert not set(same[read].ravel()) & set(same[targets].ravel())


def test_one_user_teaches_nothing_of_others():
    with pytest.raises(ValueError, match="1 users have 2 pairs or more, expected at least 2"):
        fit_encoder("encoder", np.eye(3), ["a", "a", "b"], ["xyz", "uvw"], np.ones(3))


def test_it_is_compared_as_one_more_kind_of_head_and_chooses_its_penalty(monkeypatch):
    monkeypatch.setattr(encoder, "STEPS", 100)
    monkeypatch.setattr(comparison, "fit_encoder", functools.partial(fit_encoder, strengths=(10.0, 1e4)))
    data = kit.data.load("simulated")
    embedded = embed(data, [load_embedder("attributes")])
    found = comparison.fit("encoder", data["train"], embedded["train"])
    assert found.strength == 10  # the other leaves nothing to learn
    few = comparison.ranked_after_few_shot(found, data, embedded, [0, 8]).groupby("k").value.mean()
    assert few[8] > max(oracle_accuracy(data["test_unseen"]["p_chosen"]) - 0.1, few[0])
    assert FeatureReward(load_embedder("attributes"), found).score(["Tea?"], ["Boil water."]).shape == (1,)
