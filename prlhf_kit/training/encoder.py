"""Rewards of users whose own numbers z an encoder reads off their pairs: a new user costs one forward pass.

r_u(x, y) = (w_0 + z_u V) . f(x, y), linear in frozen features like those of `heads`, and trained like a neural process:
from some of a user's pairs to others of the same user (GPO, arXiv 2310.11523; VPL, arXiv 2408.10075).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.model_selection import GroupKFold

from prlhf_kit.training.heads import Heads

# encoder: z is the mean of q(z | pairs); variational: z is drawn from q in training, with KL(q || N(0, 1)) in the loss
KINDS = ("encoder", "variational")
SIZE, STRENGTHS = 4, (0.1, 1.0, 10.0, 100.0)  # r, numbers of a user; tried for the penalty on w_0 and V
# a step is an episode of each of `USERS`: some `PAIRS` are read, drawn from 0 to so many (and to half of the user's),
# and of the others `TARGETS` are ranked
USERS, PAIRS, TARGETS = 256, 16, 16
STEPS, LEARNING_RATE = 150, 0.03
DIVERGENCE = 0.1  # weight of KL(q || N(0, 1)); 0.1 did better than 1 on left-out training users (polis)


class Weights(NamedTuple):
    """What is trained."""

    pooled: torch.Tensor  # w_0 [d]
    shared: torch.Tensor  # V [r, d], with which the encoder reads too
    says: torch.Tensor  # [r, r], what a pair says of z
    counts: torch.Tensor  # [r, r], how much it counts

    def posterior(self, seen: torch.Tensor, rows: torch.Tensor, users: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance `[users, r]` of q(z | pairs), where V sees `seen` `[n, r]` of the pairs, which are of the
        users in `rows` `[n]`.

        Attention over pairs, apart for each number of z: a pair says `t S` and counts `t^2 softplus(C)`, for
        t = tanh(seen), beside the prior N(0, 1), which says 0 and counts 1: the Bayesian aggregation of Volpp et al.
        (ICLR 2021). No pairs: the prior. A user who would swap all chosen and rejected has the negative mean and the
        same variance, which SPL (arXiv 2603.12595) asks of the encoder by a loss, against a q that ignores the pairs.
        """
        t = torch.tanh(seen)
        counts = t.square() @ F.softplus(self.counts)
        nothing = torch.zeros(users, seen.shape[1])
        precision = 1 + nothing.index_add(0, rows, counts)
        return nothing.index_add(0, rows, counts * (t @ self.says)) / precision, 1 / precision


