"""Every way to tell a model who asks, on the same pairs or questions, beside its controls."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.context import Contexts, with_context
from prlhf_kit.evaluation.compare import USER_LENGTH, likelier, words
from prlhf_kit.evaluation.contexts import NONE, PROMPT, Rank, items, rewarded
from prlhf_kit.evaluation.metrics import length_rules
from prlhf_kit.evaluation.options import choose, option_accuracy
from prlhf_kit.evaluation.scoring import score_pairs
from prlhf_kit.users import UserIndex

UNTRAINED, SFT = "untrained", "SFT"


def rank_of(
    model, tokenizer: PreTrainedTokenizerBase, anchor: pd.DataFrame | None = None, batch_size: int = 16,
    index: UserIndex | None = None,
) -> Rank:  # fmt: skip
    """How `model` ranks pairs: by its gain in log-probability over `anchor` (`rewarded`), or, without an anchor, by its
    mean log-probability a token. Users without a row in `index` get the generic one."""

    def rank(pairs: Dataset) -> np.ndarray:
        scores = score_pairs(model, tokenizer, pairs, _rows(pairs, index), batch_size)
        return likelier(scores) if anchor is None else rewarded(scores, anchor)

    return rank


def tried(
    model, tokenizer: PreTrainedTokenizerBase, rows: Dataset, readers: Mapping[str, Contexts],
    index: UserIndex | None = None, anchor: pd.DataFrame | None = None, batch_size: int = 16, seed: int = 0,
    **names: str,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """What one model gets right with each of some readers in the prompts.

    Args:
        rows: pairs (ranked as `rank_of` says), or `options.questions` (right if that option has the highest mean
            log-probability a token), without context.
        readers: how each kind of context is put into prompts.
        names: columns that say what was tried.

    Returns:
        A table of `items` with the column `context`, and for questions `option_accuracy` of each context, else empty.
    """
    results, picked = [], []
    for kind, reader in readers.items():
        asked = with_context(rows, reader)
        if "options" in rows.column_names:
            chosen = choose(model, tokenizer, asked, _rows(rows, index), batch_size)
            picked.append(option_accuracy(chosen, seed).assign(**names, context=kind))
            results.append(items(rows, chosen.right, **names, context=kind))
        else:
            value = rank_of(model, tokenizer, anchor, batch_size, index)(asked)
            results.append(items(rows, value, **names, context=kind))
    return pd.concat(results, ignore_index=True), pd.concat(picked, ignore_index=True) if picked else pd.DataFrame()


def _rows(rows: Dataset, index: UserIndex | None) -> list[int] | None:
    return None if index is None else index.rows(rows["user_id"], unknown="generic")


def by_length(train: Dataset, pairs: Dataset, **names: str) -> pd.DataFrame:
    """The control that sees lengths alone: `items` of the rule that each user's training pairs favoured."""
    learned, gap = (words(rows["chosen"]) - words(rows["rejected"]) for rows in (train, pairs))
    _, own = length_rules(train["user_id"], learned, pairs["user_id"], gap)
    return items(pairs, own, **names, method=USER_LENGTH, context=NONE)


def labelled(results: pd.DataFrame) -> pd.DataFrame:
    """Results for the four-way table: the contextual model with its own context only, and "untrained" and "SFT" with a
    context under names of their own."""
    told = results.context != NONE
    own = ~results.context.isin(["random", "shuffled"]) & ((results.method != PROMPT) | told)
    both_ways = results.method.isin([UNTRAINED, SFT]) & told
    method = results.method.where(~both_ways, results.method + ", context")
    return results.assign(method=method)[own].reset_index(drop=True)
