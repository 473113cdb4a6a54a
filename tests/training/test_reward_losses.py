"""Reward losses, pooling and accuracy against values worked out by hand, and DSP's formulas on padded lists."""

import math

import pytest
import torch
from conftest import ALL_FAMILIES, build_tiny
from transformers import AutoConfig

from prlhf_kit.models.logprobs import text_nll
from prlhf_kit.models.reward_model import new_reward_model, pool
from prlhf_kit.training import reward_losses


def nls(x):
    """-log sigmoid(x)"""
    return math.log1p(math.exp(-x))


def test_pairwise_loss_by_hand():
    loss = reward_losses.pairwise_loss(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((nls(1) + nls(-3)) / 2)


def test_listwise_loss_by_hand_with_ties_and_padding():
    rewards = torch.tensor([[3.0, 1.0, 0.5], [0.2, -0.1, 99.0]])
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 7.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    expected = (nls(3 - 1) + nls(3 - 0.5) + nls(-0.1 - 0.2)) / 3  # the tie and the padding give no pair
    assert reward_losses.ranking_loss(rewards, scores, mask).item() == pytest.approx(expected)
    center = ((3 + 1) ** 2 + (3 + 0.5) ** 2 + (-0.1 + 0.2) ** 2) / 3
    assert reward_losses.center_penalty(rewards, scores, mask).item() == pytest.approx(center)
    right, pairs = reward_losses.ranked_right(rewards, scores, mask)
    assert right.tolist() == [2, 0]
    assert pairs.tolist() == [2, 1]


def test_all_equal_scores_give_no_loss_and_a_gradient_of_zero():
    rewards = torch.tensor([[1.0, 2.0]], requires_grad=True)
    loss = reward_losses.ranking_loss(rewards, torch.tensor([[0.5, 0.5]]))
    loss.backward()
    assert loss.item() == 0
    assert rewards.grad.tolist() == [[0, 0]]


def test_ties_of_rewards_count_one_half():
    right, pairs = reward_losses.ranked_right(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    assert (right.item(), pairs.item()) == (0.5, 1)


def test_negative_scores_keep_their_order():
    """DSP divides by the greatest score, which would turn these around."""
    assert reward_losses.normalised(torch.tensor([[-3.0, -1.0, -2.0]])).tolist() == [[0, 1, 0.5]]
    padded = reward_losses.normalised(torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[True, True, False]]))
    assert padded[0, :2].tolist() == [0, 1]
    assert padded[0, 2].isnan()


def test_imitation_loss_by_hand():
    logits = torch.zeros(3, 4, 5)
    logits[0, 0, 2] = 2.0
    ids = torch.tensor([[1, 2, 3, 0], [1, 1, 1, 1], [4, 4, 4, 4]])
    asked = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    nll = text_nll(logits, ids, asked)
    first = (-2 + math.log(math.exp(2) + 4) + math.log(5)) / 2  # token 0 has nothing before it
    assert nll.tolist() == pytest.approx([first, math.log(5), 0])
    scores = torch.tensor([1.0, 0.9, 0.0])
    assert reward_losses.imitation_loss(nll, scores, 0.9).item() == pytest.approx(first)  # exceeds, not reaches
    assert reward_losses.imitation_loss(nll, scores, 0.5).item() == pytest.approx((first + math.log(5)) / 2)
    assert reward_losses.imitation_loss(nll, torch.zeros(3)).item() == 0


def test_pooling_by_hand_on_either_side():
    hidden = torch.tensor([[[1.0, -5.0], [3.0, -1.0], [9.0, 9.0]], [[9.0, 9.0], [1.0, -5.0], [3.0, -1.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool(hidden, mask, "max").tolist() == [[3, -1], [3, -1]]  # not the 0 of a zeroed padding
    assert pool(hidden, mask, "mean").tolist() == [[2, -3], [2, -3]]


@pytest.mark.parametrize("architecture", ALL_FAMILIES)
def test_padding_side_and_lm_head_on_every_family(architecture, tokenizer, tmp_path):
    """A padded batch gives the rewards of single texts, and the LM term is the base model's own loss."""
    lm = build_tiny(architecture, len(tokenizer))
    lm.save_pretrained(tmp_path)
    texts = [[7, 8, 9, 10, 11, 2], [12, 13, 2]]  # ending with the token that pads, too
    for pooling in ("last", "max"):
        model = new_reward_model(str(tmp_path), pooling, lm_head=True)
        model.config.pad_token_id = 2
        alone = [model(input_ids=torch.tensor([t])).logits.item() for t in texts]
        for left in (False, True):
            room = [2] * 3
            ids = torch.tensor([texts[0], room + texts[1] if left else texts[1] + room])
            mask = torch.tensor([[1] * 6, [0] * 3 + [1] * 3 if left else [1] * 3 + [0] * 3])
            output = model(input_ids=ids, attention_mask=mask, lm_asked=mask)
            assert output.logits.flatten().tolist() == pytest.approx(alone, abs=1e-4), (pooling, left)
            for text, nll in zip(texts, output.nll.tolist(), strict=True):
                own = lm(input_ids=torch.tensor([text]), labels=torch.tensor([text])).loss.item()
                assert nll == pytest.approx(own, abs=1e-4)
    assert AutoConfig.from_pretrained(tmp_path).architectures == [type(lm).__name__]
