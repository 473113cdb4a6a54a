"""Which pairs to ask a person about: those whose answers tell most about them (PReF, arXiv 2503.06358)."""

from __future__ import annotations

import numpy as np
from scipy.special import expit
from scipy.stats import entropy

from prlhf_kit.training.heads import Heads


def expected_information(heads: Heads, user_id: str | None, candidates: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """What a person's choice in each candidate pair is expected to tell about their own numbers `a_u` (low rank): the
    mutual information of the two `[n]`, in nats, under a Laplace approximation of the posterior of `a_u`. It is the
    same whichever response of a pair is taken from the other.

    Args:
        heads: low rank, adapted to what the person chose (`Heads.adapt`); of None: who has not chosen yet.
        candidates: `[n, d]`, differences of features.
        asked: `[k, d]`, of the pairs that the person has been asked about; k may be 0.
    """
    if heads.kind != "low_rank":
        raise ValueError(f"heads of kind {heads.kind!r}: expected 'low_rank', which knows how people differ.")
    seen, answered = (part / heads.scale @ heads.shared.T for part in (candidates, asked))  # [n, r], [k, r]
    p = expit(heads.reward(asked, [user_id] * len(asked)))
    covariance = np.linalg.inv(heads.prior()[1] + (answered.T * (p * (1 - p))) @ answered)
    deviation = np.sqrt(((seen @ covariance) * seen).sum(1))
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    odds = heads.reward(candidates, [user_id] * len(candidates))[:, None] + deviation[:, None] * nodes
    p, weights = expit(odds), weights / weights.sum()  # [n, 20]
    mean = p @ weights
    return entropy([mean, 1 - mean]) - entropy([p, 1 - p]) @ weights


def most_informative(
    heads: Heads, user_id: str | None, candidates: np.ndarray, asked: np.ndarray, n: int = 1
) -> list[int]:
    """Numbers of the `n` candidates to ask about, the best first, each chosen as if those before it were asked."""
    found: list[int] = []
    for _ in range(min(n, len(candidates))):
        told = expected_information(heads, user_id, candidates, np.concatenate([asked, candidates[found]]))
        told[found] = -1.0
        found.append(int(told.argmax()))
    return found
