"""What a context in the prompt is worth: right, wrong and none, and prompts against soft user tokens. Results are long
tables with columns that say what was tried."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets
from numpy.typing import ArrayLike
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.context import RECORDED, Contexts, with_context
from prlhf_kit.evaluation.accuracy import UNTRAINED, USER_LENGTH, by_implicit_reward, length_rules, likelier
from prlhf_kit.evaluation.intervals import BY_USER_AND_PROMPT, differences, intervals, long_table
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.models.user_index import UserIndex

NONE = "none"  # the context of nobody
NEITHER, PROMPT, SOFT, BOTH = FOUR_WAYS = ("neither", "prompt only", "soft tokens", "both")
SFT, SFT_TOLD, GENERIC_ROW = "SFT", "SFT, context", "soft tokens, generic row"
FOUR_WAY_COMPARISONS = tuple(combinations((BOTH, PROMPT, SOFT, NEITHER), 2))
CONTROL_COMPARISONS = ((SOFT, GENERIC_ROW), (PROMPT, SFT_TOLD))  # is it the user's own row, and is it DPO?
CONTEXT_COMPARISONS = (("true", "none"), ("true", "random"), ("true", "shuffled"))


def clusters(named: bool) -> str | tuple[str, str]:
    """What intervals and tests are clustered by. Of `named` users (communities, domains, objectives) those in the table
    are all that one asks about: by prompt. Else the table says what other users would give, too, which few of them
    never can: no test over two or four users gives p < 0.05."""
    return "prompt" if named else BY_USER_AND_PROMPT


def items(pairs: Dataset, value: ArrayLike, **names: Any) -> pd.DataFrame:
    """The long table of `value` `[n]` (what was right) on `pairs` without context, with the columns `names`, for
    instance `dataset="dsp", method=BOTH`."""
    assert not set(RECORDED) & set(pairs.column_names), "the pairs have a context already"
    return long_table(pairs, {"": value}).drop(columns="method").assign(**names)


def tried(
    model,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    contexts: Contexts,
    kinds: Sequence[str],
    index: UserIndex | None = None,
    anchor: pd.DataFrame | None = None,
    **names: str,
) -> pd.DataFrame:
    """`items` of what one model gets right (1, 1/2 for a tie, 0) with each of some `kinds` of context in the same
    prompts, with the columns `context` and `names`: by the gain in log-probability over `anchor` (`by_implicit_reward`)
    or, without one, by mean log-probability a token.

    Args:
        contexts: of template, people and seed.
        index: rows of the users; others get the generic one. None: no user model.
    """
    put = [with_context(pairs, replace(contexts, context=kind)) for kind in kinds]  # type: ignore[arg-type]
    asked = concatenate_datasets(put)
    users = None if index is None else index.rows(asked["user_id"], unknown="generic")
    scores = score_pairs(model, tokenizer, asked, users)
    right = likelier(scores) if anchor is None else by_implicit_reward(scores, anchor)
    parts = zip(kinds, np.split(right, len(kinds)), strict=True)
    return pd.concat([items(pairs, part, **names, context=kind) for kind, part in parts], ignore_index=True)


def by_length(train: Dataset, pairs: Dataset, **names: str) -> pd.DataFrame:
    """The control that sees lengths alone: `items` of the rule that each user's training pairs favoured."""
    return items(pairs, length_rules(train, pairs)[USER_LENGTH], **names, method=USER_LENGTH, context=NONE)


def labelled(results: pd.DataFrame) -> pd.DataFrame:
    """Results for `four_way`: the contextual model with its own context only; "untrained" and "SFT" with a context, and
    what is ranked by likelihood because there is no anchor, under names of their own."""
    told = results.context != NONE
    own = ~results.context.isin(["random", "shuffled"]) & ((results.method != PROMPT) | told)
    control = results.method.isin([UNTRAINED, SFT])
    method = results.method.where(~(control & told), results.method + SFT_TOLD.removeprefix(SFT))
    method = method.where(~(control & ~told), results.method + ", by likelihood")
    return results.assign(method=method)[own].reset_index(drop=True)


def four_way(table: pd.DataFrame, named: bool, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Prompt only, soft user tokens, both, neither: when is a sentence in the prompt as good as a learned user model?

    `table`: `items` with `dataset` and `method` (`FOUR_WAYS`, any controls); `named`: see `clusters`. Returns
    `intervals`, and the paired `differences`, Holm-corrected over each of the two lists of comparisons.
    """
    users = ("user_id", "nunique")
    found = intervals(table, by=["dataset", "method"], cluster=clusters(named), seed=seed, users=users)
    families = (FOUR_WAY_COMPARISONS, CONTROL_COMPARISONS)
    gaps = [differences(table, wanted, ["dataset"], clusters(named), seed=seed) for wanted in families]
    some = [gap for gap in gaps if len(gap)] or gaps[:1]  # pandas warns of empty ones
    return found, pd.concat(some, ignore_index=True)
