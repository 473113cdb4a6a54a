"""Do intervals cover at the stated rate (printed), do tests have their size, are scores summed up as by hand?"""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from prlhf_kit.data.schema import record
from prlhf_kit.evaluation import statistics
from prlhf_kit.evaluation.accuracy import ranked_on_sets, spread
from prlhf_kit.evaluation.intervals import ITEM, against, differences, intervals, long_table, paired_differences
from prlhf_kit.evaluation.statistics import (
    around,
    cluster_bootstrap,
    crossed_interval,
    crossed_test,
    detectable,
    drawn_weights,
    expanded,
    holm,
    permutation_test,
)

REPETITIONS = 2_000


@pytest.fixture
def told(capsys):
    """Print in spite of pytest's capture."""

    def tell(text):
        with capsys.disabled():
            print(f"\n{text}", end="")

    return tell


@pytest.mark.parametrize(("users", "pairs"), [(4, 20), (8, 20), (20, 10), (40, 4)])
def test_clustered_intervals_cover_at_the_stated_rate(told, users, pairs):
    """Win rates of users who differ (Beta(4, 3)), 0-1 verdicts; the plain percentiles are told beside it."""
    rng = np.random.default_rng(users)
    clusters = np.repeat(np.arange(users), pairs)
    covered = plain = naive = 0
    for seed in range(REPETITIONS):
        verdicts = (rng.random(users * pairs) < rng.beta(4, 3, users)[clusters]).astype(float)
        i = cluster_bootstrap(verdicts, clusters, resamples=1_000, seed=seed)
        covered += i.low <= 4 / 7 <= i.high
        means = verdicts.reshape(users, pairs).mean(1)
        drawn = np.random.default_rng(seed).multinomial(users, np.full(users, 1 / users), 1_000) @ means / users
        low, high = np.quantile(drawn, [0.025, 0.975])
        plain += low <= 4 / 7 <= high
        error = 1.96 * verdicts.std() / len(verdicts) ** 0.5
        naive += abs(verdicts.mean() - 4 / 7) <= error
    rate = covered / REPETITIONS
    told(
        f"{users} users x {pairs} pairs, {REPETITIONS} repetitions: 95% intervals cover in {rate:.3f}; plain "
        f"percentiles {plain / REPETITIONS:.3f}; without regard to users {naive / REPETITIONS:.3f}"
    )
    assert 0.935 <= rate <= 0.97
    assert naive / REPETITIONS < rate


@pytest.mark.parametrize(("users", "prompts"), [(8, 8), (12, 12)])
def test_crossed_intervals_cover_where_prompts_are_shared(told, users, prompts):
    rng = np.random.default_rng(3)
    user, prompt = (index.ravel() for index in np.indices((users, prompts)))
    both = by_user = 0
    for seed in range(REPETITIONS):
        values = rng.normal(size=users)[user] + rng.normal(size=prompts)[prompt] + rng.normal(size=users * prompts)
        i = crossed_interval(values, user, prompt)
        both += i.low <= 0 <= i.high
        j = cluster_bootstrap(values, user, resamples=500, seed=seed)
        by_user += j.low <= 0 <= j.high
    told(
        f"{users} users x {prompts} shared prompts, {REPETITIONS} repetitions: intervals clustered both ways cover in "
        f"{both / REPETITIONS:.3f}, those by user alone in {by_user / REPETITIONS:.3f}"
    )
    assert 0.94 <= both / REPETITIONS <= 0.985
    assert by_user / REPETITIONS < 0.9


def test_one_prompt_that_two_users_share_changes_little():
    rng = np.random.default_rng(0)
    values, users = rng.normal(size=300), range(300)
    apart = crossed_interval(values, users, range(300))
    together = crossed_interval(values, users, [0, *range(299)])
    assert together.high - together.low == pytest.approx(apart.high - apart.low, rel=0.1)
    assert drawn_weights(users, [0, *range(299)], 1)[1] == 300
    assert drawn_weights([1, 1, 2, 2], [1, 2, 1, 2], 1)[1] == 2


def test_the_permutation_test_has_its_size_and_power(told):
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(8), 5)
    null = other = 0
    for _ in range(REPETITIONS):
        values = rng.normal(size=8)[clusters] * np.linspace(0.5, 2, 8)[clusters] + rng.normal(size=40)
        null += permutation_test(values, clusters) <= 0.05
        other += permutation_test(values + 2, clusters) <= 0.05
    told(
        f"8 users x 5 pairs, {REPETITIONS} repetitions: p <= 0.05 in {null / REPETITIONS:.3f} under the null, in "
        f"{other / REPETITIONS:.3f} where the difference is 2"
    )
    assert 0.03 <= null / REPETITIONS <= 0.06  # 12 of 256 permutations: 0.047
    assert other / REPETITIONS > 0.5


