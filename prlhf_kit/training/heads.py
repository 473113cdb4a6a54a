"""Personalised rewards that are linear in frozen features, r_u(x, y) = w_u . f(x, y), fitted in seconds as
Bradley-Terry models: P(chosen over rejected) = sigmoid(w_u . z), z = f(x, chosen) - f(x, rejected).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from datasets import Dataset
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.model_selection import GroupKFold

from prlhf_kit.data.chat import prompt_texts_of
from prlhf_kit.models.features import Embedder
from prlhf_kit.models.rewards import Text, messages

# The user's weights w_u: w_0, the same for all; w_0 + d_u; w_0 + a_u V (LoRe, arXiv 2504.14439, whose first row of V is
# w_0 here; PReF, arXiv 2503.06358); w_0 + sum_k softmax(p_u)_k H_k (PAL, arXiv 2406.08469). What is personal is
# regularised towards w_0, which is itself regularised towards 0.
KINDS = ("pooled", "per_user", "low_rank", "mixture")
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # tried for w_0 and for what is personal
RANKS = (1, 2, 3, 4, 6)  # r of low_rank, K of mixture

# w_0 [d], own numbers [users, .], and what is shared, V or H [size, d]
Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Heads:
    """Fitted rewards. Made by `fit_heads`."""

    kind: str
    scale: np.ndarray  # [d], by which features are divided
    pooled: np.ndarray  # w_0 [d]
    shared: np.ndarray  # V or H [size, d]; of other kinds [0, d]
    users: dict[str, np.ndarray]  # own numbers: d_u, a_u or p_u
    strength: float  # of the regularisation of what is personal; of w_0, where nothing is

    @property
    def size(self) -> int:
        """r of low_rank, K of mixture; 0 for other kinds."""
        return len(self.shared)

    def weights(self, user_ids: Sequence[str | None]) -> np.ndarray:
        """`[n, d]`, in units of the scaled features; users who are not known get the mean user's."""
        mean = np.mean(list(self.users.values()), 0)
        own = np.array([mean if user is None else self.users.get(user, mean) for user in user_ids])
        if self.kind == "mixture":
            own = softmax(own, 1)
        return self.pooled + (own if self.kind == "per_user" else own @ self.shared)

    def reward(self, features: np.ndarray, user_ids: Sequence[str | None]) -> np.ndarray:
        """Rewards `[n]` of features `[n, d]`; for differences of features, the log-odds of the preference."""
        return ((features / self.scale) * self.weights(user_ids)).sum(1)

    def adapt(self, difference: np.ndarray, user_ids: Sequence[str]) -> Heads:
        """These rewards with new users, whose own numbers alone are fitted to their few pairs (`difference` `[n, d]`).
        Prior: mean and covariance of the seen users' `a_u` (low rank), mean of their `p_u` with variance 1 (mixture),
        or w_0 with the strength of the fit (per user)."""
        if self.kind == "pooled":
            return self
        who, names = pd.factorize(np.array(user_ids, dtype=object), sort=True)
        z, rows = torch.tensor(difference / self.scale, dtype=torch.float64), torch.tensor(who)
        known = torch.tensor(np.array(list(self.users.values())))
        centre = known.mean(0) if self.kind != "per_user" else torch.zeros_like(known[0])
        precision = torch.eye(known.shape[1], dtype=torch.float64) * (1.0 if self.kind == "mixture" else self.strength)
        if self.kind == "low_rank":
            spread = (known - centre).T @ (known - centre) / max(len(known) - 1, 1)
            precision = torch.linalg.inv(spread + 0.05 * spread.diagonal().mean() * torch.eye(len(spread)))
        own = centre.repeat(len(names), 1).requires_grad_()
        pooled, shared = torch.tensor(self.pooled), torch.tensor(self.shared)

        def loss() -> torch.Tensor:
            prior = 0.5 * (((own - centre) @ precision) * (own - centre)).sum()
            return _nll(self.kind, z, rows, pooled, own, shared) + prior

        _minimise(loss, own)
        return replace(self, users=self.users | dict(zip(names, own.detach().numpy(), strict=True)))


