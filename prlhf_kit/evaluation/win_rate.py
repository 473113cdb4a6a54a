"""What judgements (the table of `judges.judged`) say: win rates, ratings of many systems, length control, position
bias, agreement of judges. A tie is one half (but for the papers' rules of `user_win_rates`); where an answer could not
be read there is no verdict: it is `unread`, no win."""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

from prlhf_kit.data.registry import require_known
from prlhf_kit.evaluation.accuracy import ranked_right
from prlhf_kit.evaluation.intervals import ALL, BY_USER_AND_PROMPT, intervals, with_holm
from prlhf_kit.evaluation.statistics import bootstrap
from prlhf_kit.files import of_extra

VALUE = {"a": 1.0, "tie": 0.5, "b": 0.0}
COMPARISON = ("judge", "system_a", "system_b")
FIRST, DISAGREE = "prefers the first", "orders disagree"
KAPPA, ALPHA = "Cohen's kappa", "Krippendorff's alpha"
RULES = ("halves", "prlhf", "psoups")


def with_wins(judgements: pd.DataFrame) -> pd.DataFrame:
    """Judgements as a long table: `win_rate` is 1 where system a won, 1/2 for a tie, 0 where b won, NaN without a
    verdict."""
    return judgements.assign(win_rate=judgements.preference.map(VALUE).astype(float))


