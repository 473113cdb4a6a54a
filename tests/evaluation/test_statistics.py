"""Do intervals cover at the stated rate, do tests have their size? And small cases by hand."""

import tracemalloc

import numpy as np
import pytest

from prlhf_kit.evaluation import statistics
from prlhf_kit.evaluation.statistics import Interval, bootstrap, crossed_interval, crossed_test, detectable, holm

REPETITIONS = 200


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1_000)
    monkeypatch.setattr(statistics, "PERMUTATIONS", 499)


@pytest.mark.parametrize(("users", "pairs"), [(4, 20), (40, 4)])
def test_clustered_intervals_cover_at_the_stated_rate(users, pairs):
    """Win rates of users who differ (Beta(4, 3)), 0-1 verdicts."""
    rng = np.random.default_rng(users)
    clusters = np.repeat(np.arange(users), pairs)
    covered = naive = 0
    for seed in range(REPETITIONS):
        verdicts = (rng.random(users * pairs) < rng.beta(4, 3, users)[clusters]).astype(float)
        i = crossed_interval(verdicts, clusters, seed=seed)
        covered += i.low <= 4 / 7 <= i.high
        naive += abs(verdicts.mean() - 4 / 7) <= 1.96 * verdicts.std() / len(verdicts) ** 0.5
    assert 0.91 <= covered / REPETITIONS <= 0.98
    assert covered > naive  # which knows of no users


def test_where_prompts_are_shared_intervals_cover_and_tests_have_their_size():
    rng = np.random.default_rng(3)
    user, prompt = (index.ravel() for index in np.indices((8, 8)))
    covered, rejected = np.zeros(2), np.zeros(2)  # by user and prompt, by user alone
    for _ in range(REPETITIONS):
        values = 0.5 * rng.normal(size=8)[user] + rng.normal(size=8)[prompt] + rng.normal(size=64)
        for place, clusters in enumerate([(user, prompt), (user,)]):
            i = crossed_interval(values, *clusters)
            covered[place] += i.low <= 0 <= i.high
            rejected[place] += crossed_test(values, *clusters) <= 0.05
    both, by_user = covered / REPETITIONS
    assert 0.91 <= both <= 0.99
    assert by_user < 0.92
    both, by_user = rejected / REPETITIONS
    assert both <= 0.08
    assert by_user > 0.15


def test_small_cases_by_hand():
    assert statistics.expanded(10**6) == pytest.approx((0.025, 0.975), abs=1e-5)
    # users a, b and prompts p, q, one value each: the draws are (a, b, or both) x (p, q, or both)
    assert crossed_interval([1, 0, 0, 0], list("aabb"), list("pqpq")) == (0.25, 0, 1, 4, 2)
    # residuals of users 1, -1, 0 and prompts 1, -1, 0 (sums), of cells themselves: 1.5 (2 + 2) / 81 - 9 / 8 * 2 / 81
    i = crossed_interval([1, 0, 0, 0, -1, 0, 0, 0, 0], [*"aaabbbccc"], [*"pqrpqrpqr"])
    assert i.high == pytest.approx(4.302653 * (1.5 * 4 / 81 - 9 / 8 * 2 / 81) ** 0.5, rel=1e-5)
    assert np.isnan(crossed_interval([1, 0], ["a", "b"], ["p", "p"])[1:3]).all()
    assert crossed_interval([1, 0], ["a", "b"], ["p", "q"]) == crossed_interval([1, 0], ["a", "b"])
    found = crossed_interval([1, 1, 1, 0, 0], ["a", "a", "a", "b", "b"])
    assert found == (0.6, 0.0, 1.0, 5, 2)
    assert str(found) == "0.600 [0.000, 1.000]"
    # few clusters: 1.5 +- 4.303 * 1 / 3^0.5, cut off at the values
    assert crossed_interval([1, 2, 3], list("abc"))[:3] == (2, 1, 3)
    assert crossed_interval([0.5, 1.5, 2.5, -8, 12], [*"abc", "c", "c"]).low > -8  # the third mean is 6.5 / 3
    assert np.isnan(crossed_interval([1, 0], ["a", "a"]).low)
    draws = iter([0.0, -1.0, 1.0])
    ends = bootstrap(lambda _: next(draws), range(9), resamples=2)[1:]
    assert ends == pytest.approx([-2.306 * 1.125**0.5, 2.306 * 1.125**0.5], rel=1e-3)
    assert np.isnan(bootstrap(lambda _: np.nan, range(9), resamples=2)).all()
    assert crossed_test([1.0, 1.0, 1.0], ["a", "b", "c"]) == 2 / 8
    assert crossed_test([1.0, 1.0], ["a", "a"]) == 1
    assert crossed_test([1.0] * 16, [*range(8)] * 2, [0] * 8 + [1] * 8) == 0.5  # two prompts: 2 of 4 permutations
    assert crossed_test([1.0] * 4, list("abcd"), list("pqrs")) == 2 / 16  # nothing shared: by user
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_of_few_users_nothing_is_said_that_leaves_the_scale():
    assert detectable([0.5, -0.5] * 50, range(100)) == pytest.approx((1.984 + 0.845) * 0.5 / 99**0.5, rel=1e-2)
    assert np.isnan(detectable([1, -1, 0.5], range(3)))
    assert np.isnan(bootstrap(np.sum, range(7))[1:]).all()
    assert str(Interval(0.5, np.nan, np.nan, 3, 3)) == "0.500 (too few users for intervals)"
    assert str(Interval(*[np.nan] * 3, 3, 3)).startswith("- (too few users")


def test_one_long_text_does_not_take_its_room_for_all():
    texts = ["x" * 1_000_000, *map(str, range(999))]  # 4 GB in an array of text
    tracemalloc.start()
    crossed_interval(range(1000), [i % 5 for i in range(1000)], texts)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_many_clusters_have_the_bootstraps_interval(monkeypatch):
    values, clusters = np.random.default_rng(0).random(3000) < 0.6, np.arange(3000) // 2
    boot = crossed_interval(values, clusters)
    monkeypatch.setattr(statistics, "MANY_CLUSTERS", 10)
    assert crossed_interval(values, clusters)[1:3] == pytest.approx(boot[1:3], abs=0.003)