@dataclass(frozen=True)
class Encoder(Heads):
    """Rewards with an encoder of users. Made by `fit_encoder`; `users` are the seen users' z, from all their pairs."""

    encoder: Weights

    def encode(self, difference: np.ndarray, user_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Each user's z `[r]` from `difference` `[n, d]`, features of the chosen minus those of the rejected."""
        who, names = pd.factorize(np.array(user_ids, dtype=object), sort=True)
        seen = torch.tensor((difference / self.scale) @ self.shared.T, dtype=torch.float32)
        mean, _ = self.encoder.posterior(seen, torch.tensor(who), len(names))
        return dict(zip(names, mean.double().numpy(), strict=True))

    def weights(self, user_ids: Sequence[str | None]) -> np.ndarray:
        """`[n, d]`, in units of the scaled features; users of whom nothing is known get w_0, that of the prior mean."""
        nothing = np.zeros(self.size)
        own = np.array([self.users.get(user, nothing) if user is not None else nothing for user in user_ids])
        return self.pooled + own @ self.shared

    def adapt(self, difference: np.ndarray, user_ids: Sequence[str]) -> Self:
        """These rewards with new users, from their few pairs (`difference` `[n, d]`) by one forward pass."""
        return replace(self, users=self.users | self.encode(difference, user_ids))


def fit_encoder(
    kind: str,
    difference: np.ndarray,
    user_ids: Sequence[str],
    responses: tuple[Sequence[object], Sequence[object]],
    scale: np.ndarray,
    strengths: Sequence[float] = STRENGTHS,
    size: int = SIZE,
) -> Encoder:
    """Train an encoder and its rewards; the penalty is the one with the least negative log-likelihood on users who are
    left out (up to 3 folds).

    Args:
        kind: one of `KINDS`.
        strengths, size: see `SIZE`; with one strength nothing is chosen.
        difference, user_ids, scale: see `fit_heads`.
        responses: chosen and rejected, `[n]` each; a target shares none with the pairs that the encoder reads, else it
            would learn responses by heart.

    Raises:
        ValueError: fewer than 2 users with 2 pairs.
    """
    scale = np.where(scale > 0, scale, 1.0) * difference.shape[1] ** 0.5
    who, names = pd.factorize(np.array(user_ids, dtype=object), sort=True)
    if (several := int((np.bincount(who) > 1).sum())) < 2:
        raise ValueError(f"{several} users have 2 pairs or more, expected at least 2. Use a head, or more users.")
    z = torch.tensor(difference / scale, dtype=torch.float32)
    same = pd.factorize(np.array([str(response) for response in chain(*responses)]))[0].reshape(2, -1).T
    variational, strength = kind == "variational", strengths[0]
    if len(strengths) > 1:
        loss = dict.fromkeys(strengths, 0.0)
        for train, held in GroupKFold(min(3, len(names))).split(who, groups=who):
            for one in loss:
                weights = _train(z[train], who[train], same[train], one, variational, size)
                loss[one] += _validated(weights, z[held], who[held], same[held])
        strength = min(loss, key=lambda one: loss[one])
    weights = _train(z, who, same, strength, variational, size)
    pooled, shared = weights.pooled.double().numpy(), weights.shared.double().numpy()
    found = Encoder(kind, scale, pooled, shared, {}, strength, len(names), weights)
    return found.adapt(difference, user_ids)


def _train(z: torch.Tensor, who: np.ndarray, same: np.ndarray, strength: float, variational: bool, r: int) -> Weights:
    """Adam on episodes. `who`, `same`: users `[n]` and responses `[n, 2]` by number."""
    made, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made)

    d = z.shape[1]
    starts = torch.zeros(d), normal(r, d), normal(r, r) / r**0.5, 0.1 * normal(r, r) - 2
    weights = Weights(*(start.requires_grad_() for start in starts))
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS, pct_start=0.1)
    for step in range(STEPS):
        shown, asked, rows = episodes(who, same, rng)
        pooled, seen = z @ weights.pooled, z @ weights.shared.T
        mean, variance = weights.posterior(seen[shown], torch.tensor(rows[shown]), users := rows.max() + 1)
        penalty = strength / 2 * (weights.pooled.square().sum() + weights.shared.square().sum()) / len(z)
        if variational:
            # its weight grows over the first half, against collapse (Bowman et al. 2016, arXiv 1511.06349)
            divergence = 0.5 * (mean.square() + variance - 1 - variance.log()).sum() / users
            weight = DIVERGENCE * min(1, 2 * step / STEPS) * len(set(who)) / len(z)
            penalty = penalty + weight * divergence
            mean = mean + variance.sqrt() * normal(*mean.shape)
        odds = pooled[asked] + (seen[asked] * mean[rows[asked]]).sum(1)
        loss = F.softplus(-odds).sum() / max(1, len(asked)) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Weights(*(part.detach() for part in weights))


def _validated(weights: Weights, z: torch.Tensor, who: np.ndarray, same: np.ndarray) -> float:
    """Negative log-likelihood of these users' targets (nats), summed over their pairs."""
    rng = np.random.default_rng(0)
    total, targets = 0.0, 0
    pooled, seen = z @ weights.pooled, z @ weights.shared.T
    for _ in range(16):
        shown, asked, rows = episodes(who, same, rng)
        mean, _ = weights.posterior(seen[shown], torch.tensor(rows[shown]), rows.max() + 1)
        total += F.softplus(-pooled[asked] - (seen[asked] * mean[rows[asked]]).sum(1)).sum().item()
        targets += len(asked)
    return total / max(1, targets) * len(z)


def episodes(who: np.ndarray, same: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One episode of each drawn user: the pairs that the encoder reads, the target pairs, and every pair's row among
    the drawn users `[n]` (-1: not drawn)."""
    drawn = rng.permutation(np.unique(who))[:USERS]
    row_of = np.full(who.max() + 1, -1)
    row_of[drawn] = np.arange(len(drawn))
    rows = row_of[who]
    mixed = np.lexsort((rng.random(len(who)), who))  # by user, in random order
    place = np.empty(len(who), int)
    place[mixed] = np.arange(len(who)) - np.searchsorted(who[mixed], who[mixed])
    most = np.minimum(np.bincount(rows[rows >= 0]) // 2, PAIRS)
    k = np.where(rows >= 0, rng.integers(0, most + 1)[rows], 0)
    shown = place < k
    asked = (rows >= 0) & (place >= k) & (place < k + TARGETS)
    key = who[:, None] * (same.max() + 1) + same
    asked &= ~np.isin(key, key[shown]).any(1)
    return np.flatnonzero(shown), np.flatnonzero(asked), rows
