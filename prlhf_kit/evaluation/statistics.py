"""The interval and the test of one mean whose values come from several users: pairs of one user are not independent,
users are. `intervals.py` applies them to every group of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.sandwich_covariance import cov_cluster, cov_cluster_2groups
from tqdm.auto import tqdm

FEW, MANY_CLUSTERS = 6, 2000
FEW_USERS = 8  # below it t quantiles times a bootstrap's spread leave every scale, so there is no such interval


class Interval(NamedTuple):
    """An estimate, its 95% interval (NaN where one cluster says nothing), and the values and clusters behind it."""

    estimate: float
    low: float
    high: float
    n: int
    clusters: int

    def __str__(self) -> str:
        if self.low != self.low:
            return f"{self.estimate:.3f} (too few users for intervals)".replace("nan", "-")
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def cluster_bootstrap(values: ArrayLike, clusters: Iterable[Any], resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of `values` `[n]` and its 95% interval from resampling whole clusters (Cameron et al. 2008), by `expanded`
    percentiles. Of fewer than `FEW` clusters, whose resamples can't leave the range of their means, a t interval, cut
    off at the least and the greatest value; above `MANY_CLUSTERS` the same, which bootstrap intervals approach.

    >>> cluster_bootstrap([1, 1, 0, 0], ["a", "a", "b", "b"]).estimate
    0.5
    """
    values, codes = _numbers(values), _codes(clusters)
    sums, sizes = np.bincount(codes, weights=values), np.bincount(codes)  # [k] both
    k = len(sums)
    if not FEW <= k <= MANY_CLUSTERS:
        return _t_interval(values, [codes])
    draws = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), resamples)  # [resamples, k]
    low, high = np.quantile(draws @ sums / (draws @ sizes), expanded(k))
    return Interval(float(values.mean()), float(low), float(high), len(values), k)


def crossed_interval(
    values: ArrayLike, users: Iterable[Any], prompts: Iterable[Any] | None = None, *, seed: int = 0
) -> Interval:
    """Mean of `values` `[n]` and its 95% interval where users answer the same prompts: what other users *and* other
    prompts would give. t times the standard error clustered both ways (Cameron, Gelbach & Miller 2011), cut off at the
    least and the greatest value; `clusters` is the smaller number, from one of either NaN. Where every prompt is one
    user's own it is `cluster_bootstrap` by user."""
    values, codes = _numbers(values), _clusters(users, prompts)
    if len(codes) == 1:
        return cluster_bootstrap(values, users, seed=seed)
    return _t_interval(values, codes)


def _t_interval(values: np.ndarray, codes: Sequence[np.ndarray]) -> Interval:
    (error, k), mean = _error(values, codes), float(values.mean())
    low, high = np.clip(mean + np.array([-1, 1]) * _t(k) * error, values.min(), values.max())
    return Interval(mean, float(low), float(high), len(values), k)


def expanded(clusters: int) -> tuple[float, float]:
    """Quantiles of a bootstrap distribution over so many clusters that give a 95% interval: Hesterberg 2015, arXiv
    1411.5279, Section 5.3, Phi(-sqrt(n / (n - 1)) t). Wider than the plain (0.025, 0.975).

    >>> [round(q, 4) for q in expanded(8)]
    [0.0057, 0.9943]
    """
    tail = float(stats.norm.cdf(-np.sqrt(clusters / (clusters - 1)) * _t(clusters)))
    return tail, 1 - tail


