"""Controls: the same pairs without their users."""

from collections import Counter

import numpy as np

from prlhf_kit.training.controls import EVERYONE, control_pairs


def test_controls_take_the_users_away(pairs):
    one, personalized = control_pairs("pooled", pairs)
    assert personalized
    assert set(one["user_id"]) == {EVERYONE}
    assert one["chosen"] == pairs["chosen"]
    names, again, other = (control_pairs("random_users", pairs, seed)[0]["user_id"][:] for seed in (1, 1, 2))
    assert Counter(names) == Counter(pairs["user_id"])
    assert names == again != other
    assert np.mean([a == b for a, b in zip(names, pairs["user_id"], strict=True)]) < 0.8
