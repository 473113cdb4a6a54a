"""Intervals and tests for numbers that come from several users: pairs of one user are not independent, users are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

MANY_CLUSTERS = 2000


class Interval(NamedTuple):
    """An estimate with its bootstrap interval (NaN where one cluster says nothing), and the values and clusters behind
    it."""

    estimate: float
    low: float
    high: float
    n: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def cluster_bootstrap(
    values: ArrayLike, clusters: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of `values` `[n]` and its interval from resampling whole clusters (Cameron et al. 2008).

    The interval is the expanded percentile one (Hesterberg 2015, arXiv 1411.5279, Section 5.3): plain percentiles of
    few clusters are too narrow, as a normal interval with the population's variance in place of the sample's would be.
    For a paired difference of two methods, pass the per-pair differences. scipy's `bootstrap` resamples single
    values and has no clusters. With more than 2,000 clusters the normal interval of the clustered mean, which these
    approach, takes its place. Where all clusters have one mean the interval has no width: no resampling can show what
    was never drawn.

    >>> cluster_bootstrap([1, 1, 0, 0], ["a", "a", "b", "b"]).estimate
    0.5
    """
    values = _numbers(values)
    sums, sizes = _by_cluster(values, clusters)
    k = len(sums)
    if k > MANY_CLUSTERS:
        error = np.sqrt(((sums - values.mean() * sizes) ** 2).sum()) / len(values)
        low, high = values.mean() + np.array([-1, 1]) * stats.norm.ppf((1 + confidence) / 2) * error
    elif k == 1:
        low = high = np.nan
    else:
        draws = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), resamples)
        low, high = np.quantile(draws @ sums / (draws @ sizes), expanded(k, confidence))
    return Interval(float(values.mean()), float(low), float(high), len(values), k)


def expanded(clusters: int, confidence: float = 0.95) -> tuple[float, float]:
    """Quantiles of a bootstrap distribution over so many clusters that give a `confidence` interval: Hesterberg 2015,
    Section 5.3, Phi(-sqrt(n / (n - 1)) t). Wider than the plain (0.025, 0.975).

    >>> [round(q, 4) for q in expanded(8)]
    [0.0057, 0.9943]
    """
    t = stats.t.ppf((1 + confidence) / 2, clusters - 1)
    tail = float(stats.norm.cdf(-np.sqrt(clusters / (clusters - 1)) * t))
    return tail, 1 - tail


def crossed_bootstrap(
    values: ArrayLike, users: ArrayLike, prompts: ArrayLike, confidence: float = 0.95, resamples: int = 10_000,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """Mean of `values` `[n]` and its interval where users answer the same prompts: both are drawn anew (the pigeonhole
    bootstrap, Owen 2007, arXiv 0712.1111). It says what other users *and* other prompts would give, and tends to be too
    wide rather than too narrow. `clusters` is the smaller of the two numbers; from one of either, NaN.
    """
    values = _numbers(values)
    rows, columns = (np.unique(np.asarray(names, str), return_inverse=True) for names in (users, prompts))
    shape = len(rows[0]), len(columns[0])
    sums, sizes = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (rows[1], columns[1]), values)
    np.add.at(sizes, (rows[1], columns[1]), 1)
    k = min(shape)
    if k == 1:
        return Interval(float(values.mean()), np.nan, np.nan, len(values), k)
    rng = np.random.default_rng(seed)
    own, asked = (rng.multinomial(m, np.full(m, 1 / m), resamples) for m in shape)
    totals = ((own @ sizes) * asked).sum(1)
    # where not every user has every prompt, a draw may hold nothing
    means = (((own @ sums) * asked).sum(1) / np.where(totals, totals, np.nan))[totals > 0]
    low, high = np.quantile(means, expanded(k, confidence))
    return Interval(float(values.mean()), float(low), float(high), len(values), k)


def permutation_test(differences: ArrayLike, clusters: ArrayLike, resamples: int = 9_999, seed: int = 0) -> float:
    """Two-sided p-value of "two methods are equal" from paired `differences` `[n]`: the signs of whole clusters are
    swapped (scipy's `permutation_test`; exact with up to 13 clusters). With k clusters it can't be below 2 / 2**k.

    >>> permutation_test([1, 1, 1, 1], ["a", "b", "c", "d"])
    0.125
    """
    sums, _ = _by_cluster(_numbers(differences), clusters)
    if len(sums) == 1:
        return 1.0  # two permutations, both as far from 0
    found = stats.permutation_test(
        (sums, np.zeros(len(sums))), lambda a, b, axis: (a - b).sum(axis), permutation_type="samples",
        n_resamples=resamples, vectorized=True, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for many comparisons (Holm 1979, by statsmodels): each may be read against 0.05 as it is.

    >>> holm([0.25, 0.5])
    [0.5, 0.5]
    """
    return multipletests(p_values, method="holm")[1].tolist() if len(p_values) else []


def detectable(differences: ArrayLike, clusters: ArrayLike, power: float = 0.8, alpha: float = 0.05) -> float:
    """The least true difference that so many clusters, as different from each other as these, would show with
    probability `power` in a two-sided t-test at `alpha` (statsmodels' `TTestPower`). NaN where clusters don't differ.

    >>> round(detectable([0.5, -0.5] * 50, range(100)), 3)
    0.142
    """
    values = _numbers(differences)
    sums, sizes = _by_cluster(values, clusters)
    k = len(sums)
    # what each cluster adds to the mean; with clusters of equal size, their means
    spread = ((sums - values.mean() * sizes) * k / len(values)).std(ddof=1) if k > 1 else 0.0
    if spread == 0:
        return float("nan")
    return float(spread * TTestPower().solve_power(nobs=k, alpha=alpha, power=power, alternative="two-sided"))


def _numbers(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    if not len(values) or np.isnan(values).any():
        raise ValueError(
            f"expected at least one value and no NaN, got {len(values)} with {np.isnan(values).sum()} NaN."
        )
    return values


def _by_cluster(values: np.ndarray, clusters: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each cluster."""
    names = np.asarray(clusters)
    if len(names) != len(values):
        raise ValueError(f"{len(values)} values and {len(names)} clusters, expected one cluster a value.")
    _, codes = np.unique(names, return_inverse=True)
    return np.bincount(codes, weights=values), np.bincount(codes)
