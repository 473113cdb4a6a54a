"""Controls: the same pairs without their users."""

from collections import Counter

import numpy as np

import prlhf_kit as kit
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.training.controls import EVERYONE, LABELS, Control, control_pairs


def test_controls_take_the_users_away(pairs):
    one, personalized = control_pairs("pooled", pairs)
    assert personalized
    assert set(one["user_id"]) == {EVERYONE}
    assert one["chosen"] == pairs["chosen"]
    names, again, other = (control_pairs("random_users", pairs, seed)[0]["user_id"][:] for seed in (1, 1, 2))
    assert Counter(names) == Counter(pairs["user_id"])
    assert names == again != other
    assert np.mean([a == b for a, b in zip(names, pairs["user_id"], strict=True)]) < 0.8


def test_a_user_may_be_called_as_the_pooled_control_calls_all(make_tiny, tokenizer, pairs):
    model, index = make_tiny(users=3, offsets=0.8), kit.UserIndex([EVERYONE, "a", "b"])
    rows = index.rows(pairs["user_id"], unknown="generic")
    own, all_as_one = (score_pairs(model, tokenizer, pairs, r).chosen_logp.tolist() for r in (rows, [1] * len(pairs)))
    found = {name: Control(LABELS[name], model, index).score(tokenizer, pairs) for name in ("random_users", "pooled")}
    assert found["random_users"].chosen_logp.tolist() == own != all_as_one == found["pooled"].chosen_logp.tolist()
