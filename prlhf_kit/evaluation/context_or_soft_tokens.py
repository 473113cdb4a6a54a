"""Every way to tell a model who asks, on the same pairs or questions, beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.context import Context, Contexts, with_context
from prlhf_kit.evaluation.accuracy import USER_LENGTH, length_rules, likelier, words
from prlhf_kit.evaluation.context import NONE, PROMPT, SFT_TOLD, Rank, by_context, items, rewarded
from prlhf_kit.evaluation.options import choose, option_accuracy
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.models.user_index import UserIndex

UNTRAINED, SFT = "untrained", "SFT"


def rank_of(
    model,
    tokenizer: PreTrainedTokenizerBase,
    anchor: pd.DataFrame | None = None,
    batch_size: int = 16,
    index: UserIndex | None = None,
) -> Rank:
    """How `model` ranks pairs: by its gain in log-probability over `anchor` (`rewarded`), or, without an anchor, by its
    mean log-probability a token. Users without a row in `index` get the generic one."""

    def rank(pairs: Dataset) -> np.ndarray:
        scores = score_pairs(model, tokenizer, pairs, _rows(pairs, index), batch_size)
        return likelier(scores) if anchor is None else rewarded(scores, anchor)

    return rank


def tried(
    model,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    contexts: Contexts,
    kinds: Sequence[Context],
    index: UserIndex | None = None,
    anchor: pd.DataFrame | None = None,
    batch_size: int = 16,
    seed: int = 0,
    **names: str,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What one model gets right with each of some kinds of context in the prompts.

    Args:
        rows: pairs (ranked as `rank_of` says), or `options.questions` (right if that option has the highest mean
            log-probability a token), without context.
        contexts: template, people and seed; its own `context` does not count.
        names: columns that say what was tried.

    Returns:
        A table of `items` with the column `context`, and for questions `option_accuracy` of each context, else empty.
    """
    if "options" not in rows.column_names:
        rank = rank_of(model, tokenizer, anchor, batch_size, index)
        return by_context(rank, rows, contexts, kinds, **names), pd.DataFrame()
    results, picked = [], []
    for kind in kinds:
        asked = with_context(rows, replace(contexts, context=kind))
        chosen = choose(model, tokenizer, asked, _rows(rows, index), batch_size)
        picked.append(option_accuracy(chosen, seed).assign(**names, context=kind))
        results.append(items(rows, chosen.right, **names, context=kind))
    return pd.concat(results, ignore_index=True), pd.concat(picked, ignore_index=True)


def _rows(rows: Dataset, index: UserIndex | None) -> list[int] | None:
    return None if index is None else index.rows(rows["user_id"], unknown="generic")


def by_length(train: Dataset, pairs: Dataset, **names: str) -> pd.DataFrame:
    """The control that sees lengths alone: `items` of the rule that each user's training pairs favoured."""
    learned, gap = (words(rows["chosen"]) - words(rows["rejected"]) for rows in (train, pairs))
    _, own = length_rules(train["user_id"], learned, pairs["user_id"], gap)
    return items(pairs, own, **names, method=USER_LENGTH, context=NONE)


def labelled(results: pd.DataFrame) -> pd.DataFrame:
    """Results for the four-way table: the contextual model with its own context only, "untrained" and "SFT" with a
    context under names of their own, and what has no anchor (pairs ranked by likelihood) named so."""
    told = results.context != NONE
    own = ~results.context.isin(["random", "shuffled"]) & ((results.method != PROMPT) | told)
    control = results.method.isin([UNTRAINED, SFT])
    method = results.method.where(~(control & told), results.method + SFT_TOLD.removeprefix(SFT))
    method = method.where(~(control & ~told & (results.chance == 0.5)), results.method + ", by likelihood")
    return results.assign(method=method)[own].reset_index(drop=True)
