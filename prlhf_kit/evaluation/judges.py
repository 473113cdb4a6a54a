"""Judges: who says which of two answers a person prefers. All have one interface, and all are asked in both orders. A
language model as judge is in `llm_judge.py`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.data.simulated import Population
from prlhf_kit.models.rewards import RewardModel, Text, preference

PREFERENCES = ("a", "b", "tie")
Verdict = str | None  # which answer is preferred: "a", "b" or "tie"; None where the judge's answer could not be read
# (prompts, answers a, answers b, users) -> one verdict each, from the view of the user (None: nobody in particular)
Judge = Callable[[Sequence[Text], Sequence[str], Sequence[str], Sequence[str | None]], list[Verdict]]


def verdicts(probability: Iterable[float]) -> list[Verdict]:
    """Verdicts from probabilities that the first answer is preferred; exactly one half is a tie, NaN is unreadable."""
    return [None if p != p else "a" if p > 0.5 else "b" if p < 0.5 else "tie" for p in probability]


@dataclass(frozen=True)
class Oracle:
    """Simulated users, who know what they like: the answer of higher true utility."""

    people: Population

    def __call__(self, prompt, answer_a, answer_b, user) -> list[Verdict]:
        return verdicts(self.people.preference(user, answer_a, answer_b))


@dataclass(frozen=True)
class RewardJudge:
    """Any reward model, personalised or not. An empty answer loses to any other, since it has no reward."""

    reward: RewardModel

    def __call__(self, prompt, answer_a, answer_b, user) -> list[Verdict]:
        asked = pd.DataFrame({"prompt": list(prompt), "a": answer_a, "b": answer_b, "user": list(user)}, dtype=object)
        said_a, said_b = (asked[side].str.strip() != "" for side in "ab")
        p = 0.5 + 0.5 * (said_a.astype(float) - said_b.astype(float))
        both = asked[said_a & said_b]
        if len(both):
            columns = [both[name].tolist() for name in ("prompt", "a", "b", "user")]
            p[both.index] = preference(self.reward, *columns).double().numpy()
        return verdicts(p)


def longer(prompt, answer_a, answer_b, user) -> list[Verdict]:
    """The control of every judge: more words win."""
    words = [(len(a.split()), len(b.split())) for a, b in zip(answer_a, answer_b, strict=True)]
    return verdicts([float(np.sign(a - b) + 1) / 2 for a, b in words])


def require_answers(answers: pd.DataFrame) -> None:
    """Raise `ValueError` where the columns `ANSWERS` are not all there, or hold no texts."""
    if missing := [column for column in ANSWERS if column not in answers]:
        raise ValueError(f"answers lack {', '.join(missing)}; they have {', '.join(map(str, answers))}. Rename them.")
    if bad := [text for column in ("prompt", "answer") for text in answers[column] if not isinstance(text, str)]:
        raise ValueError(f"{len(bad)} prompts or answers are no text, for instance {bad[0]!r}; an empty one is ''.")


def judged(
    judge: Judge,
    answers: pd.DataFrame,
    systems: Sequence[tuple[str, str]],
    name: str,
    prompts: dict[str, Text] | None = None,
) -> pd.DataFrame:
    """Every two answers to the same prompt for the same user, judged in both orders: a verdict counts only where both
    agree; where they differ it is a tie, and where one could not be read there is none.

    Args:
        judge: asked once, with all pairs in both orders; `name`: its name.
        answers: `ANSWERS`, one a system, user and prompt. Users may be unknown (None): each prompt then counts as asked
            by somebody else, "somebody: " and the prompt.
        systems: which are compared, (a, b).
        prompts: what the judge is shown, by the prompt's text in `answers`: a dialogue's messages, for instance.

    Returns:
        `judge`, `user_id`, `prompt`, `system_a`, `system_b`, `answer_a`, `answer_b`; `first`, the verdict ("a", "b",
        "tie", None) with a's answer shown first, and `second`, with b's; `preference`, what counts. Raises `ValueError`
        for answers that can't be compared.
    """
    require_answers(answers)
    if not systems:
        raise ValueError("no two systems answered the same prompt for the same user, expected some. Add answers.")
    twice = answers[answers.duplicated(["system", "user_id", "prompt"])]
    if len(twice):
        row = twice.iloc[0]
        what = f"{row.system!r} has two answers for user {row.user_id!r} to {str(row.prompt)[:60]!r}"
        raise ValueError(f"{what}; expected one. Give samples different systems' names.")
    tables = []
    for a, b in systems:
        one, other = (answers[answers.system == system][["user_id", "prompt", "answer"]] for system in (a, b))
        both = one.merge(other, on=["user_id", "prompt"], suffixes=("_a", "_b"))
        if both.empty:
            there = ", ".join(map(str, answers.system.unique()))
            raise ValueError(f"{a!r} and {b!r} have no user and prompt in common. Choose two that have, of {there}.")
        tables.append(both.assign(judge=name, system_a=a, system_b=b))
    pairs = pd.concat(tables, ignore_index=True)
    shown = [(prompts or {}).get(text, text) for text in pairs.prompt]
    users = [None if pd.isna(user) else user for user in pairs.user_id]  # NaN, as pandas may have it
    both = in_both_orders(judge, name, shown, pairs.answer_a.tolist(), pairs.answer_b.tolist(), users)
    pairs["user_id"] = [f"somebody: {p}" if u is None else u for u, p in zip(users, pairs.prompt, strict=True)]
    keys = ["judge", "user_id", "prompt", "system_a", "system_b", "answer_a", "answer_b"]
    return pd.concat([pairs[keys], both], axis=1)


def in_both_orders(
    judge: Judge, name: str, prompts: list, a: list[str], b: list[str], users: list[str | None]
) -> pd.DataFrame:
    """`first`, `second` and `preference` (see `judged`) of answers `a` against `b` `[n]`."""
    found = judge(prompts * 2, a + b, b + a, users * 2)
    if len(found) != 2 * len(a) or not set(found) <= {*PREFERENCES, None}:
        expected = f"expected one each, of {PREFERENCES} or None"
        raise ValueError(f"the judge {name!r} gave {len(found)} verdicts on {2 * len(a)} pairs; {expected}.")
    rows, swapped = [], {"a": "b", "b": "a", "tie": "tie", None: None}
    for one, other in zip(found[: len(a)], found[len(a) :], strict=True):
        first, second = one, swapped[other]
        rows.append((first, second, None if None in (one, other) else first if first == second else "tie"))
    return pd.DataFrame(rows, columns=["first", "second", "preference"])


def all_judged(
    judges: Mapping[str, Judge],
    answers: pd.DataFrame,
    systems: Sequence[tuple[str, str]] | None = None,
    prompts: dict[str, Text] | None = None,
) -> pd.DataFrame:
    """`judged` by each of `judges`, name -> judge. `systems`: which are compared; None: all two that answered a prompt
    for the same user, in the order of their first answers."""
    if systems is None:
        asked: dict[Any, set] = {}
        for system, *question in answers[["system", "user_id", "prompt"]].itertuples(index=False):
            asked.setdefault(system, set()).add(tuple(question))
        systems = [(a, b) for a, b in combinations(asked, 2) if asked[a] & asked[b]]
    tables = [judged(judge, answers, systems, name, prompts) for name, judge in judges.items()]
    return pd.concat(tables, ignore_index=True)
