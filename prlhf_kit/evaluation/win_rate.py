"""What judgements say: win rates, ratings of many systems, length control, position bias.

Every function takes the tidy table of `judges.judged`. A tie is one half; where a judge's answer could not be read
there is no verdict, and it is counted (`unread`), never a win.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from tqdm.auto import tqdm

from prlhf_kit.evaluation.accuracy import ranked_right
from prlhf_kit.evaluation.statistics import (
    around,
    cluster_bootstrap,
    crossed_interval,
    crossed_test,
    detectable,
    drawn_weights,
    holm,
)

VALUE = {"a": 1.0, "tie": 0.5, "b": 0.0}
COMPARISON = ("judge", "system_a", "system_b")


def won(judgements: pd.DataFrame) -> np.ndarray:
    """1 where system a won, 1/2 for a tie, 0 where b won, NaN without a verdict: `[n]`."""
    return judgements.preference.map(VALUE).to_numpy(float)


def _read(judgements: pd.DataFrame) -> pd.DataFrame:
    """Judgements that have a verdict, with the column `won`."""
    return judgements.assign(won=won(judgements)).dropna(subset="won")


def win_rates(judgements: pd.DataFrame, by: Sequence[str] = COMPARISON, seed: int = 0) -> pd.DataFrame:
    """Win rate of system a over b in every comparison, per sample: wins and half the ties, over all verdicts.

    Where users answer the same prompts, intervals and tests say what other users and other prompts would give.

    Returns:
        One row for each value of `by`: these columns, `win_rate` with `low`, `high` (95%, `crossed_interval`), the
        shares `win`, `tie` and `loss`, `n` (verdicts), `users`, `prompts`, `unread` (pairs without a verdict), `p`
        (`crossed_test` of one half), `p_holm` (corrected for all rows of the table with the same first column: a
        judge's) and `detectable` (the least true distance from 1/2 that such users and prompts would show with
        probability 0.8, uncorrected).
    """
    rows = []
    for names, group in judgements.groupby(list(by), sort=False):
        part = _read(group)
        row = dict(zip(by, names, strict=True)) | {"n": len(part), "unread": len(group) - len(part)}
        if len(part):
            i = crossed_interval(part.won, part.user_id, part.prompt, seed=seed)
            row |= {
                "win_rate": i.estimate,
                "low": i.low,
                "high": i.high,
                "win": (part.won == 1).mean(),
                "tie": (part.won == 0.5).mean(),
                "loss": (part.won == 0).mean(),
                "users": part.user_id.nunique(),
                "prompts": part.prompt.nunique(),
                "p": crossed_test(part.won - 0.5, part.user_id, part.prompt, seed=seed),
                "detectable": detectable(part.won - 0.5, part.user_id, part.prompt),
            }
        rows.append(row)
    columns = ("win_rate", "low", "high", "win", "tie", "loss", "n", "users", "prompts", "unread", "p", "detectable")
    table = pd.DataFrame(rows, columns=[*by, *columns])
    table["p_holm"] = np.nan
    for _, part in table[table.p.notna()].groupby(by[0], sort=False):
        table.loc[part.index, "p_holm"] = holm(part.p.tolist())
    return table


def by_user(judgements: pd.DataFrame, by: Sequence[str] = COMPARISON, seed: int = 0) -> pd.DataFrame:
    """Each user's own win rate: columns `by`, `user_id`, `win_rate`, `low`, `high` (95%, clustered by prompt), `n`."""
    rows = []
    for names, part in _read(judgements).groupby([*by, "user_id"], sort=False):
        i = cluster_bootstrap(part.won, part.prompt, seed=seed)
        rows.append((*names, i.estimate, i.low, i.high, i.n))
    return pd.DataFrame(rows, columns=[*by, "user_id", "win_rate", "low", "high", "n"])


def user_win_rates(judgements: pd.DataFrame, by: Sequence[str] = COMPARISON, seed: int = 0) -> pd.DataFrame:
    """Win rate per user, P-RLHF's second number (Li et al. 2024, arXiv 2402.05133, Section 5): a user is won whose own
    win rate is above one half. Users at exactly one half are ties and count one half.

    Returns:
        Columns `by`, `user_win_rate` with `low`, `high` (95%, over users), the numbers `users_won`, `users_tied`,
        `users_lost`, and `n` (users).
    """
    rows = []
    own = _read(judgements).groupby([*by, "user_id"], sort=False).won.mean().rename("win_rate").reset_index()
    for names, part in own.groupby(list(by), sort=False):
        verdict = ranked_right(part.win_rate.round(12), np.full(len(part), 0.5))
        i = cluster_bootstrap(verdict, part.user_id, seed=seed)
        counts = [int((verdict == value).sum()) for value in (1, 0.5, 0)]
        rows.append((*names, i.estimate, i.low, i.high, *counts, i.n))
    columns = [*by, "user_win_rate", "low", "high", "users_won", "users_tied", "users_lost", "n"]
    return pd.DataFrame(rows, columns=columns)