def fit_heads(
    kind: str,
    difference: np.ndarray,
    user_ids: Sequence[str],
    prompts: Sequence[object],
    scale: np.ndarray,
    strengths: Sequence[float] = STRENGTHS,
    sizes: Sequence[int] = RANKS,
) -> Heads:
    """Fit one kind of rewards; its strengths and size are those with the least cross-validated negative log-likelihood
    (5 folds).

    Args:
        difference: `[n, d]`, features of the chosen minus those of the rejected response.
        user_ids, prompts: `[n]`; pairs of one prompt are in the same fold.
        scale: `[d]`, standard deviation of the features of the training responses.
        sizes: r or K to choose from, those below the number of users.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}.")
    groups = pd.factorize(pd.Series([str(p) for p in prompts]))[0]
    scale = np.where(scale > 0, scale, 1.0) * difference.shape[1] ** 0.5  # so that strengths mean the same for any d
    who, names = pd.factorize(np.array(user_ids, dtype=object), sort=True)
    z, rows, users = torch.tensor(difference / scale, dtype=torch.float64), torch.tensor(who), len(names)
    folds = [tuple(map(torch.tensor, fold)) for fold in GroupKFold(5).split(difference, groups=groups)]
    nobody: list[Any] = [torch.zeros(users, 0, dtype=torch.float64), torch.zeros(0, z.shape[1], dtype=torch.float64)]

    def validated(kind: str, fits: Sequence[Weights]) -> float:
        """Negative log-likelihood of a pair (nats) that each fold's fit gives to what it was not fitted to."""
        held_out = zip(folds, fits, strict=True)
        return sum(_nll(kind, z[held], rows[held], *fit).item() for (_, held), fit in held_out) / len(z)

    # first the strength of w_0, as for everybody; then size and strength of what is personal
    common = {s: [fit_pooled(z[train], s) for train, _ in folds] for s in strengths}
    base = strength = min(strengths, key=lambda s: validated("pooled", [(w0, *nobody) for w0 in common[s]]))
    wanted = {"pooled": [], "per_user": [0]}.get(kind, [n for n in sizes if n < users])
    personal = []
    for s in strengths if wanted else ():
        fits = [
            _fit(kind, wanted, base, s, z[train], rows[train], users, w0)
            for (train, _), w0 in zip(folds, common[base], strict=True)
        ]
        personal += [(validated(kind, of_size), n, s) for n, *of_size in zip(wanted, *fits, strict=True)]
    weights: Weights = (fit_pooled(z, base), *nobody)
    if personal:
        _, size, strength = min(personal)
        [weights] = _fit(kind, [size], base, strength, z, rows, users, weights[0])
    w0, own, shared = (part.numpy() for part in weights)
    return Heads(kind, scale, w0, shared, dict(zip(names, own, strict=True)), strength)


def head_coefficients(pairs: Dataset, embedder: Embedder, rank: int) -> dict[str, np.ndarray]:
    """Each user's place among the others, `[rank]`, by a low-rank head on frozen features of their pairs: principal
    coordinates of `a_u`, the first with variance 1. Empty for fewer than `rank` + 1 users."""
    if len(set(pairs["user_id"])) <= rank:
        return {}
    chosen, rejected = np.split(embedder(pairs["prompt"][:] * 2, pairs["chosen"][:] + pairs["rejected"][:]), 2)
    scale = np.concatenate([chosen, rejected]).std(0)
    texts = prompt_texts_of(pairs)
    heads = fit_heads("low_rank", chosen - rejected, pairs["user_id"], texts, scale, sizes=(rank,))
    own = np.array(list(heads.users.values()))
    axes, spread, _ = np.linalg.svd(own - own.mean(0), full_matrices=False)
    return dict(zip(heads.users, axes * spread / spread[0] * len(own) ** 0.5, strict=True))


def fit_pooled(z: torch.Tensor, strength: float, towards: torch.Tensor | None = None) -> torch.Tensor:
    """One Bradley-Terry head `[d]` for the differences `z` `[n, d]` (float64), regularised towards `towards` (0)."""
    centre = torch.zeros(z.shape[1], dtype=torch.float64) if towards is None else towards
    w = centre.clone().requires_grad_()
    _minimise(lambda: F.softplus(-z @ w).sum() + strength / 2 * (w - centre).square().sum(), w)
    return w.detach()


def _fit(
    kind: str, sizes: Sequence[int], pooled_strength: float, strength: float, z, rows, users: int, pooled: torch.Tensor
) -> list[Weights]:
    """The weights of one kind for each of `sizes`; w_0 starts at `pooled`. Low rank and mixture, which are not convex,
    start from the heads of single users: their best approximation of that rank, or their k-means."""

    def minimised(kind: str, pooled: torch.Tensor, own: torch.Tensor, shared: torch.Tensor) -> Weights:
        w0, own, shared = (start.contiguous().clone().requires_grad_() for start in (pooled, own, shared))
        # a mixture's logits are only kept finite
        of_own = 1e-2 if kind == "mixture" else strength / 2

        def loss() -> torch.Tensor:
            penalty = of_own * own.square().sum() + strength / 2 * shared.square().sum()
            return _nll(kind, z, rows, w0, own, shared) + penalty + pooled_strength / 2 * w0.square().sum()

        _minimise(loss, w0, own, shared)
        return w0.detach(), own.detach(), shared.detach()

    d = z.shape[1]
    zeros = torch.zeros(users, d, dtype=torch.float64)
    w0, heads, nothing = minimised("per_user", pooled, zeros, zeros[:0])
    if kind == "per_user":
        return [(w0, heads, nothing)]
    found = []
    u, s, v = torch.linalg.svd(heads, full_matrices=False)
    for size in sizes:
        if kind == "low_rank":
            root = s[:size].sqrt() + 1e-3
            own, shared = u[:, :size] * root, root[:, None] * v[:size]
        else:
            means = KMeans(size, n_init=5, random_state=0).fit(heads.numpy())
            own = 2.0 * F.one_hot(torch.tensor(means.labels_).long(), size).double()
            shared = torch.tensor(means.cluster_centers_).double()
        found.append(minimised(kind, w0, own, shared))
    return found


def _nll(kind: str, z, rows, pooled, own, shared) -> torch.Tensor:
    """Negative log-likelihood (nats) of all pairs: `z` `[n, d]`, of the users in `rows` `[n]`."""
    seen = z if kind == "per_user" else z @ shared.T  # `[n, d]`, or what the shared heads say `[n, size]`
    own = F.embedding(rows, own.softmax(-1) if kind == "mixture" else own)
    return F.softplus(-(z @ pooled + (seen * own).sum(1))).sum()


def _minimise(loss: Callable[[], torch.Tensor], *parameters: torch.Tensor) -> None:
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=100, tolerance_grad=1e-4, tolerance_change=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Any:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


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