def win_rates(
    judgements: pd.DataFrame,
    by: Sequence[str] = COMPARISON,
    cluster: str | Sequence[str] = BY_USER_AND_PROMPT,
    seed: int = 0,
) -> pd.DataFrame:
    """Win rate of system a over b in every comparison: wins and half the ties, over all verdicts.

    Returns `intervals` of `win_rate`, tested against 1/2 (`p_holm`: over all rows with the same first column, a
    judge's), with the shares `win`, `tie`, `loss`, and `users`, `prompts`, `unread`.
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
    """`win_rates` among each `community` (the `user_id`) and among all of them (`ALL`). Communities have names, and
    those in the table are all that one asks about, so that intervals are by prompt; `p_holm` is over the communities of
    a comparison.

    `named=False`: users are draws from many people, and "all" says what other users would give as well.
    """
    if (judgements.user_id == ALL).any():
        raise ValueError(f"one user is called {ALL!r}, which stands for all of them here. Rename it in the data.")
    by = [*COMPARISON, "community"]
    own = win_rates(judgements.assign(community=judgements.user_id), by, "prompt", seed)
    everyone = judgements.assign(community=ALL)
    together = win_rates(everyone, by, "prompt" if named else BY_USER_AND_PROMPT, seed)
    own = with_holm(own.drop(columns="p_holm"), COMPARISON)
    return pd.concat([own, together.assign(p_holm=together.p)], ignore_index=True)


def user_win_rates(judgements: pd.DataFrame, rule: str = "halves", seed: int = 0) -> pd.DataFrame:
    """Win rate over users, each of whom counts alike, by one of three rules:

    - "halves", the kit's own: a user is won whose own win rate is above one half; a tie, and a user at exactly one
      half, count one half.
    - "prlhf" (P-RLHF's evaluation on PRISM; Li et al. 2024, arXiv 2402.05133): a user's wins and ties together are
      their rate, and users at one half count as won. Over samples, a tie is a win of both sides.
    - "psoups" (its evaluation on Personalized Soups): the mean of the users' shares of wins; a tie is a loss.

    Returns `intervals` of `user_win_rate` by `COMPARISON`, over users, with `users_won`, `users_tied`, `users_lost`
    (above, at and below one half), and `sample_win_rate`, that over all verdicts by the same rule.
    """
    require_known([rule], RULES, "rule")
    read = with_wins(judgements).dropna(subset="win_rate")
    read = read.assign(win=read.win_rate == 1, tie=read.win_rate == 0.5, n=1)
    counted = read.groupby([*COMPARISON, "user_id"], sort=False)[["win", "tie", "n"]].sum().reset_index()
    tie = {"halves": 0.5, "prlhf": 1.0, "psoups": 0.0}[rule]
    share = (counted.win + tie * counted.tie) / counted.n
    won = ranked_right(share.round(12), 0.5)
    names = {"users_won": 1.0, "users_tied": 0.5, "users_lost": 0.0}
    value = {"halves": won, "prlhf": np.ceil(won), "psoups": share}[rule]
    own = counted.assign(user_win_rate=value, **{name: won == one for name, one in names.items()})
    numbers: dict[str, Any] = {name: (name, "sum") for name in names}
    found = intervals(own, "user_win_rate", COMPARISON, "user_id", seed=seed, **numbers)
    samples = counted.groupby([*COMPARISON], sort=False)[["win", "tie", "n"]].sum()
    both = samples.tie if rule == "prlhf" else 0  # ties are then wins, and losses too
    return found.assign(sample_win_rate=((samples.win + tie * samples.tie) / (samples.n + both)).to_numpy())


def by_measure(judgements: pd.DataFrame, system: str, seed: int = 0) -> dict[str, pd.DataFrame]:
    """How often `system` wins, by three measures: `win_rate` and `user_win_rate`, which are corrected for its own
    comparisons only, since they are what was asked, and `lc_win_rate`. The table of each measure has its intervals."""
    own = judgements[judgements.system_a == system]
    tables = {"win_rate": win_rates(own, seed=seed), "user_win_rate": user_win_rates(own, seed=seed)}
    return tables | {"lc_win_rate": length_controlled(own, seed=seed)}


def summary(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The tables of `by_measure` as one: `win_rates` with `users_won`, `users_tied`, `users_lost` and `lc_win_rate`."""
    keys = list(COMPARISON)
    users = tables["user_win_rate"][[*keys, "users_won", "users_tied", "users_lost"]]
    controlled = tables["lc_win_rate"][[*keys, "lc_win_rate"]]
    return tables["win_rate"].merge(users, "left", on=keys).merge(controlled, "left", on=keys)


def position_bias(judgements: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Does a judge prefer what it is shown first? (Zheng et al. 2023, arXiv 2306.05685, Section 3.3.)

    `intervals` by `judge` and `measure`, over pairs read in both orders: `FIRST`, how much more often the answer shown
    first won, from -1 over 0 to 1, and `DISAGREE`, the share of pairs on which the orders differ; with `unread`.
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
    logistic regression as in Chatbot Arena (Chiang et al. 2024, arXiv 2403.04132), a tie as half a win for each. A weak
    ridge (prior variance 100) keeps the rating of a system finite that always won or never; its distance from the
    others then depends on the ridge.

    Returns `judge`, `group`, `system`, `rating`, `low`, `high` (Elo's scale: mean 1000; 400 points are odds of 10 to
    1), `n`, best first. Systems that no chain of comparisons connects are in different groups, each with a scale of its
    own.
    """
    tables = []
    for judge, part in with_wins(judgements).dropna(subset="win_rate").groupby("judge", sort=False):
        systems = sorted({*part.system_a, *part.system_b})
        a, b = (part[name].map(systems.index).to_numpy() for name in ("system_a", "system_b"))
        features = np.eye(len(systems))[a] - np.eye(len(systems))[b]
        group = connected_components(features.T @ features, directed=False)[1] + 1
        statistic = partial(_ratings, features=features, verdicts=part.win_rate.to_numpy(), group=group)
        rating, low, high = bootstrap(statistic, part.user_id, part.prompt, resamples, seed)
        found = {"judge": judge, "group": group, "system": systems, "rating": rating, "low": low, "high": high}
        table = pd.DataFrame(found).assign(n=np.bincount([*a, *b]))
        tables.append(table.sort_values(["group", "rating"], ascending=[True, False]))
    if not tables:
        return pd.DataFrame(columns=["judge", "group", "system", "rating", "low", "high", "n"])
    return pd.concat(tables, ignore_index=True)


def _ratings(weights: np.ndarray, features: np.ndarray, verdicts: np.ndarray, group: np.ndarray) -> np.ndarray:
    strength = pd.Series(_logistic(weights, features, verdicts, C=100, fit_intercept=False).coef_[0])
    return (1000 + 400 / np.log(10) * (strength - strength.groupby(group).transform("mean"))).to_numpy()


def length_controlled(judgements: pd.DataFrame, resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """Length-controlled win rate (AlpacaEval 2: Dubois et al. 2024, arXiv 2404.04475): what would the win rate of a
    over b be if their answers had equally many characters?

        P(a wins) = sigmoid(theta + phi * tanh((len_a - len_b) / std(len_a - len_b)))

    is fitted to each comparison, with a weak ridge on `phi`, and predicted with the length term at 0. AlpacaEval's term
    for a prompt's difficulty is left out, as it is told from a large leaderboard.

    Returns `judge`, `system_a`, `system_b`, `win_rate`, `lc_win_rate`, `low`, `high`, `length_effect` (phi), `n`.
    """
    columns = [*COMPARISON, "win_rate", "lc_win_rate", "low", "high", "length_effect", "n"]
    rows = []
    for compared, part in with_wins(judgements).dropna(subset="win_rate").groupby([*COMPARISON], sort=False):
        gap = (part.answer_a.map(len) - part.answer_b.map(len)).to_numpy(float)
        features = np.tanh(gap / (gap.std() or 1))[:, None]
        statistic = partial(_without_length, features=features, verdicts=part.win_rate.to_numpy())
        (rate, effect), (low, _), (high, _) = bootstrap(statistic, part.user_id, part.prompt, resamples, seed)
        rows.append((*compared, part.win_rate.mean(), rate, *np.clip((low, high), 0, 1), effect, len(part)))
    return pd.DataFrame(rows, columns=columns)


def _without_length(weights: np.ndarray, features: np.ndarray, verdicts: np.ndarray) -> np.ndarray:
    """(win rate predicted with the feature at 0, its coefficient)."""
    won, lost = weights @ verdicts, weights @ (1 - verdicts)
    if not won or not lost:  # always or never: no length could be told from it
        return np.array([won > 0, 0.0], float)
    model = _logistic(weights, features, verdicts, C=10)
    return np.array([expit(model.intercept_[0]), model.coef_[0, 0]])


def _logistic(weights: np.ndarray, features: np.ndarray, verdicts: np.ndarray, **options: Any) -> LogisticRegression:
    """Features `[n, k]` -> verdicts `[n]`, of which each is a win and a loss in its parts."""
    parts = np.concatenate([weights * verdicts, weights * (1 - verdicts)])
    model = LogisticRegression(tol=1e-8, **options)
    return model.fit(np.vstack([features, features]), np.repeat([1, 0], len(verdicts)), parts)


def judge_agreement(judgements: pd.DataFrame, resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """How far judges agree beyond chance on the verdicts a, b, tie: Cohen's kappa (1960, scikit-learn) of every two
    judges and Krippendorff's alpha (nominal, by `krippendorff`) of all. Returns `judges`, `measure`, `value`, `low`,
    `high`, `same` (share of equal verdicts), `n` (pairs that two of them judged)."""
    keys = ["user_id", "prompt", "system_a", "system_b"]
    codes = judgements.assign(code=judgements.preference.map({"a": 0, "tie": 1, "b": 2}).astype(float))
    codes = codes.pivot(index=keys, columns="judge", values="code")
    plans = [(KAPPA, [*two]) for two in combinations(codes, 2)]
    rows = []
    for measure, judges in plans + [(ALPHA, list(codes))] * bool(plans):
        shared = codes[judges].dropna(thresh=2)
        if shared.empty:
            continue
        users, prompts = (shared.index.get_level_values(name) for name in ("user_id", "prompt"))
        statistic = partial(_agreement, codes=shared.to_numpy(), measure=measure)
        value, low, high = bootstrap(statistic, users, prompts, resamples, seed)
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
    return of_extra("krippendorff").alpha(drawn.T, level_of_measurement="nominal")
