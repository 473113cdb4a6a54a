"""What a reward model has learned: accuracy over training, calibration, length, and what features can see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from datasets import Dataset
from numpy.typing import ArrayLike
from scipy.special import expit
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prlhf_kit.data.attributes import measure_all
from prlhf_kit.evaluation.accuracy import length_direction, ranked_right, words
from prlhf_kit.evaluation.statistics import Interval, cluster_bootstrap


def _interval(rows: pd.DataFrame, seed: int) -> Interval:
    """Accuracy over pairs (a list has several); pairs on the same prompt are one cluster."""
    pairs = rows.pairs.to_numpy()
    clusters = np.repeat((rows["set"] + "\n" + rows["prompt"]).to_numpy(), pairs)
    return cluster_bootstrap(np.repeat((rows.right / rows.pairs).to_numpy(), pairs), clusters, seed=seed)


def curves(evaluations: pd.DataFrame, by: Iterable[str] = (), seed: int = 0) -> pd.DataFrame:
    """Accuracy of each evaluation set at each step, with a 95% interval clustered by prompt.

    Args:
        evaluations: `step`, `set`, `prompt`, `right`, `pairs` (`evaluations.parquet` of a reward training), and the
            columns `by`.

    Returns:
        Columns `by`, `set`, `step`, `accuracy`, `low`, `high`, `pairs`.
    """
    keys = [*by, "set", "step"]
    rows = []
    for names, part in evaluations.groupby(keys, sort=False):
        i = _interval(part, seed)
        rows.append((*names, i.estimate, i.low, i.high, i.n))
    return pd.DataFrame(rows, columns=[*keys, "accuracy", "low", "high", "pairs"])


def trade_off(evaluations: pd.DataFrame, general: Iterable[str], seed: int = 0) -> pd.DataFrame:
    """Accuracy over the general pairs and over the customised ones, of each strategy at each evaluation.

    Args:
        evaluations: as in `curves`, with `strategy` and `domain` (whose model). A model's sets are the general ones and
            its own domain; others are left out.
        general: names of the general sets.

    Returns:
        Columns `strategy`, `point` (share of the evaluations after the first, from 0 to 1), `custom`, `custom_low`,
        `custom_high`, `general`, `general_low`, `general_high` (95%, clustered by prompt), `pairs`.
    """
    kind = np.where(evaluations.set.isin(list(general)), "general", "custom")
    table = evaluations.assign(kind=kind)[(kind == "general") | (evaluations.set == evaluations.domain)]
    # trainings of different lengths are evaluated equally often
    number = table.groupby(["strategy", "domain"]).step.rank(method="dense") - 1
    table["point"] = number / number.groupby([table.strategy, table.domain]).transform("max").clip(lower=1)
    rows = []
    for (strategy, point), part in table.groupby(["strategy", "point"], sort=False):
        found: dict[str, object] = {"strategy": strategy, "point": point, "pairs": int(part.pairs.sum())}
        for name, own in part.groupby("kind"):
            i = _interval(own, seed)
            found |= {str(name): i.estimate, f"{name}_low": i.low, f"{name}_high": i.high}
        rows.append(found)
    return pd.DataFrame(rows)


def calibration(log_odds: ArrayLike, bins: int = 10, clusters: ArrayLike | None = None) -> tuple[pd.DataFrame, float]:
    """Are preferences as sure as they say? Reliability curve and expected calibration error (Guo et al. 2017, Eq. 3).

    A pair's confidence is `sigmoid(|log_odds|)`, from 0.5 to 1, and it is right if the log-odds of the chosen response
    are above 0 (at 0, by half).

    Args:
        log_odds: `[n]`, reward of the chosen minus that of the rejected response.
        clusters: `[n]`, by which the intervals are clustered; None: every pair is its own.

    Returns:
        One row a bin of equal width that has pairs: `confidence` (mean), `accuracy`, `low`, `high` (95%), `pairs`; and
        the error, sum over bins of their share of pairs times |accuracy - confidence|.

    >>> table, error = calibration([0.0, 0.0])
    >>> error
    0.0
    """
    odds = np.asarray(log_odds, float)
    if not len(odds) or np.isnan(odds).any():
        raise ValueError(f"expected at least one pair and no NaN, got {len(odds)} with {np.isnan(odds).sum()} NaN.")
    confidence, right = expit(np.abs(odds)), (np.sign(odds) + 1) / 2
    own = np.arange(len(odds)) if clusters is None else np.asarray(clusters)
    place = np.clip(((confidence - 0.5) * 2 * bins).astype(int), 0, bins - 1)
    rows = []
    for number in np.unique(place):
        inside = place == number
        i = cluster_bootstrap(right[inside], own[inside])
        rows.append((confidence[inside].mean(), i.estimate, i.low, i.high, i.n))
    table = pd.DataFrame(rows, columns=["confidence", "accuracy", "low", "high", "pairs"])
    error = float((table.pairs / len(odds) * (table.accuracy - table.confidence).abs()).sum())
    return table, error


def length_matched(pairs: Dataset, tolerance: float = 0.1) -> np.ndarray:
    """Which pairs have two responses of about the same number of words: `[n]` bool.

    Args:
        tolerance: greatest difference, as a share of the longer one's words.
    """
    chosen, rejected = words(pairs["chosen"]), words(pairs["rejected"])
    return np.abs(chosen - rejected) <= tolerance * np.maximum(chosen, rejected)


def prompts_of(pairs: Dataset) -> list[str]:
    """Each pair's prompt as text, by which intervals are clustered: DSP's pairs of a query share it."""
    return [str(prompt) for prompt in pairs["prompt"]]


def heatmap(scored: pd.DataFrame, test: Mapping[str, Dataset], seed: int = 0) -> pd.DataFrame:
    """How often each model ranks each domain's pairs as that domain does, with a 95% interval clustered by prompt.

    Args:
        scored: one row a pair of `test[pairs_of]`, in order: `model`, `pairs_of`, `right`.

    Returns:
        Columns `model`, `pairs_of`, `accuracy`, `low`, `high`, `pairs`.
    """
    rows = []
    for (model, other), part in scored.groupby(["model", "pairs_of"], sort=False):
        i = cluster_bootstrap(part.right, prompts_of(test[str(other)]), seed=seed)
        rows.append((model, other, i.estimate, i.low, i.high, i.n))
    return pd.DataFrame(rows, columns=["model", "pairs_of", "accuracy", "low", "high", "pairs"])


def length_control(
    scored: pd.DataFrame, train: Mapping[str, Dataset], test: Mapping[str, Dataset], seed: int = 0
) -> pd.DataFrame:
    """Is it more than length? Each model's accuracy on its own pairs, all and length-matched, beside a length rule.

    Args:
        scored: one row a pair of `test`, in order: `model`, `right`, `matched` (`length_matched`).
        train, test: pairs by model; the rule's direction is that of the training pairs.

    Returns:
        Columns `model`, `pairs_used` ("all", "length-matched"), `method` ("reward model", "length rule"), `accuracy`,
        `low`, `high` (95%), `pairs`. Where no pair is matched, there is no such row.
    """
    rows = []
    for model in dict.fromkeys(scored.model.tolist()):
        part = scored[scored.model == model]
        direction = length_direction(words(train[model]["chosen"]), words(train[model]["rejected"]))
        gap = words(test[model]["chosen"]) - words(test[model]["rejected"])
        prompts = np.array(prompts_of(test[model]))
        for used, kept in (("all", np.full(len(part), True)), ("length-matched", part.matched.to_numpy())):
            for method, right in (
                ("reward model", part.right.to_numpy()),
                ("length rule", ranked_right(direction * gap, 0 * gap)),
            ):
                if kept.any():
                    i = cluster_bootstrap(right[kept], prompts[kept], seed=seed)
                    rows.append((model, used, method, i.estimate, i.low, i.high, i.n))
    return pd.DataFrame(rows, columns=["model", "pairs_used", "method", "accuracy", "low", "high", "pairs"])


def visible(features: np.ndarray, texts: Iterable[str], folds: int = 5) -> pd.DataFrame:
    """How much of each text attribute can be read off the features by a linear map: cross-validated R^2.

    What can't be read off them, no head on these features can reward.

    Args:
        features: `[n, d]` of the texts.

    Returns:
        Columns `attribute`, `r2` (1 all of it, 0 or less nothing, NaN where all texts have the same value).
    """
    attributes = measure_all(texts)
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 7)))
    split = KFold(folds, shuffle=True, random_state=0)
    found = {
        name: cross_val_score(model, features, values, cv=split).mean() if values.nunique() > 1 else np.nan
        for name, values in attributes.items()
    }
    return pd.DataFrame({"attribute": list(found), "r2": list(found.values())})
