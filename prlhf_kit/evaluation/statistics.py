"""Intervals and tests for numbers that come from several users: pairs of one user are not independent, users are."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats
from scipy.sparse import coo_array
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

FEW, MANY_CLUSTERS = 6, 2000


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
    No resampling of fewer than `FEW` clusters can leave the range of their means: there a t interval of the clustered
    mean takes its place, cut off at the least and the greatest value; and with more than 2,000 a normal one, which
    bootstrap intervals approach. Where all clusters have one mean the interval has no width: no resampling can show
    what was never drawn. For a paired difference of two methods, pass the per-pair differences. scipy's `bootstrap`
    resamples single values and has no clusters.

    >>> cluster_bootstrap([1, 1, 0, 0], ["a", "a", "b", "b"]).estimate
    0.5
    """
    values = _numbers(values)
    sums, sizes = _by_cluster(values, clusters)
    k, mean = len(sums), float(values.mean())
    if k == 1:
        low = high = np.nan
    elif k < FEW or k > MANY_CLUSTERS:
        error = np.sqrt(((sums - mean * sizes) ** 2).sum() * k / (k - 1)) / len(values)
        low, high = np.clip(mean + np.array([-1, 1]) * _t(k, confidence) * error, values.min(), values.max())
    else:
        draws = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), resamples)
        low, high = np.quantile(draws @ sums / (draws @ sizes), expanded(k, confidence))
    return Interval(mean, float(low), float(high), len(values), k)


def _t(clusters: int, confidence: float = 0.95) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, clusters - 1))


def expanded(clusters: int, confidence: float = 0.95) -> tuple[float, float]:
    """Quantiles of a bootstrap distribution over so many clusters that give a `confidence` interval: Hesterberg 2015,
    Section 5.3, Phi(-sqrt(n / (n - 1)) t). Wider than the plain (0.025, 0.975).

    >>> [round(q, 4) for q in expanded(8)]
    [0.0057, 0.9943]
    """
    tail = float(stats.norm.cdf(-np.sqrt(clusters / (clusters - 1)) * _t(clusters, confidence)))
    return tail, 1 - tail


def around(estimate: ArrayLike, draws: ArrayLike, clusters: int, confidence: float = 0.95) -> np.ndarray:
    """Interval `[2, ...]` of a statistic from few bootstrap draws `[resamples, ...]` over so many clusters: t times
    their standard deviation, with the sample's variance in place of the population's. NaN from one cluster."""
    estimate, draws = np.asarray(estimate, float), np.asarray(draws, float)
    if clusters < 2 or np.isnan(draws).all():
        return np.full((2, *estimate.shape), np.nan)
    width = _t(clusters, confidence) * np.sqrt(clusters / (clusters - 1)) * np.nanstd(draws, axis=0)
    return np.stack([estimate - width, estimate + width])


def share_prompts(users: Iterable[Any], prompts: Iterable[Any]) -> bool:
    """Whether any prompt was answered for several users."""
    pairs = pd.DataFrame({"user": _names(users), "prompt": _names(prompts)}).drop_duplicates()
    return bool(pairs.prompt.duplicated().any())


def drawn_weights(
    users: Iterable[Any], prompts: Iterable[Any], resamples: int, seed: int = 0
) -> tuple[Iterator[np.ndarray], int]:
    """Bootstrap weights `[n]` of each draw, and the number of clusters: users are drawn anew, and where they share
    prompts these, too (the pigeonhole bootstrap, Owen 2007, arXiv 0712.1111)."""
    crossed = share_prompts(users, prompts)
    codes = [np.unique(_names(c), return_inverse=True)[1] for c in ((users, prompts) if crossed else (users,))]
    sizes = [int(code.max()) + 1 for code in codes]
    rng = np.random.default_rng(seed)

    def draw() -> Iterator[np.ndarray]:
        for _ in range(resamples):
            parts = [rng.multinomial(k, np.full(k, 1 / k))[c] for k, c in zip(sizes, codes, strict=True)]
            weights = np.prod(parts, axis=0)
            if weights.any():  # where not every user has every prompt, a draw may hold nothing
                yield weights.astype(float)

    return draw(), min(sizes)


def crossed_bootstrap(
    values: ArrayLike, users: Iterable[Any], prompts: Iterable[Any], confidence: float = 0.95, resamples: int = 10_000,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """Mean of `values` `[n]` and its interval where users answer the same prompts: both are drawn anew (the pigeonhole
    bootstrap, Owen 2007, arXiv 0712.1111). It says what other users *and* other prompts would give, and tends to be too
    wide rather than too narrow. Where no prompt is shared it is `cluster_bootstrap` by user. `clusters` is the smaller
    of the two numbers.
    """
    values = _numbers(values)
    if not share_prompts(users, prompts):
        return cluster_bootstrap(values, _names(users), confidence, resamples, seed)
    rows, columns = (np.unique(_names(names), return_inverse=True)[1] for names in (users, prompts))
    shape = int(rows.max()) + 1, int(columns.max()) + 1
    sums = coo_array((values, (rows, columns)), shape).tocsr()
    sizes = coo_array((np.ones(len(values)), (rows, columns)), shape).tocsr()
    k, mean = min(shape), float(values.mean())
    if k == 1:
        return Interval(mean, np.nan, np.nan, len(values), k)
    rng, means = np.random.default_rng(seed), []
    block = max(1, min(resamples, 20_000_000 // max(shape)))
    for first in range(0, resamples, block):
        own, asked = (rng.multinomial(m, np.full(m, 1 / m), min(block, resamples - first)) for m in shape)
        totals = ((own @ sizes) * asked).sum(1)
        found = ((own @ sums) * asked).sum(1)
        means.append(found[totals > 0] / totals[totals > 0])
    drawn = np.concatenate(means)
    if k < FEW:
        low, high = np.clip(around(mean, drawn, k, confidence), values.min(), values.max())
    else:
        low, high = np.quantile(drawn, expanded(k, confidence))
    return Interval(mean, float(low), float(high), len(values), k)


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
        n_resamples=resamples, vectorized=True, batch=max(1, 5_000_000 // len(sums)), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)


def crossed_test(
    differences: ArrayLike, users: Iterable[Any], prompts: Iterable[Any], resamples: int = 9_999, seed: int = 0
) -> float:
    """Two-sided p-value of "the mean difference is 0" where users answer the same prompts, for which swapping the signs
    of users alone rejects too often. The greatest of three: `permutation_test` by user, the same by prompt, and a
    t-test with errors clustered both ways (Cameron, Gelbach & Miller 2011, by statsmodels). Where no prompt is shared,
    the first alone.
    """
    values = _numbers(differences)
    found = permutation_test(values, _names(users), resamples, seed)
    if not share_prompts(users, prompts):
        return found
    groups = np.column_stack([np.unique(_names(c), return_inverse=True)[1] for c in (users, prompts)])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # its variance can be 0 or below; then it has nothing to say
        fit = OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
        both = float(fit.pvalues[0])
    return max(found, permutation_test(values, _names(prompts), resamples, seed), 0.0 if np.isnan(both) else both)


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


def _names(clusters: Iterable[Any]) -> np.ndarray:
    return np.array([str(name) for name in clusters])


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
