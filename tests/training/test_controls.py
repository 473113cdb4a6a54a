"""Controls: the same pairs without their users."""

from collections import Counter

import numpy as np

from prlhf_kit.training.controls import pooled, random_users


def test_controls_take_the_users_away(pairs):
    one = pooled(pairs)
    assert set(one["user_id"]) == {"everyone"}
    assert one["chosen"] == pairs["chosen"]
    names = random_users(pairs, seed=1)["user_id"]
    assert names != list(pairs["user_id"])
    assert Counter(names) == Counter(pairs["user_id"])
    assert names == random_users(pairs, seed=1)["user_id"] != random_users(pairs, seed=2)["user_id"]
    assert np.mean([a == b for a, b in zip(names, pairs["user_id"], strict=True)]) < 0.8
