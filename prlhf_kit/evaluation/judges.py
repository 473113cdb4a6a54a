"""Judges: who says which of two answers a person prefers. All have one interface, and all are asked in both orders.

A language model as judge is in `llm_judge.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple, Protocol

import krippendorff
import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.data.simulated import Population
from prlhf_kit.evaluation.statistics import around, drawn_weights
from prlhf_kit.models.rewards import RewardModel, Text, preference

PREFERENCES = ("a", "b", "tie")


class Verdict(NamedTuple):
    """Which answer is preferred, and the probability that it is the first, `answer_a`.

    `preference` is "a", "b" or "tie"; None, with probability NaN, where the judge's answer could not be read.
    """

    preference: str | None
    probability: float


UNREADABLE = Verdict(None, float("nan"))


class Judge(Protocol):
    """What all judges have in common; any function of this form is one, too."""

    def __call__(
        self,
        prompt: Sequence[Text],
        answer_a: Sequence[str],
        answer_b: Sequence[str],
        user: Sequence[str | None],
    ) -> list[Verdict]:
        """One verdict each, on two answers to `prompt[i]` from the view of `user[i]` (None: nobody in particular)."""
        ...


def verdicts(probability: Iterable[float]) -> list[Verdict]:
    """Verdicts from probabilities that the first answer is preferred; exactly one half is a tie, NaN is unreadable."""
    known = [float(p) for p in probability]
    return [UNREADABLE if p != p else Verdict("a" if p > 0.5 else "b" if p < 0.5 else "tie", p) for p in known]


@dataclass(frozen=True)
class Oracle:
    """Simulated users, who know what they like: the answer of higher true utility."""

    people: Population

    def __call__(self, prompt, answer_a, answer_b, user) -> list[Verdict]:
        """See `Judge`."""
        return verdicts(self.people.preference(user, answer_a, answer_b))


@dataclass(frozen=True)
class RewardJudge:
    """Any reward model, personalised or not. An empty answer loses to any other, since it has no reward.

    Args:
        tie: answers whose preference is less sure than this, |p - 1/2| <= tie, are equal.
    """

    reward: RewardModel
    tie: float = 0.0

    def __call__(self, prompt, answer_a, answer_b, user) -> list[Verdict]:
        """See `Judge`."""
        said = np.array([[bool(a.strip()), bool(b.strip())] for a, b in zip(answer_a, answer_b, strict=True)])
        p = 0.5 + 0.5 * (said[:, 0].astype(float) - said[:, 1])
        both = np.flatnonzero(said.all(1))
        if len(both):
            of = lambda column: [column[i] for i in both]  # noqa: E731
            p[both] = preference(self.reward, of(prompt), of(answer_a), of(answer_b), of(user)).double().numpy()
        p[np.abs(p - 0.5) <= self.tie] = 0.5
        return verdicts(p.tolist())


def longer(prompt, answer_a, answer_b, user) -> list[Verdict]:
    """The control of every judge: more words win."""
    words = [(len(a.split()), len(b.split())) for a, b in zip(answer_a, answer_b, strict=True)]
    return verdicts([float(np.sign(a - b) + 1) / 2 for a, b in words])


JUDGEMENTS = (
    "judge",
    "user_id",
    "prompt",
    "system_a",
    "system_b",
    "answer_a",
    "answer_b",
    "first",
    "second",
    "preference",
    "probability",
)


def require_answers(answers: pd.DataFrame) -> None:
    """Raise `ValueError` where the columns `ANSWERS` are not all there."""
    missing = [column for column in ANSWERS if column not in answers]
    if missing:
        raise ValueError(f"answers lack {', '.join(missing)}; they have {', '.join(map(str, answers))}.")


def judged(
    judge: Judge,
    answers: pd.DataFrame,
    systems: Sequence[tuple[str, str]],
    name: str,
    prompts: dict[str, Text] | None = None,
) -> pd.DataFrame:
    """The tidy table of judgements: every two answers to the same prompt for the same user, judged in both orders.

    A verdict counts only where both orders agree; where they differ it is a tie, and where one of them could not be
    read there is no verdict.

    Args:
        judge: asked once, with all pairs in both orders.
        answers: `system`, `user_id`, `prompt`, `answer`; one answer a system, user and prompt.
        systems: which are compared, (a, b).
        name: of the judge.
        prompts: what the judge is shown as prompt, by its text in `answers`: a dialogue's messages, for instance.

    Returns:
        One row a pair, columns `JUDGEMENTS`: `first` is the verdict ("a", "b", "tie") with system a's answer shown
        first and `second` with b's first, both in terms of a and b, None where unreadable; `preference` what counts,
        None where there is no verdict; `probability` that a is preferred, the mean over both orders. Where the users of
        answers are not known (None), each prompt counts as asked by somebody else: `user_id` is then "somebody: " and
        the prompt.
    """
    pairs = _pairs(answers, systems)
    shown = [(prompts or {}).get(text, text) for text in pairs.prompt]
    a, b = pairs.answer_a.tolist(), pairs.answer_b.tolist()
    users = [None if pd.isna(user) else user for user in pairs.user_id]  # NaN, as pandas may have it
    found = judge(shown * 2, a + b, b + a, users * 2)
    if len(found) != 2 * len(pairs):
        raise ValueError(f"the judge {name!r} gave {len(found)} verdicts on {2 * len(pairs)} pairs, expected one each.")
    strange = {v.preference for v in found} - {*PREFERENCES, None}
    if strange:
        raise ValueError(f"the judge {name!r} prefers {strange.pop()!r}, expected one of {PREFERENCES}, or None.")
    swapped = {"a": "b", "b": "a", "tie": "tie", None: None}
    first, second = found[: len(pairs)], found[len(pairs) :]
    of_a = [v.preference for v in first]
    of_b = [swapped[v.preference] for v in second]
    agree = [agreed(one, other) for one, other in zip(of_a, of_b, strict=True)]
    pairs["judge"] = name
    pairs["first"], pairs["second"], pairs["preference"] = of_a, of_b, agree
    pairs["probability"] = [
        (v.probability + 1 - w.probability) / 2 if None not in (v.preference, w.preference) else np.nan
        for v, w in zip(first, second, strict=True)
    ]
    pairs["user_id"] = [f"somebody: {p}" if u is None else u for u, p in zip(users, pairs.prompt, strict=True)]
    return pairs[list(JUDGEMENTS)]


def comparable(answers: pd.DataFrame) -> list[tuple[str, str]]:
    """All two systems that answered a prompt for the same user, in the order of their first answers."""
    asked: dict[Any, set] = {
        system: set(zip(part.user_id, part.prompt, strict=True))
        for system, part in answers.groupby("system", sort=False)
    }
    return [(a, b) for a, b in combinations(asked, 2) if asked[a] & asked[b]]


def agreed(first: str | None, second: str | None) -> str | None:
    """The verdict of two orders, both in terms of a and b.

    >>> agreed("a", "a"), agreed("a", "b"), agreed("tie", "b"), agreed("a", None)
    ('a', 'tie', 'tie', None)
    """
    if first is None or second is None:
        return None
    return first if first == second else "tie"


def _pairs(answers: pd.DataFrame, systems: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """`user_id`, `prompt`, `system_a`, `system_b`, `answer_a`, `answer_b` of all two answers that can be compared."""
    require_answers(answers)
    texts = [text for column in ("prompt", "answer") for text in answers[column] if not isinstance(text, str)]
    if texts:
        raise ValueError(f"{len(texts)} prompts or answers are no text, for instance {texts[0]!r}; expected text.")
    keys = ["user_id", "prompt"]
    twice = answers.duplicated(["system", *keys])
    if twice.any():
        row = answers[twice].iloc[0]
        raise ValueError(
            f"{row.system!r} has two answers for user {row.user_id!r} to {str(row.prompt)[:60]!r}; expected one. "
            "Average over samples, or give them different systems' names."
        )
    tables = []
    for a, b in systems:
        for system in (a, b):
            if not (answers.system == system).any():
                raise ValueError(f"no answers of {system!r}; there are {', '.join(map(str, answers.system.unique()))}.")
        one, other = (answers[answers.system == s][[*keys, "answer"]] for s in (a, b))
        both = one.merge(other, on=keys, suffixes=("_a", "_b"), validate="one_to_one")
        if both.empty:
            raise ValueError(f"{a!r} and {b!r} have no user and prompt in common.")
        tables.append(both.assign(system_a=a, system_b=b))
    return pd.concat(tables, ignore_index=True)


def judge_agreement(judgements: pd.DataFrame, resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """How far judges agree on the same pairs, beyond chance: Cohen's kappa (1960, scikit-learn) of every two judges and
    Krippendorff's alpha (nominal, by the library `krippendorff`) of all of them, over the verdicts a, b and tie.

    Returns:
        Columns `judges`, `measure`, `value` with `low`, `high` (95%, users drawn anew, and prompts that they share;
        NaN where there is only one verdict to agree on), `same` (share of equal verdicts), `n` (pairs that two judges
        at least have judged).
    """
    keys = ["user_id", "prompt", "system_a", "system_b"]
    table = judgements.pivot(index=keys, columns="judge", values="preference")
    codes = table.apply(lambda column: column.map({"a": 0, "tie": 1, "b": 2})).astype(float)
    asked = [(one, other) for i, one in enumerate(codes) for other in list(codes)[i + 1 :]]
    plans = [(f"{one} / {other}", "Cohen's kappa", _kappa, [one, other]) for one, other in asked]
    if len(asked):
        plans.append((" / ".join(map(str, codes)), "Krippendorff's alpha", _alpha, list(codes)))
    rows = []
    for name, label, measure, judges in plans:
        shared = codes[judges].dropna(thresh=2)
        if shared.empty:
            continue
        values = shared.to_numpy()
        draws, clusters = drawn_weights(
            shared.index.get_level_values("user_id"), shared.index.get_level_values("prompt"), resamples, seed
        )
        # a drawn pair counts as often as it was drawn
        found = [measure(values.repeat(weights.astype(int), axis=0)) for weights in draws]
        low, high = np.clip(around(measure(values), found, clusters), -1, 1)
        same = (shared.nunique(axis=1) == 1).mean()
        rows.append((name, label, measure(values), low, high, same, len(shared)))
    return pd.DataFrame(rows, columns=["judges", "measure", "value", "low", "high", "same", "n"])


def _kappa(codes: np.ndarray) -> float:
    return cohen_kappa_score(*codes.T) if len(np.unique(codes)) > 1 else np.nan


def _alpha(codes: np.ndarray) -> float:
    varied = len(np.unique(codes[~np.isnan(codes)])) > 1
    return krippendorff.alpha(codes.T, level_of_measurement="nominal") if varied else np.nan
