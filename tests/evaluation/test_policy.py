"""Steered models as policies: against loops that read one text at a time, straight from the formulas."""

import numpy as np
import pandas as pd
import pytest
import torch
from decoding.plain import reader

import prlhf_kit as kit
from prlhf_kit.evaluation import policy
from prlhf_kit.models.logprobs import sequence_logps
from prlhf_kit.models.tokenize import tokenize_completions

WEIGHTS = [0.0, 1.0, 2.5]
INDEX = kit.UserIndex(["a", "b", "c"])


def read(personal, tokenizer, pair, tokens):
    """The base's and the user's log-probabilities over the vocabulary before each of the tokens, `[T, V]` both."""
    user = INDEX.rows([pair["user_id"]])[0]
    for told in ({"adapter": False}, {"user": user}):
        logps = reader(personal, tokenizer, pair["prompt"], **told)
        yield torch.stack([logps(tokens[:t]) for t in range(len(tokens))])


def test_steered_log_probabilities_equal_a_plain_loop(personal, tokenizer, pairs):
    guide, some = kit.PAD(personal, INDEX), pairs.select(range(5))
    asked = tokenizer, some["prompt"], some["chosen"], some["user_id"]
    found, rewards = policy.steered_logps(guide, *asked, WEIGHTS, batch_size=2)
    for i, pair in enumerate(some):
        _, tokens = tokenize_completions(tokenizer, pair["prompt"], pair["chosen"])
        base, own = read(personal, tokenizer, pair, tokens)
        tokens = torch.tensor(tokens)[:, None]
        for column, w in enumerate(WEIGHTS):
            wanted = (base + w * (own - base)).log_softmax(-1).gather(-1, tokens).sum()
            assert found[i, column].item() == pytest.approx(wanted.item(), abs=2e-3)
        assert rewards[i].item() == pytest.approx((own - base).gather(-1, tokens).sum().item(), abs=2e-3)
    assert (found[:, 0] - found[:, 2]).abs().max() > 0.1  # users do move it
    ranks = policy.policy_ranks({"users": (guide, some["user_id"])}, tokenizer, some, WEIGHTS, batch_size=3)
    other, rejected = policy.steered_logps(guide, *asked[:2], some["rejected"], some["user_id"], WEIGHTS)
    for of, right in ((policy.POLICY, found[:, 1] > other[:, 1]), (policy.REWARD, rewards > rejected)):
        assert ranks[(ranks.weight == 1.0) & (ranks.of == of)].value.tolist() == right.float().tolist()


def test_the_released_form_lets_the_base_see_the_preference(make_tiny, tokenizer, pairs):
    model, some = make_tiny(), pairs.select(range(2))
    guide, words = kit.PAD(model, form="released"), ["Be brief."] * 2
    found, rewards = policy.steered_logps(guide, tokenizer, some["prompt"], some["chosen"], words, [0.0, 1.0])
    told = [[{"role": "system", "content": "Be brief."}, *prompt] for prompt in some["prompt"]]
    asked = [tokenize_completions(tokenizer, *pair) for pair in zip(told, some["chosen"], strict=True)]
    wanted = sequence_logps(model, tokenizer, asked)
    assert found[:, 0].tolist() == pytest.approx(wanted, abs=2e-3)
    assert rewards.tolist() == pytest.approx(wanted, abs=2e-3)  # no reference in it


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
    guide, some = kit.PAD(personal, INDEX), pairs.select(range(3))
    texts = ["Yes, very much.", "", "No"]
    found = policy.divergence(guide, tokenizer, some["prompt"], texts, some["user_id"], batch_size=2)
    assert np.isnan(found[1])
    for i in (0, 2):
        tokens = tokenizer(texts[i], add_special_tokens=False)["input_ids"]
        base, own = read(personal, tokenizer, some[i], tokens)
        assert found[i] == pytest.approx((own.exp() * (own - base)).sum(-1).mean().item(), abs=1e-3)
        assert found[i] > 0
    for one, who in ((kit.PAD(make_tiny(), form="released"), None), (guide, {"a": 0.5, "b": 0.5})):
        with pytest.raises(ValueError, match="expected PAD's paper form, one user or wish"):
            policy.divergence(one, tokenizer, some["prompt"][:1], texts[:1], [who])
