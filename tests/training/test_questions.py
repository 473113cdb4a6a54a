"""Which pair tells most about a person: against integration by hand."""

import numpy as np
import pytest
from scipy.special import entr, expit
from scipy.stats import norm

from prlhf_kit.training.heads import Heads
from prlhf_kit.training.questions import expected_information, most_informative

# people differ in the first two features, most in the first; the third is the same for all
USERS = {str(i): np.array(own) for i, own in enumerate([(2.0, 0.5), (-2.0, 0.5), (2.0, -0.5), (-2.0, -0.5)])}
HEADS = Heads("low_rank", np.ones(3), np.array([0.0, 0.0, 1.0]), np.eye(3)[:2], USERS, 1.0, 4)
NOTHING = np.zeros((0, 3))


def test_information_is_that_of_an_answer_before_it_is_known():
    pair = np.array([[0.7, 0.0, 0.4]])
    deviation = 0.7 * np.sqrt(np.linalg.inv(HEADS.prior()[1])[0, 0])
    odds = np.linspace(-30, 30, 20_001)
    density = norm.pdf(odds, 0.4, deviation)
    entropy = [entr(p) + entr(1 - p) for p in (np.trapezoid(expit(odds) * density, odds), expit(odds))]
    by_hand = entropy[0] - np.trapezoid(entropy[1] * density, odds)
    assert expected_information(HEADS, None, pair, NOTHING) == pytest.approx(by_hand, abs=1e-4)
    assert expected_information(HEADS, None, -pair, NOTHING) == pytest.approx(by_hand, abs=1e-4)


def test_what_was_asked_tells_less_and_what_all_agree_on_nothing():
    pairs = np.array([[1.0, 0, 0], [0, 0, 3]])
    before = expected_information(HEADS, None, pairs, NOTHING)
    after = expected_information(HEADS.adapt(pairs[:1], ["new"]), "new", pairs, pairs[:1])
    assert before[0] > after[0] > before[1] == pytest.approx(0)


def test_the_next_questions_are_about_something_else():
    pairs = np.array([[0, 0, 1], [1.1, 0, 0], [1.0, 0, 0], [0, 3.0, 0]])
    assert most_informative(HEADS, None, pairs, NOTHING, 2) == [1, 3]
    assert sorted(most_informative(HEADS, None, pairs, NOTHING, 9)) == [0, 1, 2, 3]


def test_only_low_rank_knows_how_people_differ():
    pooled = Heads("pooled", np.ones(3), np.ones(3), np.zeros((0, 3)), {"a": np.zeros(0)}, 1.0, 1)
    with pytest.raises(ValueError, match="expected 'low_rank'"):
        expected_information(pooled, None, NOTHING, NOTHING)
