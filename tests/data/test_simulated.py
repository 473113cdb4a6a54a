import numpy as np
import pytest
from raw import refused, sizes

import prlhf_kit as kit
from prlhf_kit.data import simulated
from prlhf_kit.data.registry import Tally


def test_simulated_is_seeded_disjoint_and_true():
    few = {"pairs_per_user": 5, "test_pairs_per_user": 4, "adapt_pairs_per_user": 2}
    data, report = kit.data.load_with_report("simulated", **few)
    assert sizes(data) == [40, 32, 16, 8]
    assert report.table.empty
    assert len(set(data["test_unseen"]["user_id"])) == 4
    again = kit.data.load("simulated", **few)
    other = kit.data.load("simulated", **few, seed=1)
    assert kit.data.fingerprint(data) == kit.data.fingerprint(again) != kit.data.fingerprint(other)
    people = simulated.population()
    train = data["train"]
    chosen, rejected = ([m[0]["content"] for m in train[c]] for c in ("chosen", "rejected"))
    p = people.preference(train["user_id"], chosen, rejected)
    assert p == pytest.approx(train["p_chosen"])
    assert simulated.oracle_accuracy([0.9, 0.2, 0.5]) == pytest.approx((0.9 + 0.8 + 0.5) / 3)


def test_bradley_terry_draws_have_the_stated_rate():
    """Mean p_chosen of the drawn preferences is E[p^2 + (1-p)^2], within 5 standard errors."""
    sizes = {"pairs_per_user": 60, "test_pairs_per_user": 1, "adapt_pairs_per_user": 1}
    # before the checks, which drop what a user says twice or contradicts
    rows = [row for split, row in simulated.read(Tally(), **sizes) if split == "train"]
    p = np.array([row["p_chosen"] for row in rows])
    expected = p**2 + (1 - p) ** 2
    assert p.mean() == pytest.approx(expected.mean(), abs=5 * p.std() / np.sqrt(len(p)))


@pytest.mark.parametrize("options", [{"users_per_type": 1}, {"temperature": 0.0}])
def test_options_that_make_no_users(options):
    refused("expected", "simulated", **options)


def test_a_split_may_be_left_out():
    data = kit.data.load("simulated", pairs_per_user=2, test_pairs_per_user=0, adapt_pairs_per_user=0)
    assert sizes(data) == [16, 0, 0, 0]
