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
from prlhf_kit.evaluation.compare import words
from prlhf_kit.evaluation.metrics import length_direction, ranked_right
from prlhf_kit.evaluation.statistics import cluster_bootstrap


def curves(evaluations: pd.DataFrame, by: Iterable[str] = (), seed: int = 0) -> pd.DataFrame:
    """Accuracy of each evaluation set at each step, with a 95% interval over the set's rows.

    Args:
        evaluations: `step`, `set`, `row`, `right`, `pairs` (`evaluations.parquet` of a reward training), and the
            columns `by`.

    Returns:
        Columns `by`, `set`, `step`, `accuracy`, `low`, `high`, `pairs`.
    """
    keys = [*by, "set", "step"]
    rows = []
    for names, part in evaluations.groupby(keys, sort=False):
        i = cluster_bootstrap(part.right / part.pairs, part.row, seed=seed)
        rows.append((*names, i.estimate, i.low, i.high, int(part.pairs.sum())))
    return pd.DataFrame(rows, columns=[*keys, "accuracy", "low", "high", "pairs"])


def trade_off(evaluations: pd.DataFrame, general: Iterable[str], seed: int = 0) -> pd.DataFrame:
    """Mean accuracy over the general and over the customised sets of each strategy at each point of training.

    Args:
        evaluations: as in `curves`, with `strategy`, `domain` (whose model) and `point` (share of the training done).
        general: names of the general sets; all others are customised ones.

    Returns:
        Columns `strategy`, `point`, `custom`, `custom_low`, `custom_high`, `general`, `general_low`, `general_high`
        (95%, over rows of the sets), `pairs`.
    """
    table = evaluations.assign(kind=np.where(evaluations.set.isin(list(general)), "general", "custom"))
    rows = []
    for (strategy, point), part in table.groupby(["strategy", "point"], sort=False):
        found: dict[str, object] = {"strategy": strategy, "point": point, "pairs": int(part.pairs.sum())}
        for kind, own in part.groupby("kind"):
            # a general pair that several domains' models judge is one cluster
            i = cluster_bootstrap(own.right / own.pairs, own.set + own.row.astype(str), seed=seed)
            found |= {str(kind): i.estimate, f"{kind}_low": i.low, f"{kind}_high": i.high}
        rows.append(found)
    return pd.DataFrame(rows)


def calibration(log_odds: ArrayLike, bins: int = 10) -> tuple[pd.DataFrame, float]:
    """Are preferences as sure as they say? Reliability curve and expected calibration error (Guo et al. 2017, Eq. 3).

    A pair's confidence is `sigmoid(|log_odds|)`, from 0.5 to 1, and it is right if the log-odds of the chosen response
    are above 0 (at 0, by half).

    Args:
        log_odds: `[n]`, reward of the chosen minus that of the rejected response.

    Returns:
        One row a bin of equal width that has pairs: `confidence` (mean), `accuracy`, `low`, `high` (95%), `pairs`; and
        the error, sum over bins of their share of pairs times |accuracy - confidence|.

    >>> table, error = calibration([0.0, 0.0])
    >>> error
    0.0
    """
    odds = np.asarray(log_odds, float)
    confidence, right = expit(np.abs(odds)), (np.sign(odds) + 1) / 2
    place = np.clip(((confidence - 0.5) * 2 * bins).astype(int), 0, bins - 1)
    rows = []
    for number in np.unique(place):
        inside = place == number
        i = cluster_bootstrap(right[inside], np.arange(inside.sum()))
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
        for used, kept in (("all", np.full(len(part), True)), ("length-matched", part.matched.to_numpy())):
            for method, right in (
                ("reward model", part.right.to_numpy()), ("length rule", ranked_right(direction * gap, 0 * gap)),
            ):  # fmt: skip
                if kept.any():
                    i = cluster_bootstrap(right[kept], np.arange(kept.sum()), seed=seed)
                    rows.append((model, used, method, i.estimate, i.low, i.high, i.n))
    return pd.DataFrame(rows, columns=["model", "pairs_used", "method", "accuracy", "low", "high", "pairs"])


def visible(features: np.ndarray, texts: Iterable[str], folds: int = 5) -> pd.DataFrame:
    """How much of each text attribute can be read off the features by a linear map: cross-validated R^2.

    What can't be read off them, no head on these features can reward.

    Args:
        features: `[n, d]` of the texts.

    Returns:
        Columns `attribute`, `r2` (1 all of it, 0 or less nothing).
    """
    attributes = measure_all(texts)
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 7)))
    split = KFold(folds, shuffle=True, random_state=0)
    found = {name: cross_val_score(model, features, attributes[name], cv=split).mean() for name in attributes}
    return pd.DataFrame({"attribute": list(found), "r2": list(found.values())})