def test_where_prompts_are_shared_the_crossed_test_has_its_size(told):
    rng = np.random.default_rng(6)
    user, prompt = (index.ravel() for index in np.indices((8, 8)))
    repetitions, crossed, by_user = 400, 0, 0
    for _ in range(repetitions):
        values = 0.5 * rng.normal(size=8)[user] + rng.normal(size=8)[prompt] + rng.normal(size=64)
        crossed += crossed_test(values, user, prompt, resamples=499) <= 0.05
        by_user += permutation_test(values, user, resamples=499) <= 0.05
    told(
        f"8 users x 8 shared prompts, {repetitions} repetitions: p <= 0.05 under the null in "
        f"{crossed / repetitions:.3f}, by users alone in {by_user / repetitions:.3f}"
    )
    assert crossed / repetitions <= 0.06
    assert by_user / repetitions > 0.15
    assert crossed_test([1.0] * 16, [*range(8)] * 2, [0] * 8 + [1] * 8) == 0.5  # two prompts: 2 of 4 permutations
    assert crossed_test([1.0] * 4, list("abcd"), list("pqrs")) == 2 / 16  # nothing shared: by user


def test_the_detectable_difference_is_found_with_the_stated_power(told):
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(30), 4)

    def draw(shift=0.0):
        return rng.normal(size=30)[clusters] + rng.normal(size=120) + shift

    least = np.mean([detectable(draw(), clusters) for _ in range(200)])
    found = np.mean([permutation_test(draw(least), clusters, resamples=499) <= 0.05 for _ in range(500)])
    told(f"30 users: a true difference of {least:.2f}, said to be detectable, is found in {found:.3f} of 500")
    assert 0.73 <= found <= 0.87
    user, prompt = (index.ravel() for index in np.indices((8, 8)))

    def crossed(shift=0.0):
        return 0.3 * rng.normal(size=8)[user] + rng.normal(size=8)[prompt] + rng.normal(size=64) + shift

    least = np.mean([detectable(crossed(), user, prompt) for _ in range(200)])
    found = np.mean([crossed_test(crossed(least), user, prompt, resamples=499) <= 0.05 for _ in range(300)])
    told(f"8 users x 8 shared prompts: a true difference of {least:.2f} is found in {found:.3f} of 300")
    assert 0.65 <= found <= 0.87
    assert np.isnan(detectable([1, 1], ["a", "b"]))
    assert np.isnan(detectable([1, 2], ["a", "a"]))


def test_small_cases_by_hand():
    assert expanded(10**6) == pytest.approx((0.025, 0.975), abs=1e-5)
    # users a, b and prompts p, q, one value each: the draws are (a, b, or both) x (p, q, or both)
    i = crossed_interval([1, 0, 0, 0], list("aabb"), list("pqpq"))
    assert (i.estimate, i.low, i.high, i.n, i.clusters) == (0.25, 0, 1, 4, 2)
    # residuals of users 1, -1, 0 and prompts 1, -1, 0 (sums), of cells themselves: 1.5 (2 + 2) / 81 - 9 / 8 * 2 / 81
    values = [1, 0, 0, 0, -1, 0, 0, 0, 0]
    i = crossed_interval(values, [*"aaabbbccc"], [*"pqrpqrpqr"])
    error = (1.5 * 4 / 81 - 9 / 8 * 2 / 81) ** 0.5
    assert i.high == pytest.approx(min(4.302653 * error, 1), rel=1e-5)
    one = crossed_interval([1, 0], ["a", "b"], ["p", "p"])
    assert np.isnan([one.low, one.high]).all()
    assert crossed_interval([1, 0], ["a", "b"], ["p", "q"]) == cluster_bootstrap([1, 0], ["a", "b"])
    # few clusters: 1.5 +- 4.303 * 1 / 3^0.5, cut off at the values
    assert cluster_bootstrap([1, 2, 3], list("abc"))[:3] == (2, 1, 3)
    wide = cluster_bootstrap([0.5, 1.5, 2.5, -8, 12], [*"abc", "c", "c"])  # the third mean is 6.5 / 3
    assert wide.low > -8
    assert list(around(0.0, [-1.0, 1.0], 2)) == pytest.approx([-12.706 * 2**0.5, 12.706 * 2**0.5], rel=1e-3)
    assert np.isnan(around(0.0, [np.nan], 5)).all()
    assert np.isnan(cluster_bootstrap([1, 0], ["a", "a"]).low)
    assert permutation_test([1.0, 1.0, 1.0], ["a", "b", "c"]) == 2 / 8
    assert permutation_test([1.0, 1.0], ["a", "a"]) == 1
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    with pytest.raises(ValueError, match="same length"):
        permutation_test([1, 2], ["a"])