def position_bias(judgements: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Does a judge prefer what it is shown first? (Zheng et al. 2023, arXiv 2306.05685, Section 3.3.)

    Returns:
        Columns `judge`, `position_bias` with `low`, `high` (95%, `crossed_interval`): how much more often the answer
        shown first won than the one shown second, from -1 (always the second) over 0 to 1 (always the first);
        `disagree` with `disagree_low`, `disagree_high` (share of pairs on which the two orders do not say the same),
        `n` (pairs read in both orders) and `unread` (pairs that were not).
    """
    rows = []
    for judge, group in judgements.groupby("judge", sort=False):
        part = group.dropna(subset=["first", "second"])
        row = {"judge": judge, "n": len(part), "unread": len(group) - len(part)}
        if len(part):
            # in the first order a's answer is shown first, in the second order b's
            first = part["first"].map(VALUE) - part["second"].map(VALUE)
            i = crossed_interval(first, part.user_id, part.prompt, seed=seed)
            j = crossed_interval(part["first"] != part["second"], part.user_id, part.prompt, seed=seed)
            row |= {
                "position_bias": i.estimate,
                "low": i.low,
                "high": i.high,
                "disagree": j.estimate,
                "disagree_low": j.low,
                "disagree_high": j.high,
            }
        rows.append(row)
    columns = ["position_bias", "low", "high", "disagree", "disagree_low", "disagree_high", "n", "unread"]
    return pd.DataFrame(rows, columns=["judge", *columns])


def bradley_terry(judgements: pd.DataFrame, resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """Ratings of many systems from all their comparisons: P(a beats b) = sigmoid(s_a - s_b) (Bradley & Terry 1952), by
    logistic regression as in Chatbot Arena (Chiang et al. 2024, arXiv 2403.04132), a tie as half a win for each.

    A weak ridge (a normal prior on s with variance 100) keeps the rating of a system finite that always won or never;
    how far out it lies is then the ridge's doing. Systems must be connected by comparisons to be comparable.

    Returns:
        For each judge, best first: `judge`, `system`, `rating` with `low`, `high` (95%, users drawn anew, and prompts
        that they share) on Elo's scale (mean 1000; 400 points are odds of 10 to 1), `n` (verdicts on it).
    """
    tables = []
    for judge, part in _read(judgements).groupby("judge", sort=False):
        systems = sorted({*part.system_a, *part.system_b})
        place = {system: i for i, system in enumerate(systems)}
        a, b = part.system_a.map(place).to_numpy(), part.system_b.map(place).to_numpy()
        verdicts = part.won.to_numpy()
        draws, clusters = drawn_weights(part.user_id, part.prompt, resamples, seed)
        rating = _ratings(a, b, verdicts, np.ones(len(part)), len(systems))
        shown = tqdm(draws, total=resamples, desc="ratings", disable=None, leave=False)
        drawn = [_ratings(a, b, verdicts, weights, len(systems)) for weights in shown]
        low, high = around(rating, drawn, clusters)
        games = [int(((a == i) | (b == i)).sum()) for i in range(len(systems))]
        table = pd.DataFrame({"judge": judge, "system": systems, "rating": rating})
        tables.append(table.assign(low=low, high=high, n=games).sort_values("rating", ascending=False))
    if not tables:
        return pd.DataFrame(columns=["judge", "system", "rating", "low", "high", "n"])
    return pd.concat(tables, ignore_index=True)


def _ratings(a: np.ndarray, b: np.ndarray, verdicts: np.ndarray, weights: np.ndarray, systems: int) -> np.ndarray:
    """Ratings `[systems]` on Elo's scale, from the systems' numbers, the verdicts and their weights, `[n]` each."""
    wins = np.zeros((systems, systems))  # [winner, loser]
    np.add.at(wins, (a, b), weights * verdicts)
    np.add.at(wins, (b, a), weights * (1 - verdicts))
    winner, loser = np.nonzero(wins)
    features = np.eye(systems)[winner] - np.eye(systems)[loser]
    model = LogisticRegression(C=100, fit_intercept=False, tol=1e-8)
    # half of each win as it is and half seen from the loser, so that both outcomes are there
    halves = np.tile(wins[winner, loser] / 2, 2)
    model.fit(np.vstack([features, -features]), np.repeat([1, 0], len(winner)), halves)
    strength = model.coef_[0]
    return 1000 + 400 / np.log(10) * (strength - strength.mean())


def length_controlled(
    judgements: pd.DataFrame, length: Callable[[str], int] = len, resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Length-controlled win rate (AlpacaEval 2: Dubois et al. 2024, arXiv 2404.04475): what would the win rate of a
    over b be if their answers were equally long?

        P(a wins on x) = sigmoid(theta + phi * tanh((len_a - len_b) / std(len_a - len_b)) + psi * difficulty_x)

    is fitted to each comparison, and predicted with the length term at 0. The difficulty of a prompt is how much better
    *other* systems do on it against b than against a: the difference of the log-odds of their mean verdicts, half a win
    and half a loss added, less its mean; 0 where there are none. `phi` and `psi` are held back by a weak ridge, `theta`
    is not. Whichever of two systems is called a, their rates add up to one.

    Args:
        length: of an answer; the default counts characters, as AlpacaEval does.

    Returns:
        Columns `judge`, `system_a`, `system_b`, `win_rate`, `lc_win_rate` with `low`, `high` (95%, users drawn anew,
        and prompts that they share), `length_effect` (phi), `words_a`, `words_b` (means), `n`.
    """
    rows = []
    for judge, group in judgements.groupby("judge", sort=False):
        everything = _read(group)
        compared = everything.groupby(["system_a", "system_b"], sort=False)
        for (a, b), part in tqdm(compared, desc="length-controlled", disable=None, leave=False):
            gap = np.array([length(x) - length(y) for x, y in zip(part.answer_a, part.answer_b, strict=True)], float)
            difficulty = _difficulty(part.prompt, everything, a, b)
            features, verdicts = np.column_stack([np.tanh(gap / (gap.std() or 1)), difficulty]), part.won.to_numpy()
            estimate, effect = _without_length(features, verdicts, np.ones(len(part)))
            draws, clusters = drawn_weights(part.user_id, part.prompt, resamples, seed)
            found = [_without_length(features, verdicts, weights)[0] for weights in draws]
            low, high = np.clip(around(estimate, found, clusters), 0, 1)
            words = [np.mean([len(text.split()) for text in part[column]]) for column in ("answer_a", "answer_b")]
            rows.append((judge, a, b, verdicts.mean(), estimate, low, high, effect, *words, len(part)))
    columns = [
        "judge",
        "system_a",
        "system_b",
        "win_rate",
        "lc_win_rate",
        "low",
        "high",
        "length_effect",
        "words_a",
        "words_b",
        "n",
    ]
    return pd.DataFrame(rows, columns=columns)


def _difficulty(prompts: pd.Series, everything: pd.DataFrame, a: Hashable, b: Hashable) -> np.ndarray:
    def odds_against(system: Hashable, other: Hashable) -> pd.Series:
        """Log-odds that systems other than these two beat `system`, by prompt."""
        first = everything[(everything.system_b == system) & (everything.system_a != other)]
        second = everything[(everything.system_a == system) & (everything.system_b != other)]
        won = pd.concat([first.won, 1 - second.won]).groupby(pd.concat([first.prompt, second.prompt]))
        return pd.Series(logit((won.sum() + 0.5) / (won.count() + 1)))

    odds = odds_against(b, a).sub(odds_against(a, b), fill_value=0)
    return prompts.map(odds - odds.mean()).fillna(0.0).to_numpy(float)


def _without_length(features: np.ndarray, verdicts: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """(win rate predicted with the first feature at 0, that feature's coefficient)."""
    won, lost = weights * verdicts, weights * (1 - verdicts)
    if not won.any() or not lost.any():  # always or never: no length could be told from it
        return float(won.any()), 0.0
    model = LogisticRegression(C=10, tol=1e-8)
    counted = np.concatenate([won, lost])
    rows = counted > 0
    model.fit(np.vstack([features, features])[rows], np.repeat([1, 0], len(verdicts))[rows], counted[rows])
    effect, difficulty = model.coef_[0]
    predicted = expit(model.intercept_[0] + difficulty * features[:, 1])
    return float(np.average(predicted, weights=weights)), float(effect)
