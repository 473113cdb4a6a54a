"""What a context in the prompt is worth: right, wrong and no context; every community's context on every community's
pairs; prompts against soft user tokens.

Results are long tables (`items`) with `value` (1 right, 0 wrong, between the two for ties), `chance` (what guessing
gets), and columns that name what was tried, such as `dataset`, `method` and `context`.

`named`: users are communities, domains or objectives with names, and those in the table are all that one asks about.
Intervals and tests are then by prompt, and say what other prompts would give. Otherwise they say what other users *and*
other prompts would give (`intervals.BY_USER_AND_PROMPT`), which few communities can never show: no test over two or
four of them can give p < 0.05.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets
from numpy.typing import ArrayLike
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.context import RECORDED, Context, Contexts, Messages, with_context
from prlhf_kit.evaluation.accuracy import USER_LENGTH, length_rules, likelier, ranked_right
from prlhf_kit.evaluation.intervals import BY_USER_AND_PROMPT, differences, intervals, long_table
from prlhf_kit.evaluation.options import LIKELIHOOD, RULES, choose
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.models.user_index import UserIndex

NONE = "none"  # the context of nobody
NEITHER, PROMPT, SOFT, BOTH = FOUR_WAYS = ("neither", "prompt only", "soft tokens", "both")
UNTRAINED, SFT = "untrained", "SFT"
GENERIC_ROW, SFT_TOLD = "soft tokens, generic row", "SFT, context"
FOUR_WAY_COMPARISONS = (
    (PROMPT, NEITHER),
    (SOFT, NEITHER),
    (BOTH, NEITHER),
    (BOTH, PROMPT),
    (BOTH, SOFT),
    (PROMPT, SOFT),
)
CONTROL_COMPARISONS = ((SOFT, GENERIC_ROW), (PROMPT, SFT_TOLD))  # is it the user's own row, and is it DPO?
CONTEXT_COMPARISONS = (("true", "none"), ("true", "random"), ("true", "shuffled"))

NUMBERS: dict[str, Any] = {
    "users": ("user_id", "nunique"),
    "chance": ("chance", "mean"),
}  # what stands beside accuracies


def clusters(named: bool) -> str | tuple[str, str]:
    """What intervals and tests are clustered by: see above."""
    return "prompt" if named else BY_USER_AND_PROMPT


TIE = 1e-3  # nats, of a whole response: float32 rounds sums of some hundreds of nats by up to that

Rank = Callable[[Dataset], ArrayLike]
"""Rows with prompts as they are to be asked -> `[n]`, which are ranked right (1, 1/2 for a tie, 0). For instance
`lambda rows: rewarded(score_pairs(model, tokenizer, rows), anchor)`, or `lambda rows: choose(model, tokenizer,
rows).right`."""


def rewarded(scores: pd.DataFrame, anchor: pd.DataFrame) -> np.ndarray:
    """Which pairs the reward log pi(y|x, c) - log pi_ref(y|x) ranks right (1, 1/2, 0): `[n]`. It is DPO's implicit
    reward (arXiv 2305.18290, Eq. 5) up to beta, with the same reference, which sees no context c, for all methods.

    Rewards less than `TIE` apart are equal: the same text in another batch can differ by as much, and the reference
    itself is to get 1/2, not what rounding gives.

    Args:
        scores: rows of `score_pairs` of the policy; the same pair may be there several times.
        anchor: rows of `score_pairs` of the reference, one a pair; found by `pair_id`.

    Raises:
        ValueError: a pair has no row in `anchor`, or several.
    """
    base = scores[["pair_id"]].merge(anchor, "left", on="pair_id", validate="many_to_one")
    chosen, rejected = (
        scores[f"{of}_logp"].to_numpy() - base[f"{of}_logp"].to_numpy() for of in ("chosen", "rejected")
    )
    difference = chosen - rejected  # NaN without an anchor, which `ranked_right` refuses
    return ranked_right(np.where(np.abs(difference) < TIE, 0.0, difference), np.zeros(len(difference)))


def items(rows: Dataset, value: ArrayLike, **names: Any) -> pd.DataFrame:
    """The long table of single results, with `chance` (what guessing gets).

    Args:
        rows: pairs, or `options.questions`, without context: methods are compared on the same prompts.
        value: `[n]`, for instance `rewarded(...)`, or `choose(...).right`.
        names: what was tried, for instance `dataset="dsp", method=BOTH`.
    """
    assert not set(RECORDED) & set(rows.column_names), "the rows have a context already"
    chance = [1 / len(options) for options in rows["options"]] if "options" in rows.column_names else 0.5
    return long_table(rows, {"": value}, chance=chance).drop(columns="method").assign(**names)


def by_context(
    rank: Rank,
    rows: Dataset,
    contexts: Contexts,
    kinds: Sequence[str] = ("true", "none", "random", "shuffled"),
    **names: str,
) -> pd.DataFrame:
    """Results of one model with different contexts in the same prompts: a table of `items` with the column `context`.

    `intervals(table, by=["context"])` and `differences(table, CONTEXT_COMPARISONS, column="context")` sum it up.

    Args:
        rank: is called once, with all rows in all contexts.
        rows: pairs or questions without context.
        contexts: template, people and seed; its own `context` does not count.
    """
    users = rows["user_id"]
    prompts = {}
    for kind in kinds:
        put = replace(contexts, context=kind).put  # type: ignore[arg-type]  # refuses what is no context
        prompts[kind] = [put(prompt, user) for prompt, user in zip(rows["prompt"], users, strict=True)]
    found = _ranked(rank, rows, prompts)
    return pd.concat([items(rows, value, **names, context=kind) for kind, value in found.items()], ignore_index=True)


def context_matrix(rank: Rank, pairs: Dataset, contexts: Contexts) -> pd.DataFrame:
    """Every community's pairs with every community's context in the prompt, and with none.

    Args:
        rank: is called once, with all pairs in all contexts.
        pairs: without context. Communities are their users.
        contexts: template and people; its own `context` does not count.

    Returns:
        `items` with `community` (whose pairs), `context` (whose context; "none"), and `right`: whether that context
        says what the community's own says.
    """
    communities = list(dict.fromkeys(pairs["user_id"]))
    if NONE in communities:
        raise ValueError(f"a community is called {NONE!r}, which stands for no context here. Rename it in the data.")
    plain = list(pairs["prompt"])
    prompts = {NONE: plain, **{who: [contexts.say(prompt, who) for prompt in plain] for who in communities}}
    says = {who: str(told[0]) for who, told in prompts.items()}
    tables = []
    for context, value in _ranked(rank, pairs, prompts).items():
        right = [context != NONE and says[context] == says[user] for user in pairs["user_id"]]
        tables.append(items(pairs, value, community=list(pairs["user_id"]), context=context, right=right))
    return pd.concat(tables, ignore_index=True)


def _ranked(rank: Rank, rows: Dataset, prompts: Mapping[str, list[Messages]]) -> dict[str, np.ndarray]:
    """`rank` of `rows` with the prompts of every key, in one call, so that equal questions are asked once."""
    rest, feature = rows.remove_columns("prompt"), rows.features["prompt"]
    parts = [rest.add_column("prompt", column, feature=feature) for column in prompts.values()]
    values = np.asarray(rank(concatenate_datasets(parts)), float)
    return dict(zip(prompts, values.reshape(len(prompts), len(rows)), strict=True))


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
    **names: str,
) -> pd.DataFrame:
    """What one model gets right with each of some kinds of context in the prompts.

    Args:
        rows: pairs (ranked as `rank_of` says), or `options.questions` (right if that option has the highest mean
            log-probability a token), without context.
        contexts: template, people and seed; its own `context` does not count.
        names: columns that say what was tried.

    Returns:
        A table of `items` with the columns `context` and `rule`: for questions `options.RULES`, for pairs the first.
    """
    if "options" not in rows.column_names:
        rank = rank_of(model, tokenizer, anchor, batch_size, index)
        return by_context(rank, rows, contexts, kinds, **names, rule=LIKELIHOOD)
    results = []
    for kind in kinds:
        asked = with_context(rows, replace(contexts, context=kind))
        chosen = choose(model, tokenizer, asked, _rows(rows, index), batch_size)
        right = {rule: chosen[column] for rule, column in RULES.items()}
        results += [items(rows, value, **names, context=kind, rule=rule) for rule, value in right.items()]
    return pd.concat(results, ignore_index=True)


def _rows(rows: Dataset, index: UserIndex | None) -> list[int] | None:
    return None if index is None else index.rows(rows["user_id"], unknown="generic")


def by_length(train: Dataset, pairs: Dataset, **names: str) -> pd.DataFrame:
    """The control that sees lengths alone: `items` of the rule that each user's training pairs favoured."""
    own = length_rules(train, pairs)[USER_LENGTH]
    return items(pairs, own, **names, method=USER_LENGTH, context=NONE, rule=LIKELIHOOD)