@pytest.fixture
def scores():
    """Users a (3 of 4 right), b (1 of 2), c (0 of 2) under `m`; always right under `o`."""
    right = {"a": [1, 1, 1, 0], "b": [1, 0], "c": [0, 0]}
    users = [user for user, values in right.items() for _ in values]
    rows = [
        record(f"{i}", user, f"{i % 2}", "x", "y", group="h" if user == "c" else "g") for i, user in enumerate(users)
    ]
    values = {"m": [value for values in right.values() for value in values], "o": [1.0] * 8}
    return long_table(Dataset.from_list(rows), values, split="test_seen")


def test_means_and_spread_by_hand(scores):
    pooled = intervals(scores, cluster="user_id").set_index("method")
    assert pooled.value.to_dict() == {"m": 0.5, "o": 1.0}
    assert pooled.n.tolist() == [8, 8]
    assert pooled.clusters.tolist() == [3, 3]
    groups = intervals(scores[scores.method == "m"], by=["group"], cluster="user_id").set_index("group")
    assert groups.value.to_dict() == {"g": 4 / 6, "h": 0}
    found = spread(scores)
    mine = found[found.method == "m"].set_index("of")
    assert mine.value.to_dict() == {
        "worst user": 0,
        "10th percentile": pytest.approx(0.1),
        "median user": 0.5,
        "best user": 0.75,
    }
    assert mine.user_id["worst user"] == "c"
    assert mine.user_id["best user"] == "a"
    assert (mine.low.dropna() <= mine.value[mine.low.notna()]).all()
    assert mine.n.to_dict() == {"worst user": 2, "best user": 4, "10th percentile": 8, "median user": 8}
    both = intervals(scores).set_index("method")
    assert both.value.to_dict() == {"m": 0.5, "o": 1.0}
    assert both.clusters.tolist() == [2, 2]


def test_percentiles_of_six_users_have_an_interval():
    table = pd.DataFrame({"user_id": list("abcdef"), "prompt": list("pqrstu"), "value": [0, 1, 0, 1, 1, 1.0]})
    found = spread(table.assign(split="s", method="m")).set_index("of")
    assert found.clusters["median user"] == 6
    assert 0 == found.low["median user"] < found.high["median user"] == 1
    assert np.isnan(found.low["worst user"])  # of one prompt


def test_paired_differences_by_hand(scores):
    found = differences(scores, against("o", scores.method), ["split"]).iloc[0]
    assert (found.one, found.other, found.difference) == ("o", "m", 0.5)
    # the users' sums 1, 1, 2: only the two permutations with equal signs are as far from 0; but of the prompts, which
    # all users share, two of four are
    assert (found.p, found.p_holm, found.n, found.users) == (2 / 4, 2 / 4, 8, 3)
    assert differences(scores.assign(prompt=scores.item), [("o", "m")], ["split"]).p[0] == 2 / 8
    gaps = paired_differences(scores[scores.method == "o"], scores[scores.method == "m"], on=ITEM)
    gains = intervals(gaps, by=["user_id", "group"], cluster="prompt")
    assert gains.user_id.tolist() == ["a", "b", "c"]
    assert gains.value.tolist() == [0.25, 0.5, 1]
    assert gains.group.tolist() == ["g", "g", "h"]
    assert differences(scores, against("nobody", scores.method), ["split"]).empty


def test_tax_by_hand():
    pairs = Dataset.from_list([record(str(i), "u", prompt, "x", "y") for i, prompt in enumerate("ppqr")])
    models = {"untrained": lambda _: np.array([1, 1, 0, 1]), "mine": lambda _: np.array([1, 0, 0, 0.5])}
    ranked = ranked_on_sets(models, {"helpful": pairs})
    assert intervals(ranked, by=["set", "method"], cluster="prompt").value.tolist() == [0.75, 0.375]
    found = differences(ranked, [("mine", "untrained")], ["set"], "prompt", family=[]).iloc[0]
    assert (found["set"], found.one, found.difference) == ("helpful", "mine", -0.375)
    assert (found.n, found.clusters) == (4, 3)
    assert found.low <= found.difference <= found.high
    assert found.p == found.p_holm == 0.5  # sums of the prompts -1, 0, -0.5: |sum| >= 1.5 in 4 of 8
    with pytest.raises(ValueError, match="the general set 'none' has no pair left"):
        ranked_on_sets(models, {"none": pairs.select([])})


def test_many_clusters_have_the_bootstraps_interval(monkeypatch):
    rng = np.random.default_rng(0)
    values, clusters = rng.random(3000) < 0.6, np.arange(3000) // 2
    boot = statistics.cluster_bootstrap(values, clusters)
    monkeypatch.setattr(statistics, "MANY_CLUSTERS", 10)
    normal = statistics.cluster_bootstrap(values, clusters)
    assert normal.low == pytest.approx(boot.low, abs=0.003)
    assert normal.high == pytest.approx(boot.high, abs=0.003)
