"""What judgements say: win rates, ratings of many systems, length control, position bias, agreement of judges.

Every function takes the tidy table of `judges.judged`. A tie is one half; where a judge's answer could not be read
there is no verdict, and it is counted (`unread`), never a win.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from tqdm.auto import tqdm

from prlhf_kit.evaluation.accuracy import ranked_right
from prlhf_kit.evaluation.intervals import ALL, BY_USER_AND_PROMPT, intervals, with_holm
from prlhf_kit.evaluation.statistics import around, drawn_weights
from prlhf_kit.files import of_extra

VALUE = {"a": 1.0, "tie": 0.5, "b": 0.0}
COMPARISON = ("judge", "system_a", "system_b")
FIRST, DISAGREE = "prefers the first", "orders disagree"
KAPPA, ALPHA = "Cohen's kappa", "Krippendorff's alpha"


def with_wins(judgements: pd.DataFrame) -> pd.DataFrame:
    """Judgements as a long table: `win_rate` is 1 where system a won, 1/2 for a tie, 0 where b won, NaN without a
    verdict."""
    return judgements.assign(win_rate=judgements.preference.map(VALUE).astype(float))


def _read(judgements: pd.DataFrame) -> pd.DataFrame:
    return with_wins(judgements).dropna(subset="win_rate")


def win_rates(
    judgements: pd.DataFrame,
    by: Sequence[str] = COMPARISON,
    cluster: str | Sequence[str] = BY_USER_AND_PROMPT,
    seed: int = 0,
) -> pd.DataFrame:
    """Win rate of system a over b in every comparison, per sample: wins and half the ties, over all verdicts.

    Where users answer the same prompts, intervals and tests say what other users and other prompts would give.

    Returns:
        `intervals` of `win_rate`, tested against 1/2: `by`, `win_rate`, `low`, `high`, `p`, `p_holm` (corrected for all
        rows with the same first column: a judge's), `detectable`, `n` (verdicts), `clusters`, the shares `win`, `tie`
        and `loss`, `users`, `prompts`, and `unread` (pairs without a verdict).
    """
    table = with_wins(judgements)
    for name, value in (("win", 1.0), ("tie", 0.5), ("loss", 0.0)):
        table[name] = table.win_rate == value
    shares: dict[str, Any] = {name: (name, "mean") for name in ("win", "tie", "loss")}
    numbers: dict[str, Any] = {"users": ("user_id", "nunique"), "prompts": ("prompt", "nunique")}
    found = intervals(table, "win_rate", by, cluster, null=0.5, seed=seed, **shares, **numbers)
    found["unread"] = table.groupby(list(by), sort=False, dropna=False).size().to_numpy() - found.n
    return with_holm(found, by[:1])


def win_rates_by_community(judgements: pd.DataFrame, named: bool = True, seed: int = 0) -> pd.DataFrame:
    """Win rate of system a over b among each community, and among all of them (`ALL`).

    Communities are the `user_id`s. They have names, and those in the table are all that one asks about: intervals and
    tests are by prompt, and say what other prompts would give.

    Args:
        judgements: of `judges.judged`; its `user_id` is the community, the true one. For contextual against plain, or
            the right context against a random one, give the systems' answers those names.
        named: False: users are draws from many people, so that "all" says what other users would give as well.

    Returns:
        Rows of `win_rates` with the column `community`; `p_holm` is corrected over the communities of a comparison (of
        "all": `p`, since it is one test).
    """
    if (judgements.user_id == ALL).any():
        raise ValueError(f"a community is called {ALL!r}, which stands for all of them here. Rename it in the data.")
    by = [*COMPARISON, "community"]
    own = win_rates(judgements.assign(community=judgements.user_id), by, "prompt", seed)
    together = win_rates(judgements.assign(community=ALL), by, "prompt" if named else BY_USER_AND_PROMPT, seed)
    own = with_holm(own.drop(columns="p_holm"), COMPARISON)
    return pd.concat([own, together.assign(p_holm=together.p)], ignore_index=True)


def user_win_rates(judgements: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Win rate per user, P-RLHF's second number (Li et al. 2024, arXiv 2402.05133, Section 5): a user is won whose own
    win rate is above one half. Users at exactly one half are ties and count one half.

    Returns:
        `intervals` of `user_win_rate` by `COMPARISON`, over users, with the numbers `users_won`, `users_tied`,
        `users_lost`.
    """
    own = _read(judgements).groupby([*COMPARISON, "user_id"], sort=False).win_rate.mean().reset_index()
    own["user_win_rate"] = ranked_right(own.win_rate.round(12), np.full(len(own), 0.5))
    names = {"users_won": 1.0, "users_tied": 0.5, "users_lost": 0.0}
    numbers: dict[str, Any] = {name: (name, "sum") for name in names}
    own = own.assign(**{name: own.user_win_rate == value for name, value in names.items()})
    return intervals(own, "user_win_rate", COMPARISON, "user_id", seed=seed, **numbers)


def position_bias(judgements: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Does a judge prefer what it is shown first? (Zheng et al. 2023, arXiv 2306.05685, Section 3.3.)

    Returns:
        `intervals` by `judge` and `measure`, over pairs that were read in both orders: `FIRST`, how much more often the
        answer shown first won than the one shown second, from -1 (always the second) over 0 to 1 (always the first);
        `DISAGREE`, the share of pairs on which the two orders do not say the same. With `unread` (pairs that were not).
    """
    first, second = judgements["first"].map(VALUE).astype(float), judgements["second"].map(VALUE).astype(float)
    # in the first order a's answer is shown first, in the second order b's
    both = {FIRST: first - second, DISAGREE: (first != second).astype(float).where((first - second).notna())}
    table = pd.concat([judgements.assign(measure=name, value=value) for name, value in both.items()])
    found = intervals(table, by=["judge", "measure"], seed=seed)
    found["unread"] = table.groupby(["judge", "measure"], sort=False, dropna=False).size().to_numpy() - found.n
    return found


def bradley_terry(judgements: pd.DataFrame, resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """Ratings of many systems from all their comparisons: P(a beats b) = sigmoid(s_a - s_b) (Bradley & Terry 1952), by
    logistic regression as in Chatbot Arena (Chiang et al. 2024, arXiv 2403.04132), a tie as half a win for each.

    A weak ridge (a normal prior on s with variance 100) keeps the rating of a system finite that always won or never;
    how far out it lies is then the ridge's doing.

    Returns:
        For each judge and group, best first: `judge`, `group`, `system`, `rating` with `low`, `high` (95%, users drawn
        anew, and prompts that they share) on Elo's scale (the group's mean 1000; 400 points are odds of 10 to 1), `n`
        (verdicts on it). Systems that no chain of comparisons connects are in different groups (1, 2, ...), each with
        a scale of its own: ratings of two groups say nothing of each other.
    """
    tables = []
    for judge, part in _read(judgements).groupby("judge", sort=False):
        systems = sorted({*part.system_a, *part.system_b})
        a, b = (part[name].map(systems.index).to_numpy() for name in ("system_a", "system_b"))
        features = np.eye(len(systems))[a] - np.eye(len(systems))[b]
        group = connected_components(features.T @ features, directed=False)[1] + 1
        rating, low, high = _resampled(_ratings, part, resamples, seed, features, part.win_rate.to_numpy(), group)
        found = {"judge": judge, "group": group, "system": systems, "rating": rating, "low": low, "high": high}
        table = pd.DataFrame(found).assign(n=np.bincount([*a, *b]))
        tables.append(table.sort_values(["group", "rating"], ascending=[True, False]))
    if not tables:
        return pd.DataFrame(columns=["judge", "group", "system", "rating", "low", "high", "n"])
    return pd.concat(tables, ignore_index=True)


def _ratings(weights: np.ndarray, features: np.ndarray, verdicts: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Ratings `[systems]` on Elo's scale; `features` `[n, systems]` are 1 for a and -1 for b."""
    strength = pd.Series(_logistic(weights, features, verdicts, C=100, fit_intercept=False).coef_[0])
    return (1000 + 400 / np.log(10) * (strength - strength.groupby(group).transform("mean"))).to_numpy()


def length_controlled(judgements: pd.DataFrame, resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """Length-controlled win rate (AlpacaEval 2: Dubois et al. 2024, arXiv 2404.04475): what would the win rate of a
    over b be if their answers had equally many characters?

        P(a wins on x) = sigmoid(theta + phi * tanh((len_a - len_b) / std(len_a - len_b)) + psi * difficulty_x)

    is fitted to each comparison, and predicted with the length term at 0. The difficulty of a prompt is how much better
    *other* systems do on it against b than against a: the difference of the log-odds of their mean verdicts, half a win
    and half a loss added, less its mean; 0 where there are none. `phi` and `psi` are held back by a weak ridge, `theta`
    is not. Whichever of two systems is called a, their rates add up to one.

    Returns:
        Columns `judge`, `system_a`, `system_b`, `win_rate`, `lc_win_rate` with `low`, `high` (95%, users drawn anew,
        and prompts that they share), `length_effect` (phi), `words_a`, `words_b` (means), `n`.
    """
    columns = [*COMPARISON, "win_rate", "lc_win_rate", "low", "high", "length_effect", "words_a", "words_b", "n"]
    rows = []
    for judge, group in judgements.groupby("judge", sort=False):
        everything = _read(group)
        compared = everything.groupby(["system_a", "system_b"], sort=False)
        for (a, b), part in compared:
            gap = (part.answer_a.map(len) - part.answer_b.map(len)).to_numpy(float)
            difficulty = _difficulty(part.prompt, everything, a, b)
            features = np.column_stack([np.tanh(gap / (gap.std() or 1)), difficulty])
            found = _resampled(_without_length, part, resamples, seed, features, part.win_rate.to_numpy())
            (rate, effect), (low, _), (high, _) = found
            words = [part[f"answer_{of}"].map(lambda text: len(text.split())).mean() for of in "ab"]
            mean = part.win_rate.mean()
            rows.append((judge, a, b, mean, rate, *np.clip((low, high), 0, 1), effect, *words, len(part)))
    return pd.DataFrame(rows, columns=columns)


def _difficulty(prompts: pd.Series, everything: pd.DataFrame, a: Hashable, b: Hashable) -> np.ndarray:
    def odds_against(system: Hashable, other: Hashable) -> pd.Series:
        """Log-odds that systems other than these two beat `system`, by prompt."""
        first = everything[(everything.system_b == system) & (everything.system_a != other)]
        second = everything[(everything.system_a == system) & (everything.system_b != other)]
        won = pd.concat([first.win_rate, 1 - second.win_rate]).groupby(pd.concat([first.prompt, second.prompt]))
        return pd.Series(logit((won.sum() + 0.5) / (won.count() + 1)))

    odds = odds_against(b, a).sub(odds_against(a, b), fill_value=0)
    return prompts.map(odds - odds.mean()).fillna(0.0).to_numpy(float)


def _without_length(weights: np.ndarray, features: np.ndarray, verdicts: np.ndarray) -> np.ndarray:
    """(win rate predicted with the first feature at 0, that feature's coefficient)."""
    won, lost = weights @ verdicts, weights @ (1 - verdicts)
    if not won or not lost:  # always or never: no length could be told from it
        return np.array([won > 0, 0.0], float)
    model = _logistic(weights, features, verdicts, C=10)
    effect, difficulty = model.coef_[0]
    predicted = expit(model.intercept_[0] + difficulty * features[:, 1])
    return np.array([np.average(predicted, weights=weights), effect])


def _logistic(weights: np.ndarray, features: np.ndarray, verdicts: np.ndarray, **options: Any) -> LogisticRegression:
    """Features `[n, k]` -> verdicts `[n]`, of which each is a win and a loss in its parts."""
    parts = np.concatenate([weights * verdicts, weights * (1 - verdicts)])
    model = LogisticRegression(tol=1e-8, **options)
    return model.fit(np.vstack([features, features]), np.repeat([1, 0], len(verdicts)), parts)


def judge_agreement(judgements: pd.DataFrame, resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """How far judges agree on the same pairs, beyond chance: Cohen's kappa (1960, scikit-learn) of every two judges and
    Krippendorff's alpha (nominal, by the library `krippendorff`) of all of them, over the verdicts a, b and tie.

    Returns:
        Columns `judges`, `measure`, `value` with `low`, `high` (95%, users drawn anew, and prompts that they share;
        NaN where there is only one verdict to agree on), `same` (share of equal verdicts), `n` (pairs that two judges
        at least have judged).
    """
    keys = ["user_id", "prompt", "system_a", "system_b"]
    codes = judgements.assign(code=judgements.preference.map({"a": 0, "tie": 1, "b": 2}).astype(float))
    codes = codes.pivot(index=keys, columns="judge", values="code")
    plans = [(KAPPA, [*two]) for two in combinations(codes, 2)]
    rows = []
    for measure, judges in plans + [(ALPHA, list(codes))] * bool(plans):
        shared = codes[judges].dropna(thresh=2)
        if shared.empty:
            continue
        value, low, high = _resampled(_agreement, shared.reset_index(), resamples, seed, shared.to_numpy(), measure)
        same = (shared.nunique(axis=1) == 1).mean()
        name = " / ".join(map(str, judges))
        rows.append((name, measure, value, *np.clip((low, high), -1, 1), same, len(shared)))
    return pd.DataFrame(rows, columns=["judges", "measure", "value", "low", "high", "same", "n"])


def _agreement(weights: np.ndarray, codes: np.ndarray, measure: str) -> float:
    drawn = codes.repeat(weights.astype(int), axis=0)  # a drawn pair counts as often as it was drawn
    if len(np.unique(drawn[~np.isnan(drawn)])) < 2:
        return np.nan
    if measure == KAPPA:
        return cohen_kappa_score(*drawn.T)
    return of_extra("krippendorff", "notebooks").alpha(drawn.T, level_of_measurement="nominal")


def _resampled(
    statistic: Callable[..., Any], table: pd.DataFrame, resamples: int, seed: int, *data: Any
) -> tuple[Any, Any, Any]:
    """`statistic(weights, *data)` with the rows' weights `[n]` all one, and its 95% interval: users are drawn anew, and
    prompts that they share."""
    draws, clusters = drawn_weights(table.user_id, table.prompt, resamples, seed)
    drawn = [statistic(weights, *data) for weights in tqdm(draws, total=resamples, disable=None, leave=False)]
    estimate = statistic(np.ones(len(table)), *data)
    return (estimate, *around(estimate, drawn, clusters))
