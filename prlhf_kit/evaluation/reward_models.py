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
from prlhf_kit.evaluation.accuracy import LENGTH, length_rules, ranked_right, words
from prlhf_kit.evaluation.intervals import intervals, long_table
from prlhf_kit.models.rewards import RewardModel


def reward_accuracy(reward: RewardModel, pairs: Dataset, train: Dataset) -> pd.DataFrame:
    """The long table of which held-out pairs a reward model ranks right, each for its own `user_id`, beside the length
    rules learned from `train`."""
    n, prompts, users = len(pairs), list(pairs["prompt"]), list(pairs["user_id"])
    scores = reward.score(prompts * 2, [*pairs["chosen"], *pairs["rejected"]], users * 2).double().cpu().numpy()
    right = {"reward model": ranked_right(scores[:n], scores[n:])}
    return long_table(pairs, right | length_rules(train, pairs))


def pair_by_pair(evaluations: pd.DataFrame) -> pd.DataFrame:
    """The evaluations of a reward training (`step`, `set`, `prompt`, `right`, `pairs`, ...) as a long table. A list of
    responses has several pairs, which share its accuracy; `asked` names its prompt in its set."""
    table = evaluations.assign(
        value=evaluations.right / evaluations.pairs, asked=evaluations["set"] + "\n" + evaluations["prompt"]
    )
    return table.loc[table.index.repeat(table.pairs)].reset_index(drop=True)


def trade_off(evaluations: pd.DataFrame, general: Iterable[str]) -> pd.DataFrame:
    """`pair_by_pair` of what bears on the trade-off: `of` ("custom" or `general` sets) and `point` (share of the
    evaluations after the first, 0 to 1). `evaluations` has `strategy` and `domain`, whose model it is: other domains
    are left out."""
    of = np.where(evaluations.set.isin(list(general)), "general", "custom")
    table = evaluations.assign(of=of)[(of == "general") | (evaluations.set == evaluations.domain)]
    number = table.groupby(["strategy", "domain"]).step.rank(method="dense") - 1
    table["point"] = number / number.groupby([table.strategy, table.domain]).transform("max").clip(lower=1)
    return pair_by_pair(table)


def calibration(log_odds: ArrayLike, bins: int = 10, clusters: ArrayLike | None = None) -> tuple[pd.DataFrame, float]:
    """Are preferences as sure as they say? Reliability curve and expected calibration error (Guo et al. 2017, Eq. 3).

    A pair's confidence is `sigmoid(|log_odds|)`; it is right where the chosen response's log-odds are above 0 (at 0, by
    half). Returns `intervals` by `bin` (of equal width) with the mean `confidence`, clustered by `clusters` `[n]`, and
    the error.
    """
    odds = np.asarray(log_odds, float)
    assert len(odds), "expected at least one pair"
    confidence = expit(np.abs(odds))
    table = pd.DataFrame(
        {
            "bin": np.clip(((confidence - 0.5) * 2 * bins).astype(int), 0, bins - 1),
            "confidence": confidence,
            "value": ranked_right(odds, 0),
            "cluster": np.arange(len(odds)) if clusters is None else np.asarray(clusters, dtype=object),
        }
    )
    found = intervals(table, by=["bin"], cluster="cluster", confidence=("confidence", "mean"))
    error = float((found.n / len(odds) * (found.value - found.confidence).abs()).sum())
    return found.sort_values("bin", ignore_index=True), error


def length_matched(pairs: Dataset, tolerance: float = 0.1) -> np.ndarray:
    """Which pairs have two responses whose words differ by at most `tolerance` of the longer one's: `[n]` bool."""
    chosen, rejected = words(pairs["chosen"]), words(pairs["rejected"])
    return np.abs(chosen - rejected) <= tolerance * np.maximum(chosen, rejected)


def length_control(scored: pd.DataFrame, train: Mapping[str, Dataset], test: Mapping[str, Dataset]) -> pd.DataFrame:
    """Is it more than length? The long table of each model on its own pairs, with `pairs_used` ("all" or
    "length-matched") and `method` (the model, or the length rule in the direction of its training pairs).

    `scored` has one row a pair of `test`, in order: `model`, `value`, `prompt`, `matched` (`length_matched`); `train`
    and `test` are pairs by model.
    """
    tables = []
    for model in dict.fromkeys(scored.model.tolist()):
        part = scored[scored.model == model]
        rule = part.assign(method=LENGTH, value=length_rules(train[model], test[model])[LENGTH])
        both = pd.concat([part.assign(method="reward model"), rule])
        tables += [both.assign(pairs_used="all"), both[both.matched].assign(pairs_used="length-matched")]
    return pd.concat(tables, ignore_index=True)


def visible(features: np.ndarray, texts: Iterable[str]) -> pd.DataFrame:
    """How much of each text attribute a linear map can read off the `features` `[n, d]`: `attribute`, `r2` in 5 folds
    (NaN where all texts have the same value). What can't be read off them, no head on them can reward."""
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 7)))
    split = KFold(5, shuffle=True, random_state=0)
    found = [
        (name, cross_val_score(model, features, values, cv=split).mean() if values.nunique() > 1 else np.nan)
        for name, values in measure_all(texts).items()
    ]
    return pd.DataFrame(found, columns=["attribute", "r2"])
