"""Steered models as policies: against loops that read one text at a time, straight from the formulas."""

import numpy as np
import pandas as pd
import pytest
import torch

import prlhf_kit as kit
from prlhf_kit.evaluation import policy
from prlhf_kit.models.logprobs import sequence_logps
from prlhf_kit.models.tokenize import tokenize_completions

WEIGHTS = [0.0, 1.0, 2.5]
INDEX = kit.UserIndex(["a", "b", "c"])


def ids(tokenizer, pair, response):
    prompt = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(pair["prompt"] + response, return_dict=True)["input_ids"]
    return whole, len(prompt)


@torch.no_grad()
def logps_of(model, whole, start, user=None):
    """Log-probabilities over the vocabulary at each token of the response, `[T, V]`."""
    options = {} if user is None else {"user_rows": torch.tensor([user])}
    return model(input_ids=torch.tensor([whole]), **options).logits[0, start - 1 : -1].float().log_softmax(-1)


def test_steered_log_probabilities_equal_a_plain_loop(personal, tokenizer, pairs):
    guide = kit.PAD(personal, INDEX)
    some = pairs.select(range(5))
    found, rewards = policy.steered_logps(
        guide, tokenizer, some["prompt"], some["chosen"], some["user_id"], WEIGHTS, batch_size=2
    )
    for i, pair in enumerate(some):
        whole, start = ids(tokenizer, pair, pair["chosen"])
        with personal.disable_adapter():
            base = logps_of(personal, whole, start)
        own = logps_of(personal, whole, start, INDEX.rows([pair["user_id"]])[0])
        tokens = torch.tensor(whole[start:])[:, None]
        for column, w in enumerate(WEIGHTS):
            wanted = (base + w * (own - base)).log_softmax(-1).gather(-1, tokens).sum()
            assert found[i, column].item() == pytest.approx(wanted.item(), abs=2e-3)
        assert rewards[i].item() == pytest.approx((own - base).gather(-1, tokens).sum().item(), abs=2e-3)
    assert (found[:, 0] - found[:, 2]).abs().max() > 0.1  # users do move it


def test_the_released_form_lets_the_base_see_the_preference(make_tiny, tokenizer, pairs):
    model = make_tiny()
    guide = kit.PAD(model, form="released")
    words = ["Be brief."] * 2
    some = pairs.select(range(2))
    found, rewards = policy.steered_logps(guide, tokenizer, some["prompt"], some["chosen"], words, [0.0, 1.0])
    told = [[{"role": "system", "content": "Be brief."}, *prompt] for prompt in some["prompt"]]
    asked = [tokenize_completions(tokenizer, *pair) for pair in zip(told, some["chosen"], strict=True)]
    wanted = sequence_logps(model, tokenizer, asked)
    assert found[:, 0].tolist() == pytest.approx(wanted, abs=2e-3)
    assert rewards.tolist() == pytest.approx(wanted, abs=2e-3)  # no reference in it


def test_which_pairs_are_ranked_right_and_how_often(personal, tokenizer, pairs):
    guide = kit.PAD(personal, INDEX)
    some = pairs.select(range(6))
    ranks = policy.policy_ranks({"users": (guide, some["user_id"])}, tokenizer, some, [0.0, 1.0], batch_size=3)
    assert len(ranks) == 24
    chosen, reward_c = policy.steered_logps(guide, tokenizer, some["prompt"], some["chosen"], some["user_id"], [1.0])
    other, reward_r = policy.steered_logps(guide, tokenizer, some["prompt"], some["rejected"], some["user_id"], [1.0])
    at_one = ranks[ranks.weight == 1.0]
    assert at_one[at_one.of == policy.POLICY].value.tolist() == (chosen > other)[:, 0].float().tolist()
    assert at_one[at_one.of == policy.REWARD].value.tolist() == (reward_c > reward_r).float().tolist()


def test_rank_correlation_by_hand():
    wide = pd.DataFrame({"user_id": list("stuvwxyz"), "method": "g", "weight": 1.0})
    wide[policy.REWARD], wide[policy.POLICY] = np.arange(8) / 8, np.array([0, 2, 1, 3, 4, 5, 6, 7]) / 8
    table = wide.melt(["user_id", "method", "weight"], var_name="of")
    tau = policy.rank_correlation(table)
    assert tau.estimate == pytest.approx((27 - 1) / 28)  # 27 pairs in the same order, one not
    assert (tau.n, tau.clusters) == (8, 8)
    assert -1 <= tau.low <= tau.estimate <= tau.high <= 1
    same = table.assign(value=table.value.where(table.of != policy.POLICY, 1.0))
    assert np.isnan(policy.rank_correlation(same).estimate)
    assert "too few users" in str(policy.rank_correlation(table[table.user_id != "z"]))


def test_divergence_equals_a_plain_loop(personal, make_tiny, tokenizer, pairs):
    guide = kit.PAD(personal, INDEX)
    some = pairs.select(range(3))
    texts = ["Yes, very much.", "", "No"]
    found = policy.divergence(guide, tokenizer, some["prompt"], texts, some["user_id"], batch_size=2)
    assert np.isnan(found[1])
    for i in (0, 2):
        prompt = tokenizer.apply_chat_template(some[i]["prompt"], add_generation_prompt=True, return_dict=True)
        start = len(prompt["input_ids"])
        whole = prompt["input_ids"] + tokenizer(texts[i], add_special_tokens=False)["input_ids"]
        with personal.disable_adapter():
            base = logps_of(personal, whole, start)
        own = logps_of(personal, whole, start, INDEX.rows([some[i]["user_id"]])[0])
        assert found[i] == pytest.approx((own.exp() * (own - base)).sum(-1).mean().item(), abs=1e-3)
        assert found[i] > 0
    for one, who in ((kit.PAD(make_tiny(), form="released"), None), (guide, {"a": 0.5, "b": 0.5})):
        with pytest.raises(ValueError, match="expected PAD's paper form, one user or wish"):
            policy.divergence(one, tokenizer, some["prompt"][:1], texts[:1], [who])
