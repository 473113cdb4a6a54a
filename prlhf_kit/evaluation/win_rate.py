"""What judgements say: win rates, ratings of many systems, length control, position bias.

Every function takes the tidy table of `judges.judged`. A tie is one half; where a judge's answer could not be read
there is no verdict, and it is counted (`unread`), never a win.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from prlhf_kit.evaluation.metrics import ranked_right
from prlhf_kit.evaluation.statistics import (
    cluster_bootstrap,
    crossed_bootstrap,
    detectable,
    expanded,
    holm,
    permutation_test,
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

    Returns:
        One row for each value of `by`: these columns, `win_rate` with `low`, `high` (95%, clustered by user),
        `low_both`, `high_both` (users and prompts drawn anew), the shares `win`, `tie` and `loss`, `n` (verdicts),
        `users`, `unread` (pairs without a verdict), `p` (two-sided permutation test of 1/2 that swaps whole users'
        signs), `p_holm` (corrected for all rows of this table) and `detectable` (the least true distance from 1/2 that
        would be found with probability 0.8).
    """
    rows = []
    for names, group in judgements.groupby(list(by), sort=False):
        part = _read(group)
        row = dict(zip(by, names, strict=True)) | {"n": len(part), "unread": len(group) - len(part)}
        if len(part):
            i = cluster_bootstrap(part.won, part.user_id, seed=seed)
            both = crossed_bootstrap(part.won, part.user_id, part.prompt, seed=seed)
            row |= {
                "win_rate": i.estimate, "low": i.low, "high": i.high, "low_both": both.low, "high_both": both.high,
                "win": (part.won == 1).mean(), "tie": (part.won == 0.5).mean(), "loss": (part.won == 0).mean(),
                "users": i.clusters, "p": permutation_test(part.won - 0.5, part.user_id, seed=seed),
                "detectable": detectable(part.won - 0.5, part.user_id),
            }  # fmt: skip
        rows.append(row)
    columns = ("win_rate", "low", "high", "low_both", "high_both", "win", "tie", "loss", "n", "users", "unread", "p")
    table = pd.DataFrame(rows, columns=[*by, *columns, "detectable"])
    known = table.p.notna()
    table.loc[known, "p_holm"] = holm(table.p[known].tolist())
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
    for names, part in by_user(judgements, by, seed).groupby(list(by), sort=False):
        verdict = ranked_right(part.win_rate.round(12), np.full(len(part), 0.5))
        i = cluster_bootstrap(verdict, part.user_id, seed=seed)
        counts = [int((verdict == value).sum()) for value in (1, 0.5, 0)]
        rows.append((*names, i.estimate, i.low, i.high, *counts, i.n))
    columns = [*by, "user_win_rate", "low", "high", "users_won", "users_tied", "users_lost", "n"]
    return pd.DataFrame(rows, columns=columns)


