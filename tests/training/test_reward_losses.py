"""Reward losses and accuracy against values worked out by hand, and DSP's formulas on padded lists."""

import math

import pytest
import torch

from prlhf_kit.training import reward_losses


def nls(x):
    """-log sigmoid(x)"""
    return math.log1p(math.exp(-x))


def test_listwise_loss_by_hand_with_ties_and_padding():
    rewards = torch.tensor([[3.0, 1.0, 0.5], [0.2, -0.1, 99.0]])
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 7.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    expected = (nls(3 - 1) + nls(3 - 0.5) + nls(-0.1 - 0.2)) / 3  # the tie and the padding give no pair
    assert reward_losses.ranking_loss(rewards, scores, mask).item() == pytest.approx(expected)
    center = ((3 + 1) ** 2 + (3 + 0.5) ** 2 + (-0.1 + 0.2) ** 2) / 3
    assert reward_losses.center_penalty(rewards, scores, mask).item() == pytest.approx(center)
    right, pairs = reward_losses.ranked_right(rewards, scores, mask)
    assert (right.tolist(), pairs.tolist()) == ([2, 0], [2, 1])
    right, pairs = reward_losses.ranked_right(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    assert (right.item(), pairs.item()) == (0.5, 1)  # equal rewards


def test_all_equal_scores_give_no_loss_and_a_gradient_of_zero():
    rewards = torch.tensor([[1.0, 2.0]], requires_grad=True)
    loss = reward_losses.ranking_loss(rewards, torch.tensor([[0.5, 0.5]]))
    loss.backward()
    assert loss.item() == 0
    assert rewards.grad.tolist() == [[0, 0]]
