"""Controls: the same pairs without their users."""

from collections import Counter

import numpy as np

import prlhf_kit as kit
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.training.controls import EVERYONE, LABELS, Control, pooled, random_users


def test_controls_take_the_users_away(pairs):
    one = pooled(pairs)
    assert set(one["user_id"]) == {"everyone"}
    assert one["chosen"] == pairs["chosen"]
    names = random_users(pairs, seed=1)["user_id"]
    assert names != list(pairs["user_id"])
    assert Counter(names) == Counter(pairs["user_id"])
    assert names == random_users(pairs, seed=1)["user_id"] != random_users(pairs, seed=2)["user_id"]
    assert np.mean([a == b for a, b in zip(names, pairs["user_id"], strict=True)]) < 0.8


def test_a_user_may_be_called_as_the_pooled_control_calls_all(make_tiny, tokenizer, pairs):
    model, index = make_tiny(users=3, offsets=0.8), kit.UserIndex([EVERYONE, "a", "b"])
    rows = index.rows(pairs["user_id"], unknown="generic")
    own, all_as_one = (score_pairs(model, tokenizer, pairs, r).chosen_logp.tolist() for r in (rows, [1] * len(pairs)))
    found = {name: Control(LABELS[name], model, index).score(tokenizer, pairs) for name in ("random_users", "pooled")}
    assert found["random_users"].chosen_logp.tolist() == own != all_as_one == found["pooled"].chosen_logp.tolist()