def labelled(results: pd.DataFrame) -> pd.DataFrame:
    """Results for the four-way table: the contextual model with its own context only, "untrained" and "SFT" with a
    context under names of their own, and what has no anchor (pairs ranked by likelihood) named so."""
    told = results.context != NONE
    own = ~results.context.isin(["random", "shuffled"]) & ((results.method != PROMPT) | told)
    control = results.method.isin([UNTRAINED, SFT])
    method = results.method.where(~(control & told), results.method + SFT_TOLD.removeprefix(SFT))
    method = method.where(~(control & ~told & (results.chance == 0.5)), results.method + ", by likelihood")
    return results.assign(method=method)[own].reset_index(drop=True)


def four_way(table: pd.DataFrame, named: Collection[str] = (), seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Prompt only, soft user tokens, both, neither: when is a sentence in the prompt as good as a learned user model?

    Args:
        table: `items` with the columns `dataset` and `method`: `FOUR_WAYS`, and any controls.
        named: the datasets whose users are named communities, see above.

    Returns:
        `intervals` by `dataset` and `method`, and the paired `differences` of each dataset: `FOUR_WAY_COMPARISONS`,
        Holm-corrected over those, and `CONTROL_COMPARISONS`, over these.
    """
    found, gaps = [], []
    for dataset, part in table.groupby("dataset", sort=False):
        cluster = clusters(dataset in named)
        found.append(intervals(part, by=["dataset", "method"], cluster=cluster, seed=seed, **NUMBERS))
        for wanted in (FOUR_WAY_COMPARISONS, CONTROL_COMPARISONS):
            gaps.append(differences(part, wanted, ["dataset"], cluster, seed=seed))
    return pd.concat(found, ignore_index=True), pd.concat(
        [gap for gap in gaps if len(gap)] or gaps[:1], ignore_index=True
    )
