"""What follows from judges' verdicts, against numbers computed by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

from prlhf_kit.evaluation import win_rate
from prlhf_kit.evaluation.statistics import holm


def table(rows, judge="j"):
    """Judgements of x against y: (user, prompt, first, second)."""
    found = pd.DataFrame(rows, columns=["user_id", "prompt", "first", "second"])
    found["preference"] = [None if None in row else row[2] if row[2] == row[3] else "tie" for row in rows]
    return found.assign(judge=judge, system_a="x", system_b="y", answer_a="one two", answer_b="one")


def same(letters, judge="j", users="abcd"):
    """Consistent verdicts, one a prompt, in turn for these users."""
    return table([(users[i % len(users)], f"p{i}", v, v) for i, v in enumerate(letters)], judge)


def test_win_rates_by_hand():
    # user a: win, win, tie; user b: loss; user c: orders that disagree; user d: unreadable once
    rows = [("a", "p", "a", "a"), ("a", "q", "a", "a"), ("a", "r", "tie", "tie"), ("b", "p", "b", "b")]
    rows += [("c", "p", "a", "b"), ("d", "p", "a", None)]
    found = win_rate.win_rates(table(rows)).iloc[0]
    assert (found.win_rate, found.n, found.unread, found.users) == (3 / 5, 5, 1, 3)
    assert (found.win, found.tie, found.loss) == (2 / 5, 2 / 5, 1 / 5)
    # signs of (1.0, -0.5, 0.0), the users' sums less one half each: |sum| >= 0.5 in all eight
    assert found.p == 1
    assert (found.prompts, found.p_holm) == (3, 1)
    users = win_rate.user_win_rates(table(rows)).iloc[0]
    assert (users.users_won, users.users_tied, users.users_lost, users.n) == (1, 1, 1, 3)
    assert users.user_win_rate == 0.5
    bias = win_rate.position_bias(table(rows))
    assert bias.measure.tolist() == [win_rate.FIRST, win_rate.DISAGREE]
    assert bias[["value", "n", "unread"]].to_numpy().tolist() == [[1 / 5, 5, 1]] * 2


def test_one_systems_measures_side_by_side():
    judged = pd.concat([same("aaab"), same("bbbb").assign(system_a="z"), same("bb", judge="k")])
    tables = win_rate.by_measure(judged, "x")
    assert all(set(table.system_a) == {"x"} for table in tables.values())
    found = win_rate.summary(tables).set_index("judge")
    assert found.win_rate.to_dict() == {"j": 0.75, "k": 0.0}
    assert found.users_won.to_dict() == {"j": 3, "k": 0}
    assert found.lc_win_rate.notna().all()


def test_verdicts_that_can_not_be_read_win_nothing():
    silent = same([None] * 12)
    rates = win_rate.win_rates(silent).iloc[0]
    assert (rates.n, rates.unread) == (0, 12)
    assert np.isnan(rates.win_rate)
    assert np.isnan(rates.p_holm)
    assert win_rate.position_bias(silent).unread[0] == 12
    for measure in (win_rate.user_win_rates, win_rate.bradley_terry, win_rate.length_controlled):
        assert measure(silent).empty


def test_bradley_terry_by_hand():
    votes = same("aaab" * 20, users="abcdefgh")
    # x beats y 3 to 1 and y beats z 3 to 1: x beats z 9 to 1, though they never met
    other = votes.assign(system_a="y", system_b="z")
    found = win_rate.bradley_terry(pd.concat([votes, other]), resamples=20).set_index("system")
    assert found.rating.x - found.rating.y == pytest.approx(400 * np.log10(3), abs=1)
    assert found.rating.x - found.rating.z == pytest.approx(400 * np.log10(9), abs=1)
    assert found.rating.mean() == pytest.approx(1000)
    assert (found.low < found.rating).all()
    assert list(found.index) == ["x", "y", "z"]
    assert found.n.to_dict() == {"x": 80, "y": 160, "z": 80}
    # never lost: the ridge's number. s and -s maximise 4 log sigmoid(2 s) - 2 s^2 / (2 * 100)
    s = minimize_scalar(lambda s: 4 * np.log1p(np.exp(-2 * s)) + s**2 / 100, bounds=(0, 20), method="bounded").x
    found = win_rate.bradley_terry(same("aaaa"), resamples=2).set_index("system").rating
    assert found.x - found.y == pytest.approx(400 / np.log(10) * 2 * s, rel=1e-3)


def test_systems_without_a_comparison_are_rated_in_groups_of_their_own():
    apart = same("aaab").assign(system_a="v", system_b="w")
    found = win_rate.bradley_terry(pd.concat([same("aaab"), apart]), resamples=2)
    assert found[["group", "system"]].to_numpy().tolist() == [[1, "v"], [1, "w"], [2, "x"], [2, "y"]]
    assert found.groupby("group").rating.mean().tolist() == pytest.approx([1000, 1000])


def test_length_control_takes_length_out_and_leaves_the_rest():
    rng = np.random.default_rng(0)
    n = 600
    gap = rng.normal(15, 30, n).round()  # x is longer on average, and the judge likes length only
    p = 1 / (1 + np.exp(-2 * np.tanh(gap / gap.std())))
    long = same(np.where(rng.random(n) < p, "a", "b"), users="abcdefghij")
    long["answer_a"] = ["w" * int(100 + g) for g in gap.clip(-90)]
    long["answer_b"] = "w" * 100
    found = win_rate.length_controlled(long, resamples=20).iloc[0]
    assert found.win_rate > 0.6
    assert found.lc_win_rate == pytest.approx(0.5, abs=0.06)
    assert found.low < 0.5 < found.high
    assert found.length_effect == pytest.approx(2, abs=0.4)
    equal = same("aaab").assign(answer_a="same", answer_b="same")
    found = win_rate.length_controlled(equal, resamples=5).iloc[0]
    assert found.lc_win_rate == pytest.approx(found.win_rate) == pytest.approx(0.75)


def test_agreement_by_hand():
    one, other = same("aabb", "one"), same("abbb", "other")
    found = win_rate.judge_agreement(pd.concat([one, other])).set_index("measure")
    # kappa: 3/4 equal, by chance 1/2 * 1/4 + 1/2 * 3/4 = 1/2
    assert found.value["Cohen's kappa"] == pytest.approx(0.5)
    # alpha: 3 a and 5 b among 8; 1 - (2/8) / (2 * 3 * 5 / (8 * 7))
    assert found.value["Krippendorff's alpha"] == pytest.approx(1 - 0.25 / (30 / 56))
    assert found.same.tolist() == [0.75, 0.75]
    assert found.n.tolist() == [4, 4]
    assert found.low.isna().all()  # of four users
    third = same("aab", "third")  # one pair less: alpha takes what is there
    assert win_rate.judge_agreement(pd.concat([one, other, third])).n.tolist() == [4, 3, 3, 4]
    assert win_rate.judge_agreement(one).empty


def test_win_rates_by_community_by_hand():
    said = {"a": "a" * 10, "b": ["a", "b", "tie", "tie", None], "c": "b" * 6}
    rows = [
        (who, f"{who if who == 'c' else ''}{i}", v, v) for who, verdicts in said.items() for i, v in enumerate(verdicts)
    ]
    found = win_rate.win_rates_by_community(table(rows)).set_index("community")
    assert found.win_rate.to_dict() == {"a": 1, "b": 0.5, "c": 0, "all": 12 / 20}
    assert found[["n", "unread", "prompts"]].to_numpy().tolist() == [[10, 0, 10], [4, 1, 4], [6, 0, 6], [20, 1, 16]]
    # every prompt's sign swapped: exact; corrected over the communities of one comparison
    assert found.p[["a", "b", "c"]].tolist() == pytest.approx([2 / 2**10, 1, 2 / 2**6])
    assert found.p_holm[["a", "b", "c"]].tolist() == pytest.approx(holm([2 / 2**10, 1, 2 / 2**6]))
    assert found.p_holm["all"] == found.p["all"]
    with pytest.raises(ValueError, match="called 'all'"):
        win_rate.win_rates_by_community(same("ab", users=["all", "b"]))
