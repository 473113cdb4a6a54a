"""Reward models against the numbers of DSP's code: rewards, ranking loss, accuracy and language-modelling loss.

Not equal, and meant so: the kit's "max" is that of the tokens alone (theirs is never below 0, which padding has).
"""

import pytest
import torch
from safetensors.torch import load_file

import prlhf_kit as kit
from authors.golden import MODELS, golden
from prlhf_kit.training import reward_losses
from prlhf_kit.training.reward import RewardCollator

GOLD = golden("dsp.json")
POOLING = {"mean": "average", "last": "eos", "before_eos": "last"}


def compute(pooling, side, threshold):
    """Batch, output and rewards `[3 lists, 4 responses]` of a model with the authors' reward head."""
    model = kit.new_reward_model(str(MODELS / "base"), pooling=pooling, lm_head=True)
    with torch.no_grad():
        model.score.weight.copy_(torch.tensor([GOLD["reward_head"]]))
        model.lm_head.weight.copy_(load_file(MODELS / "base" / "model.safetensors")["lm_head.weight"])
    lists = []
    for number, given in enumerate(GOLD["lists"]):
        lists.append(
            {
                "row": number,
                "text_ids": given["token_ids"],
                "prompt_tokens": [1] * len(given["scores"]),
                "scores": given["scores_scaled"],
            }
        )
    collator = RewardCollator(pad_token_id=0, padding_side=side, lm_threshold=threshold)
    batch = collator(lists)
    with torch.no_grad():
        output = model(batch["input_ids"], batch["attention_mask"], lm_asked=batch["lm_asked"])
    rewards = torch.zeros_like(batch["scores"]).masked_scatter(~batch["scores"].isnan(), output.logits.squeeze(-1))
    return batch, output, rewards


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", list(POOLING))
def test_rewards_ranking_loss_and_accuracies(pooling, side):
    wanted = GOLD["results"][f"{side}.{POOLING[pooling]}"]
    batch, _, rewards = compute(pooling, side, 0.9)
    scores = batch["scores"]
    for found, row in zip(rewards.tolist(), wanted["rewards"], strict=True):
        assert found[: len(row)] == pytest.approx(row, abs=1e-5)
    assert reward_losses.ranking_loss(rewards, scores).item() == pytest.approx(wanted["ranking_loss"], abs=1e-5)
    for name, ranked in (
        ("accuracy", reward_losses.ranked_right),
        ("first_two_accuracy", reward_losses.first_two_right),
    ):
        right, pairs = ranked(rewards, scores)
        assert (right.sum() / pairs.sum()).item() == pytest.approx(wanted[name]), name


@pytest.mark.parametrize("place", range(len(GOLD["lm_thresholds"])))
@pytest.mark.parametrize("pooling", list(POOLING))
def test_language_modelling_loss(pooling, place):
    """With padding on the right: with padding on the left the authors count the first token as a target, too."""
    threshold = GOLD["lm_thresholds"][place]
    batch, output, _ = compute(pooling, "right", threshold)
    loss = reward_losses.imitation_loss(output.nll, batch["scores"][~batch["scores"].isnan()], threshold)
    wanted = GOLD["results"][f"right.{POOLING[pooling]}"]["lm_loss"][place]
    assert loss.item() == pytest.approx(wanted, abs=1e-5)