def position_bias(judgements: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Does a judge prefer what it is shown first? (Zheng et al. 2023, arXiv 2306.05685, Section 3.3.)

    Returns:
        Columns `judge`, `position_bias` with `low`, `high` (95%, clustered by user): how much more often the answer
        shown first won than the one shown second, from -1 (always the second) over 0 to 1 (always the first);
        `disagree` (share of pairs on which the two orders do not say the same), `n` (pairs read in both orders) and
        `unread` (pairs that were not).
    """
    rows = []
    for judge, group in judgements.groupby("judge", sort=False):
        part = group.dropna(subset=["first", "second"])
        row = {"judge": judge, "n": len(part), "unread": len(group) - len(part)}
        if len(part):
            # in the first order a's answer is shown first, in the second order b's
            first = part["first"].map(VALUE) - part["second"].map(VALUE)
            i = cluster_bootstrap(first, part.user_id, seed=seed)
            row |= {"position_bias": i.estimate, "low": i.low, "high": i.high,
                    "disagree": (part["first"] != part["second"]).mean()}  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows, columns=["judge", "position_bias", "low", "high", "disagree", "n", "unread"])


def bradley_terry(judgements: pd.DataFrame, resamples: int = 500, seed: int = 0) -> pd.DataFrame:
    """Ratings of many systems from all their comparisons: P(a beats b) = sigmoid(s_a - s_b) (Bradley & Terry 1952), by
    logistic regression as in Chatbot Arena (Chiang et al. 2024, arXiv 2403.04132), a tie as half a win for each.

    A weak ridge (variance 100) keeps the rating of a system finite that never lost.

    Returns:
        For each judge, best first: `judge`, `system`, `rating` with `low`, `high` (95%, users drawn anew) on Elo's
        scale (mean 1000; 400 points are odds of 10 to 1), `n` (verdicts on it).
    """
    tables = []
    for judge, part in _read(judgements).groupby("judge", sort=False):
        systems = sorted({*part.system_a, *part.system_b})
        place = {system: i for i, system in enumerate(systems)}
        a, b = part.system_a.map(place).to_numpy(), part.system_b.map(place).to_numpy()
        users, user = np.unique(part.user_id.to_numpy(str), return_inverse=True)
        wins = np.zeros((len(users), len(systems), len(systems)))  # [user, winner, loser]
        np.add.at(wins, (user, a, b), part.won)
        np.add.at(wins, (user, b, a), 1 - part.won)
        low = high = np.full(len(systems), np.nan)
        if len(users) > 1:
            draws = np.random.default_rng(seed).multinomial(len(users), np.full(len(users), 1 / len(users)), resamples)
            found = np.array([_ratings(np.tensordot(draw, wins, 1)) for draw in draws])
            low, high = np.quantile(found, expanded(len(users)), axis=0)
        games = [int(((a == i) | (b == i)).sum()) for i in range(len(systems))]
        table = pd.DataFrame({"judge": judge, "system": systems, "rating": _ratings(wins.sum(0))})
        table = table.assign(low=low, high=high, n=games)
        tables.append(table.sort_values("rating", ascending=False))
    if not tables:
        return pd.DataFrame(columns=["judge", "system", "rating", "low", "high", "n"])
    return pd.concat(tables, ignore_index=True)


def _ratings(wins: np.ndarray) -> np.ndarray:
    """Ratings on Elo's scale from `wins[winner, loser]`."""
    winner, loser = np.nonzero(wins)
    rows = np.arange(len(winner))
    features = np.zeros((len(winner), len(wins)))
    features[rows, winner], features[rows, loser] = 1, -1
    model = LogisticRegression(C=100, fit_intercept=False, tol=1e-8)
    # each win once as it is and once seen from the loser, so that both outcomes are there
    model.fit(np.vstack([features, -features]), np.repeat([1, 0], len(winner)), np.tile(wins[winner, loser], 2))
    strength = model.coef_[0]
    return 1000 + 400 / np.log(10) * (strength - strength.mean())


def length_controlled(
    judgements: pd.DataFrame, length: Callable[[str], int] = len, resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Length-controlled win rate (AlpacaEval 2: Dubois et al. 2024, arXiv 2404.04475, Eq. 1-3): what would the win rate
    of a over b be if their answers were equally long?

        P(a wins on x) = sigmoid(theta + phi * tanh((len_a - len_b) / std(len_a - len_b)) + psi * difficulty_x)

    is fitted to each comparison, and predicted with the length term at 0. The difficulty of a prompt is the log-odds of
    all *other* comparisons' mean verdict on it, half a win and half a loss added, less its mean; 0 where there are
    none. `phi` and `psi` are held back by a weak ridge, `theta` is not.

    Args:
        length: of an answer; the default counts characters, as AlpacaEval does.

    Returns:
        Columns `judge`, `system_a`, `system_b`, `win_rate`, `lc_win_rate` with `low`, `high` (95%, users drawn anew),
        `length_effect` (phi), `words_a`, `words_b` (means), `n`.
    """
    rows = []
    for judge, group in judgements.groupby("judge", sort=False):
        everything = _read(group)
        for (a, b), part in everything.groupby(["system_a", "system_b"], sort=False):
            gap = np.array([length(x) - length(y) for x, y in zip(part.answer_a, part.answer_b, strict=True)], float)
            others = everything[(everything.system_a != a) | (everything.system_b != b)]
            features = np.column_stack([np.tanh(gap / (gap.std() or 1)), _difficulty(part, others)])
            verdicts, users = part.won.to_numpy(), part.user_id.to_numpy(str)
            estimate, effect = _without_length(features, verdicts)
            low = high = np.nan
            names = np.unique(users)
            if len(names) > 1:
                rng, found = np.random.default_rng(seed), []
                members = [np.flatnonzero(users == name) for name in names]
                for draw in rng.integers(len(names), size=(resamples, len(names))):
                    rows_drawn = np.concatenate([members[i] for i in draw])
                    found.append(_without_length(features[rows_drawn], verdicts[rows_drawn])[0])
                low, high = np.quantile(found, expanded(len(names)))
            words = [np.mean([len(text.split()) for text in part[column]]) for column in ("answer_a", "answer_b")]
            rows.append((judge, a, b, verdicts.mean(), estimate, low, high, effect, *words, len(part)))
    columns = ["judge", "system_a", "system_b", "win_rate", "lc_win_rate", "low", "high", "length_effect", "words_a",
               "words_b", "n"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _difficulty(part: pd.DataFrame, others: pd.DataFrame) -> np.ndarray:
    grouped = others.groupby("prompt").won
    odds = logit((grouped.sum() + 0.5) / (grouped.count() + 1))
    return part.prompt.map(odds - odds.mean()).fillna(0.0).to_numpy(float)


def _without_length(features: np.ndarray, verdicts: np.ndarray) -> tuple[float, float]:
    """(win rate predicted with the first feature at 0, that feature's coefficient)."""
    if len(np.unique(verdicts)) == 1 and verdicts[0] != 0.5:  # always or never: no length could be told from it
        return float(verdicts[0]), 0.0
    model = LogisticRegression(C=10, tol=1e-8)
    both = np.vstack([features, features])
    weights = np.concatenate([verdicts, 1 - verdicts])
    model.fit(both[weights > 0], np.repeat([1, 0], len(verdicts))[weights > 0], weights[weights > 0])
    effect, difficulty = model.coef_[0]
    return float(expit(model.intercept_[0] + difficulty * features[:, 1]).mean()), float(effect)
