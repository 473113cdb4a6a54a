"""Personas: what a language model reads out of a person's choices, kept where it ranks other choices of that person no
worse (SynthesizeMe: Ryan et al. 2025, arXiv 2506.05598; PLUS, which trains the writer: Nam et al. 2025, arXiv
2507.13579)."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from datasets import Dataset
from numpy.typing import ArrayLike

from prlhf_kit.data.choices import Choices, told
from prlhf_kit.data.collect import changed
from prlhf_kit.data.context import people_of
from prlhf_kit.data.schema import SchemaError
from prlhf_kit.data.templates import read_template
from prlhf_kit.evaluation.judge_templates import about
from prlhf_kit.evaluation.judges import in_both_orders
from prlhf_kit.evaluation.llm_judge import LLMJudge
from prlhf_kit.evaluation.win_rate import VALUE

FEW, SILENT, WORSE, UNREAD, KEPT = "too few choices", "nothing written", "ranks worse", "no verdict", "kept"

Write = Callable[[list[list[dict[str, str]]]], Sequence[str | None]]
Rank = Callable[[Dataset], ArrayLike]


def personas(pairs: Dataset, write: Write, rank: Rank, k: int = 8, checked: int = 4, seed: int = 0) -> pd.DataFrame:
    """A persona for each user of `pairs`, from k choices, and what it is worth on others.

    The check has few pairs, so a persona that is kept by luck is to be expected; test splits tell what all are worth.

    Args:
        pairs: of training, or to adapt unseen users to; never the held-out ones.
        write: dialogues -> what a model answers to each, None for nothing: `judge.ask`, or a local model's answers.
        rank: pairs -> which are ranked right (1, 1/2, 0; NaN: no verdict) by their `user_text`, `[n]`: `by_judge`, or
            a model that scores `with_user_text(pairs)`.
        k, checked: most choices that are read, and that are held out for the check, one a prompt, drawn by `seed`. Of a
            user with fewer than both, half are held out. One prompt is too few, unless all pairs share it (Polis): then
            what is read and what is held out share no response.

    Returns:
        One row a user: `user_id`; `persona` (None if there is none); `outcome`, "kept" or why not; `read` and
        `held_out`, the pairs' ids; `checked`, the held-out pairs that had a verdict both times; `before` and `after`,
        the accuracy on these with the `user_text` that was there and with the persona.

    Raises:
        SchemaError: k or checked below 1. Also what `write` and `rank` raise: a judge's answers are kept until then,
            and the same call asks for the rest.
    """
    text = read_template("persona", "evaluation/persona_prompts", ("persona",))
    if min(k, checked) < 1:
        raise SchemaError(f"k={k!r}, checked={checked!r}: expected at least 1 choice to read, and 1 to check with.")
    choices, rows, asked = Choices([pairs], k + checked, seed), [], []
    for user in dict.fromkeys(pairs["user_id"]):
        own = choices.of(user)
        held_out = own[: min(checked, len(own) // 2)]
        read = [p for p in own[len(held_out) :] if all(choices.apart(p, h) for h in held_out)][:k]
        if not (held_out and read):
            read, held_out = [], []
        ids = {"read": [p["pair_id"] for p in read], "held_out": [h["pair_id"] for h in held_out]}
        rows.append({"user_id": user, "persona": None, "outcome": SILENT if read else FEW, **ids})
        if read:
            asked.append([{"role": r, "content": part.format_map({"choices": told(read)})} for r, part in text.parts])
    has_read = [row for row in rows if row["read"]]
    for row, answer in zip(has_read, write(asked) if asked else [], strict=True):
        row["persona"] = (answer or "").strip() or None
    table = pd.DataFrame(rows, columns=["user_id", "persona", "outcome", "read", "held_out"])
    has = table.persona.notna()
    table = table.join(_checked(pairs, table[has], rank), on="user_id").fillna({"checked": 0}).astype({"checked": int})
    table.loc[has, "outcome"] = np.where(table.after >= table.before, KEPT, WORSE)[has]
    table.loc[has & (table.checked == 0), "outcome"] = UNREAD
    return table


def _checked(pairs: Dataset, table: pd.DataFrame, rank: Rank) -> pd.DataFrame:
    """`checked`, `before` and `after` by user of `table`."""
    wanted = set(table.held_out.explode())
    held_out = pairs.select([i for i, pair in enumerate(pairs["pair_id"]) if pair in wanted])
    found = pd.DataFrame({"user_id": held_out["user_id"][:], "before": np.nan, "after": np.nan})
    if len(held_out):
        said = dict(zip(table.user_id, table.persona, strict=True))
        found["before"] = np.asarray(rank(held_out), float)
        found["after"] = np.asarray(rank(_filled(held_out, said)), float)
    by_user = found.dropna().groupby("user_id")
    return by_user.agg(checked=("before", "size"), before=("before", "mean"), after=("after", "mean"))


def with_personas(pairs: Dataset, table: pd.DataFrame) -> Dataset:
    """`pairs` with the personas that were kept as `user_text`; other users' stays as it is."""
    kept = table[table.outcome == KEPT]
    return _filled(pairs, dict(zip(kept.user_id, kept.persona, strict=True)))


def _filled(pairs: Dataset, said: dict[str, str]) -> Dataset:
    return changed(pairs, lambda row: {"user_text": said.get(row["user_id"], row["user_text"])})


def by_judge(judge: LLMJudge) -> Rank:
    """Ranks pairs by a language model that is told their `user_text` (template "profile"), asked in both orders: 1/2
    where these disagree, NaN where an answer could not be read."""

    def rank(pairs: Dataset) -> np.ndarray:
        people = {user: text or "nothing known" for user, text in people_of(pairs).items()}
        texts = [[answer[-1]["content"] for answer in pairs[side]] for side in ("chosen", "rejected")]
        asked = judge.told(about(people)), judge.model, pairs["prompt"][:], *texts, pairs["user_id"][:]
        return in_both_orders(*asked).preference.map(VALUE).to_numpy(float)

    return rank
