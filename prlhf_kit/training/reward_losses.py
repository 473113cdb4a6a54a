"""Losses of reward models (DSP: Cheng et al. 2023, arXiv 2309.03126) over lists of up to r scored responses. Where a
list is shorter than r, its scores are NaN, so that no response is compared to padding: `NaN > x` is False.
"""

import torch
import torch.nn.functional as F


def compared(scores: torch.Tensor) -> torch.Tensor:
    """Which response is preferred to which, by `scores` `[B, r]`: `[B, r, r]` bool, `[b, i, j]` where i's is higher."""
    return scores[:, :, None] > scores[:, None, :]


def ranking_loss(rewards: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """DSP's ranking loss: the mean of `-log sigmoid(r_i - r_j)` (nats) over all pairs with `scores_i > scores_j` in the
    batch, so that each list weighs as many pairs as it has; 0 where no pair is left. With two responses a list it is
    the Bradley-Terry negative log-likelihood of pairs (Ouyang et al. 2022, arXiv 2203.02155, Eq. 1).

    >>> round(ranking_loss(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]])).item(), 4)
    0.6931

    Args:
        rewards: `[B, r]`, finite everywhere, padding included.
        scores: `[B, r]`, NaN for padding; equal ones give no pair.
    """
    better = compared(scores)
    difference = rewards[:, :, None] - rewards[:, None, :]
    return -(F.logsigmoid(difference) * better).sum() / better.sum().clamp(min=1)


def center_penalty(rewards: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Mean of `(r_i + r_j)^2` over the same pairs: keeps rewards around 0 (arXiv 2312.09244, Eq. 2)."""
    better = compared(scores)
    total = rewards[:, :, None] + rewards[:, None, :]
    return (total.square() * better).sum() / better.sum().clamp(min=1)


def ranked_right(rewards: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each list, how many pairs the rewards rank right, a tie counting one half, and how many there are: `[B]` each.

    >>> scores = torch.tensor([[2.0, 1.0, 1.0]])
    >>> ranked_right(torch.tensor([[0.5, 0.5, 0.0]]), scores)
    (tensor([1.5000]), tensor([2]))
    """
    better = compared(scores)
    right = (torch.sign(rewards[:, :, None] - rewards[:, None, :]) + 1) / 2
    return (right * better).sum((1, 2)), better.sum((1, 2))


def first_two_right(rewards: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`ranked_right` of each list's two responses with the highest scores (DSP's "First-two Acc"); of equal ones, those
    that come first in the list. Where both have the same score there is no pair.

    >>> first_two_right(torch.tensor([[0.1, 0.5, 0.9]]), torch.tensor([[0.0, 2.0, 1.0]]))
    (tensor([0.]), tensor([1]))
    """
    best = scores.nan_to_num(-torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :2]
    return ranked_right(rewards.gather(1, best), scores.gather(1, best))


def imitation_loss(nll: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """DSP's language-modelling term, weighed against `ranking_loss` by `lm_loss_coeff`: the mean of `nll` (`[N]`, of
    `RewardOutput`) over the texts whose normalised score (`[N]`) exceeds `threshold`; 0 without such a text."""
    imitated = scores > threshold
    return (nll * imitated).sum() / imitated.sum().clamp(min=1)