def permutation_test(differences: ArrayLike, clusters: Iterable[Any], resamples: int = 9_999, seed: int = 0) -> float:
    """Two-sided p-value of "two methods are equal" from paired `differences` `[n]`: the signs of whole clusters are
    swapped (scipy's `permutation_test`; exact with up to 13 clusters). With k clusters it can't be below 2 / 2**k.

    >>> permutation_test([1, 1, 1, 1], ["a", "b", "c", "d"])
    0.125
    """
    sums = np.bincount(_codes(clusters), weights=_numbers(differences))
    if len(sums) == 1:
        return 1.0  # two permutations, both as far from 0
    found = stats.permutation_test(
        (sums, np.zeros(len(sums))),
        lambda a, b, axis: (a - b).sum(axis),
        permutation_type="samples",
        n_resamples=resamples,
        vectorized=True,
        batch=max(1, 5_000_000 // len(sums)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def crossed_test(
    differences: ArrayLike,
    users: Iterable[Any],
    prompts: Iterable[Any] | None = None,
    *,
    resamples: int = 9_999,
    seed: int = 0,
) -> float:
    """Two-sided p-value of "the mean difference is 0" where users answer the same prompts, for which swapping the signs
    of users alone rejects too often. The greatest of three: `permutation_test` by user, the same by prompt, and the
    t-test that `crossed_interval` inverts. Where every prompt is one user's own, the first alone.
    """
    values, codes = _numbers(differences), _clusters(users, prompts)
    found = [permutation_test(values, users, resamples, seed)]
    if prompts is not None and len(codes) == 2:
        found.append(permutation_test(values, prompts, resamples, seed))
        error, k = _error(values, codes)
        found.append(float(2 * stats.t.sf(abs(values.mean()) / error, k - 1)) if k > 1 and error else 0.0)
    return max(found)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for many comparisons (Holm 1979, by statsmodels): each may be read against 0.05 as it is."""
    if len(p_values) < 2:  # statsmodels collects garbage at each call, which takes up to half a second
        return list(p_values)
    return multipletests(p_values, method="holm")[1].tolist()


def detectable(differences: ArrayLike, users: Iterable[Any], prompts: Iterable[Any] | None = None) -> float:
    """The least true difference that so many users (and prompts, where they are shared) would show with probability 0.8
    in a two-sided t-test at 0.05 (statsmodels' `TTestPower`). NaN where they don't differ, and for fewer than
    `FEW_USERS`.

    >>> round(detectable([0.5, -0.5] * 50, range(100)), 3)
    0.142
    """
    error, k = _error(_numbers(differences), _clusters(users, prompts))
    if k < FEW_USERS or error < 1e-12:
        return float("nan")
    effect = TTestPower().solve_power(nobs=k, alpha=0.05, power=0.8, alternative="two-sided")
    return float(effect * k**0.5 * error)


def _error(values: np.ndarray, codes: Sequence[np.ndarray]) -> tuple[float, int]:
    """Standard error of the mean clustered by one or both of `codes` (then at least the greater of the two), and the
    number of clusters that its t distribution goes by. NaN from one cluster."""
    k = min(int(code.max()) + 1 for code in codes)
    if k == 1:
        return np.nan, k
    fit = OLS(values, np.ones(len(values))).fit()
    variances = [cov_cluster(fit, codes[0])] if len(codes) == 1 else cov_cluster_2groups(fit, *codes)
    return max(float(v.item()) for v in variances) ** 0.5, k


def bootstrap(
    statistic: Callable[[np.ndarray], ArrayLike],
    users: Iterable[Any],
    prompts: Iterable[Any] | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Any `statistic` of the rows' weights `[n]`, and its 95% interval: t times the standard deviation of its draws,
    with the sample's variance in place of the population's. Bounds are NaN of fewer than `FEW_USERS` clusters.

    Users are drawn anew, and prompts, too, where they were answered for 1.5 users or more on average (the pigeonhole
    bootstrap, Owen 2007, arXiv 0712.1111).
    """
    codes = [_codes(users)]
    if prompts is not None:
        asked = _codes(prompts)
        if len(np.unique(np.column_stack([codes[0], asked]), axis=0)) >= 1.5 * (asked.max() + 1):
            codes.append(asked)
    sizes = [int(code.max()) + 1 for code in codes]
    k, estimate = min(sizes), np.asarray(statistic(np.ones(len(codes[0]))), float)[()]
    if k < FEW_USERS:
        return estimate, estimate * np.nan, estimate * np.nan
    rng, draws = np.random.default_rng(seed), []
    for _ in tqdm(range(resamples), disable=None, leave=False):
        parts = [rng.multinomial(size, np.full(size, 1 / size))[code] for size, code in zip(sizes, codes, strict=True)]
        weights = np.prod(parts, axis=0)
        if weights.any():  # where not every user has every prompt, a draw may hold nothing
            draws.append(np.asarray(statistic(weights.astype(float)), float))
    spread = np.nanstd(draws, axis=0) if not np.isnan(draws).all() else np.nan
    width = _t(k) * np.sqrt(k / (k - 1)) * spread
    return estimate, estimate - width, estimate + width


def _t(clusters: int) -> float:
    return float(stats.t.ppf(0.975, clusters - 1))


def _codes(names: Iterable[Any]) -> np.ndarray:
    """Numbers `[n]` of the names, from 0 in their order as text."""
    texts = [str(name) for name in names]
    code = {text: i for i, text in enumerate(sorted(set(texts)))}  # in an array all texts take the longest one's room
    return np.array([code[text] for text in texts])


def _clusters(users: Iterable[Any], prompts: Iterable[Any] | None) -> list[np.ndarray]:
    """Codes `[n]` of the users, and of the prompts where some of them are shared."""
    codes = [_codes(users)] if prompts is None else [_codes(users), _codes(prompts)]
    shared = len(codes) == 2 and len(np.unique(np.column_stack(codes), axis=0)) > codes[1].max() + 1
    return codes if shared else codes[:1]


def _numbers(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    assert len(values), "expected at least one value"
    assert not np.isnan(values).any(), "expected no NaN"
    return values
