"""Personalised rewards that are linear in frozen features, r_u(x, y) = w_u . f(x, y), fitted in seconds as
Bradley-Terry models: P(chosen over rejected) = sigmoid(w_u . z), z = f(x, chosen) - f(x, rejected).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.model_selection import GroupKFold

from prlhf_kit.models.features import Embedder
from prlhf_kit.models.rewards import Text, messages
from prlhf_kit.training.lbfgs import minimised

# The user's weights w_u: w_0, the same for all; w_0 + d_u; w_0 + a_u V (LoRe, arXiv 2504.14439, whose first row of V is
# w_0 here; PReF, arXiv 2503.06358); w_0 + sum_k softmax(p_u)_k H_k (PAL, arXiv 2406.08469). What is personal is
# regularised towards w_0, which is itself regularised towards 0.
KINDS = ("pooled", "per_user", "low_rank", "mixture")
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # tried for w_0 and for what is personal
RANKS = (1, 2, 3, 4, 6)  # r of low_rank, K of mixture
STEPS, MANY_USERS = 10, 2000  # of L-BFGS for the heads from which low rank and mixture start, of up to so many users

# of F fits side by side: w_0 [F, d], own numbers [F, users, .], and what is shared, V or H [F, size, d]
Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Heads:
    """Fitted rewards. Made by `fit_heads`."""

    kind: str
    scale: np.ndarray  # [d], by which features are divided
    pooled: np.ndarray  # w_0 [d]
    shared: np.ndarray  # V or H [size, d]; of other kinds [0, d]
    users: dict[str, np.ndarray]  # own numbers, d_u, a_u or p_u: of those in the fit, then of those adapted to
    strength: float  # of the regularisation of what is personal; of w_0, where nothing is
    fitted: int  # users in the fit

    @property
    def size(self) -> int:
        """r of low_rank, K of mixture; 0 for other kinds."""
        return len(self.shared)

    def weights(self, user_ids: Sequence[str | None]) -> np.ndarray:
        """`[n, d]`, in units of the scaled features; users who are not known get the mean user's."""
        mean = self._fitted().mean(0)
        own = np.array([mean if user is None else self.users.get(user, mean) for user in user_ids])
        own = own.reshape(len(own), len(mean))  # of nobody, too
        if self.kind == "mixture" and self.size:
            own = softmax(own, 1)
        return self.pooled + (own if self.kind == "per_user" else own @ self.shared)

    def _fitted(self) -> np.ndarray:
        """Own numbers `[fitted, .]` of the users in the fit."""
        return np.array(list(islice(self.users.values(), self.fitted)))

    def reward(self, features: np.ndarray, user_ids: Sequence[str | None]) -> np.ndarray:
        """Rewards `[n]` of features `[n, d]`; for differences of features, the log-odds of the preference."""
        return ((features / self.scale) * self.weights(user_ids)).sum(1)

    def are_personal(self, features: np.ndarray, user_ids: Sequence[str]) -> bool:
        """Whether users differ from the mean user by 0.01 nats in any reward. What is less is noise of the fit."""
        everybody: list[None] = [None] * len(features)
        return bool(np.abs(self.reward(features, user_ids) - self.reward(features, everybody)).max() >= 0.01)

    def prior(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean `[s]` and precision `[s, s]` of a new user's own numbers: mean and covariance of the seen users' `a_u`
        (low rank), mean of their `p_u` with variance 1 (mixture), or 0 with the strength of the fit (per user)."""
        known = self._fitted()
        centre = known.mean(0) if self.kind != "per_user" else np.zeros_like(known[0])
        if self.kind != "low_rank":
            return centre, np.eye(len(centre)) * (1.0 if self.kind == "mixture" else self.strength)
        spread = (known - centre).T @ (known - centre) / max(len(known) - 1, 1)
        return centre, np.linalg.inv(spread + 0.05 * spread.diagonal().mean() * np.eye(len(spread)))

    def adapt(self, difference: np.ndarray, user_ids: Sequence[str]) -> Self:
        """These rewards with new users, whose own numbers alone are fitted to their few pairs (`difference` `[n, d]`)
        and the `prior`."""
        if not self._fitted().size:  # nothing is personal: pooled, or low rank and mixture of one user
            return self
        who, names = pd.factorize(np.array(user_ids, dtype=object), sort=True)
        rows, z = torch.tensor(who), difference / self.scale  # float64, as the scale
        offset = torch.tensor(z @ self.pooled)
        seen = torch.tensor(z if self.kind == "per_user" else z @ self.shared.T)
        centre, precision = map(torch.tensor, self.prior())

        def loss(own: torch.Tensor) -> torch.Tensor:
            prior = 0.5 * (((own - centre) @ precision) * (own - centre)).sum()
            weights = own.softmax(1) if self.kind == "mixture" else own
            return F.softplus(-offset - (seen * F.embedding(rows, weights)).sum(1)).sum() + prior

        [own] = minimised(loss, [centre.repeat(len(names), 1)], [precision.diagonal().rsqrt()])
        return replace(self, users=self.users | dict(zip(names, own.numpy(), strict=True)))


def fit_heads(
    kind: str,
    difference: np.ndarray,
    user_ids: Sequence[str],
    prompts: Sequence[object],
    scale: np.ndarray,
    strengths: Sequence[float] = STRENGTHS,
    sizes: Sequence[int] = RANKS,
    prior: np.ndarray | None = None,
) -> Heads:
    """Fit one kind of rewards; its strengths and size are those with the least cross-validated negative log-likelihood
    (5 folds, fitted side by side).

    Args:
        difference: `[n, d]`, features of the chosen minus those of the rejected response.
        user_ids, prompts: `[n]`; pairs of one prompt are in the same fold.
        scale: `[d]`, standard deviation of the features of the training responses.
        sizes: r or K to choose from, those below the number of users.
        prior: `[d]`, weights of a known reward, towards which w_0 is regularised (a reward model's own head); None: 0.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}.")
    groups = pd.factorize(pd.Series([str(p) for p in prompts]))[0]
    # so that strengths mean the same for any d
    scale = np.where(scale > 0, scale, 1.0).astype(np.float64) * difference.shape[1] ** 0.5
    who, names = pd.factorize(np.array(user_ids, dtype=object), sort=True)
    order = np.argsort(who, kind="stable")
    z = torch.from_numpy((difference / scale)[order])
    basis = _right_singular(z)  # in which features are uncorrelated
    known = np.zeros_like(scale) if prior is None else prior * scale
    exact, offset, rows = z @ basis.T, z @ torch.tensor(known), torch.tensor(who[order])
    in_type = {  # float32 for cross-validation, in half the time: only the order counts
        dtype: _Pairs(exact.to(dtype), offset.to(dtype), rows, len(names)) for dtype in (torch.float32, torch.float64)
    }

    def fitted(kind: str, sizes: Sequence[int], base: float, strength: float, to: torch.Tensor) -> list[Weights]:
        pairs = in_type[to.dtype]
        pooled = _fit("pooled", [0], base, base, pairs, to, to.new_zeros(len(to), len(basis)))
        return pooled if kind == "pooled" else _fit(kind, sizes, base, strength, pairs, to, pooled[0][0])

    def chosen(kind: str, sizes: Sequence[int], base: float | None = None) -> tuple[int, float]:
        """Size and strength; `base`: that of w_0, None: the same as the other."""
        if len(sizes) * len(strengths) == 1:
            return sizes[0], strengths[0]
        to = torch.ones(5, len(z))
        for fold, (_, held) in enumerate(GroupKFold(5).split(order, groups=groups[order])):
            to[fold, held] = 0.0
        found: dict[tuple[int, float], float] = {}  # negative log-likelihood of what was left out

        def compare(sizes: Sequence[int], s: float) -> None:
            for size, weights in zip(sizes, fitted(kind, sizes, base or s, s, to), strict=True):
                left_out = F.softplus(-_log_odds(kind, in_type[to.dtype], *weights)) * (1 - to)
                found[size, s] = left_out.sum().item()

        for s in sorted(strengths, reverse=True):  # of the largest size; then the other sizes at the best one
            compare(sizes[-1:], s)
            if found[sizes[-1], s] >= 1.05 * min(found.values()):  # weaker ones are no better
                break
        if len(sizes) > 1:
            compare(sizes[:-1], min(found, key=lambda tried: found[tried])[1])
        return min(found, key=lambda tried: found[tried])

    # first the strength of w_0, as for everybody; then size and strength of what is personal
    size, strength = _, base = chosen("pooled", [0])
    if sizes := {"pooled": [], "per_user": [0]}.get(kind, [n for n in sizes if n < len(names)]):
        size, strength = chosen(kind, sizes, base)
    [weights] = fitted(kind if sizes else "pooled", [size], base, strength, torch.ones(1, len(z), dtype=torch.float64))
    w0, own, shared = (part[0] for part in weights)
    own_of = dict(zip(names, (own @ basis if kind == "per_user" else own).numpy(), strict=True))
    return Heads(kind, scale, known + (w0 @ basis).numpy(), (shared @ basis).numpy(), own_of, strength, len(names))


class _Pairs:
    """Differences `z` `[n, d]` of features, those of a user together, in a basis in which they are uncorrelated, and
    the log-odds `offset` `[n]` that are known beforehand."""

    def __init__(self, z: torch.Tensor, offset: torch.Tensor, rows: torch.Tensor, users: int):
        self.z, self.offset, self.rows = z, offset, rows
        self.counts = torch.bincount(rows, minlength=users)
        # of the negative log-likelihood where both responses are as likely, about: [users, d], each user's part in it
        self.curvature = z.square().sum(0) / 4
        self.share = (self.counts / len(z))[:, None]


def _log_odds(kind: str, pairs: _Pairs, w0, own, shared) -> torch.Tensor:
    """`[F, n]`, of all pairs by F fits."""
    if kind == "per_user":
        of_users = zip(pairs.z.split(pairs.counts.tolist()), own.unbind(1), strict=True)
        return pairs.offset + (pairs.z @ w0.T + torch.cat([z @ heads.T for z, heads in of_users])).T
    all_shared = torch.cat([w0[:, None], shared], 1)
    seen = (pairs.z @ all_shared.flatten(0, 1).T).view(len(pairs.z), *all_shared.shape[:2]).transpose(0, 1)
    own = (own.softmax(-1) if kind == "mixture" else own)[:, pairs.rows]
    return pairs.offset + seen[..., 0] + (seen[..., 1:] * own).sum(-1)


def _fit(kind: str, sizes: Sequence[int], base: float, strength: float, pairs: _Pairs, fitted_to, w0) -> list[Weights]:
    """Fits of each of `sizes` to the pairs of which `fitted_to` `[F, n]` is 1, from `w0` `[F, d]`. Low rank and
    mixture, which are not convex, start from the heads of single users: their best approximation of that rank, or their
    k-means."""

    # what is only compared with others needs no more than this share of the loss
    gain = 1e-3 if len(fitted_to) > 1 else 0.0

    def least(kind: str, w0, own, shared, steps: int = 100) -> Weights:
        # a mixture's logits get a small penalty, so that they stay finite
        of_own = 2e-2 if kind == "mixture" else strength

        def loss(w0, own, shared) -> torch.Tensor:
            penalty = of_own * own.square().sum() + strength * shared.square().sum() + base * w0.square().sum()
            return (F.softplus(-_log_odds(kind, pairs, w0, own, shared)) * fitted_to).sum() + penalty / 2

        curved = _curvature(kind, pairs, own, shared)
        hessian = zip((pairs.curvature.expand_as(w0), *curved), (base, of_own, strength), strict=True)
        scales = [(part + ridge).rsqrt() for part, ridge in hessian]
        w0, own, shared = minimised(loss, (w0, own, shared), scales, steps, gain)
        return w0, own, shared

    zeros = w0.new_zeros(len(w0), len(pairs.counts), w0.shape[1])
    if kind in ("pooled", "per_user"):
        return [least(kind, w0, zeros if kind == "per_user" else zeros[..., :0], zeros[:, :0])]
    if len(pairs.counts) <= MANY_USERS:
        w0, heads, _ = least("per_user", w0, zeros, zeros[:, :0], STEPS)
    else:  # one step of Newton's for each, with the Hessian's diagonal, is enough to see in what they differ
        errors = torch.sigmoid(-_log_odds("pooled", pairs, w0, zeros[..., :0], zeros[:, :0])) * fitted_to
        slopes = [zero.index_add(0, pairs.rows, e[:, None] * pairs.z) for zero, e in zip(zeros, errors, strict=True)]
        heads = torch.stack(slopes) / (pairs.share * pairs.curvature + strength)
    found, v = [], _right_singular(heads) if kind == "low_rank" else heads
    for size in sizes:
        if kind == "low_rank":
            own = heads @ v[:, :size].mT
            root = own.norm(dim=1).sqrt() + 1e-3
            start = own / root[:, None], root[..., None] * v[:, :size]
        else:  # logits of each user's cluster, and the clusters' means
            means = [KMeans(size, n_init=5, random_state=0).fit(fold.numpy()) for fold in heads]
            labels = torch.tensor(np.array([fold.labels_ for fold in means])).long()
            centres = torch.tensor(np.array([fold.cluster_centers_ for fold in means]))
            start = 2.0 * F.one_hot(labels, size).to(heads) - 2.0 / size, centres.to(heads)
        found.append(least(kind, w0, *start))
    return found


def _right_singular(z: torch.Tensor) -> torch.Tensor:
    """Right singular vectors `[..., min(n, d), d]` of `z` `[..., n, d]`, which are those of z'z."""
    return torch.linalg.svd(z if z.shape[-2] < z.shape[-1] else z.mT @ z, full_matrices=False).Vh


def _curvature(kind: str, pairs: _Pairs, own, shared) -> tuple[torch.Tensor, torch.Tensor]:
    """Diagonals of the Hessian of the negative log-likelihood in own numbers and in what is shared, about."""
    if kind == "per_user":
        return (pairs.share * pairs.curvature).expand_as(own), shared
    weights = own.softmax(-1) if kind == "mixture" else own
    of_shared = (pairs.share * weights.square()).sum(1)[..., None] * pairs.curvature  # [F, size, d]
    apart = shared[:, None]  # [F, 1, size, d]
    if kind == "mixture":
        apart = weights[..., None] * (apart - (weights @ shared)[:, :, None])  # [F, users, size, d]
    return pairs.share * (apart.square() @ pairs.curvature), of_shared


@dataclass
class FeatureReward:
    """Heads on frozen features as reward model. `cache`: see `Embedder`."""

    embedder: Embedder
    heads: Heads
    cache: Path | None = None

    def score(
        self, prompts: Sequence[Text], responses: Sequence[Text], user_ids: Sequence[str | None] | None = None
    ) -> torch.Tensor:
        """See `RewardModel.score`."""
        asked = [messages(prompt, "user") for prompt in prompts]
        features = self.embedder(asked, [messages(response, "assistant") for response in responses], self.cache)
        rewards = self.heads.reward(features, [None] * len(asked) if user_ids is None else user_ids)
        return torch.tensor(rewards, dtype=torch.float32)
