"""The interval and the test of one mean whose values come from several users: pairs of one user are not independent,
users are. `intervals.py` applies them to every group of a table."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.sandwich_covariance import cov_cluster, cov_cluster_2groups
from tqdm.auto import tqdm

Names = Iterable[Any]  # of the user or prompt of each value
RESAMPLES, PERMUTATIONS = 10_000, 9_999
FEW, MANY_CLUSTERS = 6, 2000
FEW_USERS = 8  # of fewer, t times the bootstrap's standard deviation is uselessly wide: no interval


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


def crossed_interval(values: ArrayLike, users: Names, prompts: Names | None = None, *, seed: int = 0) -> Interval:
    """Mean of `values` `[n]` and its 95% interval: what other users, and other prompts where users share them, give.

    Where no prompt is shared, whole users are resampled (Cameron et al. 2008), with `expanded` percentiles. Else, of
    fewer than `FEW` users (whose resamples can't leave the range of their means), and of more than `MANY_CLUSTERS`, it
    is t times the standard error, clustered both ways where prompts are shared (Cameron, Gelbach & Miller 2011), cut
    off at the least and the greatest value. `clusters` is the smaller number, from one of either NaN.

    >>> crossed_interval([1, 1, 0, 0], ["a", "a", "b", "b"]).estimate
    0.5
    """
    values, codes = _numbers(values), _clusters(users, prompts)
    k, mean = min(int(code.max()) + 1 for code in codes), float(values.mean())
    if len(codes) == 1 and FEW <= k <= MANY_CLUSTERS:
        sums, sizes = np.bincount(codes[0], weights=values), np.bincount(codes[0])  # [k] both
        draws = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), RESAMPLES)  # [RESAMPLES, k]
        low, high = np.quantile(draws @ sums / (draws @ sizes), expanded(k))
    else:
        low, high = np.clip(mean + np.array([-1, 1]) * _t(k) * _error(values, codes), values.min(), values.max())
    return Interval(mean, float(low), float(high), len(values), k)


def expanded(clusters: int) -> tuple[float, float]:
    """Quantiles of a bootstrap distribution over so many clusters that give a 95% interval: Hesterberg 2015, arXiv
    1411.5279, Section 5.3, Phi(-sqrt(n / (n - 1)) t). Of 8: 0.0057 and 0.9943, wider than the plain 0.025 and 0.975."""
    tail = float(stats.norm.cdf(-np.sqrt(clusters / (clusters - 1)) * _t(clusters)))
    return tail, 1 - tail


def crossed_test(differences: ArrayLike, users: Names, prompts: Names | None = None, *, seed: int = 0) -> float:
    """Two-sided p-value of "the mean difference is 0" from paired `differences` `[n]`.

    The signs of whole users are swapped (scipy's `permutation_test`; exact with up to 13): of k users it can't be below
    2 / 2**k. Where users answer the same prompts, which rejects too often, it is the greatest of three: this, the same
    by prompt, and the t-test that `crossed_interval` inverts.

    >>> crossed_test([1, 1, 1, 1], ["a", "b", "c", "d"])
    0.125
    """
    values, codes = _numbers(differences), _clusters(users, prompts)
    found = [_swapped_signs(np.bincount(code, weights=values), seed) for code in codes]
    if len(codes) == 2:
        error, k = _error(values, codes), min(int(code.max()) + 1 for code in codes)
        found.append(float(2 * stats.t.sf(abs(values.mean()) / error, k - 1)) if k > 1 and error else 0.0)
    return max(found)


def _swapped_signs(sums: np.ndarray, seed: int) -> float:
    """p-value of the sums `[k]` of k clusters."""
    if len(sums) == 1:
        return 1.0  # two permutations, both as far from 0
    found = stats.permutation_test(
        (sums,),  # of one sample, scipy swaps signs
        lambda a, axis: a.sum(axis),
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        vectorized=True,
        batch=max(1, 5_000_000 // len(sums)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for many comparisons (Holm 1979, by statsmodels): each may be read against 0.05 as it is."""
    if len(p_values) < 2:  # statsmodels collects garbage at each call, which takes up to half a second
        return list(p_values)
    return multipletests(p_values, method="holm")[1].tolist()


def detectable(differences: ArrayLike, users: Names, prompts: Names | None = None) -> float:
    """The least true difference that so many users (and prompts, where they are shared) would show with probability 0.8
    in a two-sided t-test at 0.05: Bloom 1995, (t_.975 + t_.8) standard errors. NaN where they don't differ, and for
    fewer than `FEW_USERS`."""
    codes = _clusters(users, prompts)
    k, error = min(int(code.max()) + 1 for code in codes), _error(_numbers(differences), codes)
    return float("nan") if k < FEW_USERS or error < 1e-12 else float((_t(k) + stats.t.ppf(0.8, k - 1)) * error)


def _error(values: np.ndarray, codes: Sequence[np.ndarray]) -> float:
    """Standard error of the mean clustered by one or both of `codes` (then at least the greater of the two). NaN from
    one cluster."""
    if not all(code.any() for code in codes):
        return np.nan
    fit = OLS(values, np.ones(len(values))).fit()
    variances = [cov_cluster(fit, codes[0])] if len(codes) == 1 else cov_cluster_2groups(fit, *codes)
    return max(float(v.item()) for v in variances) ** 0.5


def bootstrap(
    statistic: Callable[[np.ndarray], ArrayLike],
    users: Names,
    prompts: Names | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Any `statistic` of the rows' weights `[n]`, and its 95% interval: t times the standard deviation of its draws,
    with the sample's variance in place of the population's. Bounds are NaN of fewer than `FEW_USERS` clusters.

    Users are drawn anew, and prompts, too, where they were answered for more than 1.5 users on average (the pigeonhole
    bootstrap, Owen 2007, arXiv 0712.1111).
    """
    codes = _clusters(users, prompts, 1.5)
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


def _clusters(users: Names, prompts: Names | None, shared: float = 1) -> list[np.ndarray]:
    """Codes `[n]` of the users, and of the prompts if more than so many users on average share one: numbers from 0 in
    the names' order as text."""
    texts = [np.array([*map(str, names)], object) for names in (users, prompts) if names is not None]
    codes = [pd.factorize(some, sort=True)[0] for some in texts]
    if prompts is None or len({*zip(*codes, strict=True)}) > shared * (codes[1].max() + 1):
        return codes
    return codes[:1]


def _numbers(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    assert len(values), "expected at least one value"
    assert not np.isnan(values).any(), "expected no NaN"
    return values
