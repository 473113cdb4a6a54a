"""What a context in the prompt is worth: right, wrong and none, every community's context on every community's pairs,
prompts against soft user tokens. Results are long tables with `chance` and columns that say what was tried."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, Features, List, Value, concatenate_datasets
from numpy.typing import ArrayLike
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.context import RECORDED, Contexts, with_context
from prlhf_kit.data.schema import FEATURES
from prlhf_kit.evaluation.accuracy import USER_LENGTH, by_implicit_reward, length_rules, likelier
from prlhf_kit.evaluation.intervals import BY_USER_AND_PROMPT, differences, intervals, long_table
from prlhf_kit.models.logprobs import as_read, score_pairs, sequence_logps
from prlhf_kit.models.tokenize import tokenize_completions
from prlhf_kit.models.user_index import UserIndex

NONE = "none"  # the context of nobody
LIKELIHOOD, SHORTEST, LONGEST = "likelihood a token", "shortest option", "longest option"
NEITHER, PROMPT, SOFT, BOTH = FOUR_WAYS = ("neither", "prompt only", "soft tokens", "both")
UNTRAINED, SFT = "untrained", "SFT"
GENERIC_ROW, SFT_TOLD = "soft tokens, generic row", "SFT, context"
FOUR_WAY_COMPARISONS = tuple(combinations((BOTH, PROMPT, SOFT, NEITHER), 2))
CONTROL_COMPARISONS = ((SOFT, GENERIC_ROW), (PROMPT, SFT_TOLD))  # is it the user's own row, and is it DPO?
CONTEXT_COMPARISONS = (("true", "none"), ("true", "random"), ("true", "shuffled"))

NUMBERS: dict[str, Any] = {"users": ("user_id", "nunique"), "chance": ("chance", "mean")}  # beside accuracies


def clusters(named: bool) -> str | tuple[str, str]:
    """What intervals and tests are clustered by. Of `named` users (communities, domains, objectives) those in the table
    are all that one asks about: by prompt. Else the table says what other users would give, too, which few of them
    never can: no test over two or four users gives p < 0.05."""
    return "prompt" if named else BY_USER_AND_PROMPT


def questions(pairs: Dataset) -> Dataset:
    """The multiple-choice questions behind pairs that set one right option against each of the others, as `prefeval`'s
    do (Zhao et al. 2025, arXiv 2502.09597): `question_id` (of the first pair), `user_id`, `user_text`, `group`,
    `prompt`, `options` (`[k]` responses, the right one first), and `RECORDED`."""
    kept = [n for n in ("user_id", "user_text", "group", "prompt", *RECORDED) if n in pairs.column_names]
    found: dict[str, dict] = {}
    for pair in pairs:
        new = {"question_id": pair["pair_id"], **{name: pair[name] for name in kept}, "options": [pair["chosen"]]}
        options = found.setdefault(str([pair["user_id"], pair["prompt"], pair["chosen"]]), new)["options"]
        if pair["rejected"] not in options:
            options.append(pair["rejected"])
    types = {"question_id": Value("string"), **{name: pairs.features[name] for name in kept}}
    return Dataset.from_list([*found.values()], features=Features(types | {"options": List(FEATURES["chosen"])}))


def choose(
    model, tokenizer: PreTrainedTokenizerBase, rows: Dataset, user_rows: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """Which of `questions` are answered right: rule -> `[n]` (1; 1/m where m options are at the top; 0).

    Options are scored as answers and not shown, so none has a place. What could give the right one away is its length
    in tokens, so the rules `SHORTEST` and `LONGEST` stand beside the model's (`LIKELIHOOD`: mean log-prob a token).
    """
    rows = rows if user_rows is None else as_read(model, rows)
    number = [len(options) for options in rows["options"]]
    users = None if user_rows is None else np.repeat(user_rows, number).tolist()
    asked: Any = [tokenize_completions(tokenizer, row["prompt"], option) for row in rows for option in row["options"]]
    logps = np.array(sequence_logps(model, tokenizer, asked, users))
    tokens = np.array([len(answer) for _, answer in asked])
    found = {}
    for rule, values in ((LIKELIHOOD, logps / tokens), (SHORTEST, -tokens), (LONGEST, tokens)):
        top = [part == part.max() for part in np.split(values, np.cumsum(number)[:-1])]
        found[rule] = np.array([one[0] / one.sum() for one in top])
    return found


def items(rows: Dataset, value: ArrayLike, **names: Any) -> pd.DataFrame:
    """The long table of `value` `[n]` (what was right) on `rows` without context (pairs, or `questions`), with
    `chance` and the columns `names`, for instance `dataset="dsp", method=BOTH`."""
    assert not set(RECORDED) & set(rows.column_names), "the rows have a context already"
    chance = [1 / len(options) for options in rows["options"]] if "options" in rows.column_names else 0.5
    return long_table(rows, {"": value}, chance=chance).drop(columns="method").assign(**names)


def tried(
    model,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    contexts: Contexts,
    kinds: Sequence[str],
    index: UserIndex | None = None,
    anchor: pd.DataFrame | None = None,
    **names: str,
) -> pd.DataFrame:
    """`items` of what one model gets right (1, 1/2 for a tie, 0) with each of some `kinds` of context in the same
    prompts, with the columns `context`, `rule` and `names`.

    Args:
        rows: pairs, by the gain in log-probability over `anchor` (`by_implicit_reward`) or, without one, by mean
            log-probability a token; or `questions`, by all rules of `choose`.
        contexts: of template, people and seed.
        index: rows of the users; others get the generic one. None: no user model.
    """
    put = [with_context(rows, replace(contexts, context=kind)) for kind in kinds]  # type: ignore[arg-type]
    asked = concatenate_datasets(put)
    users = None if index is None else index.rows(asked["user_id"], unknown="generic")
    if "options" in asked.column_names:
        found = choose(model, tokenizer, asked, users)
    else:
        scores = score_pairs(model, tokenizer, asked, users)
        found = {LIKELIHOOD: likelier(scores) if anchor is None else by_implicit_reward(scores, anchor)}
    tables = [
        items(rows, value.reshape(len(kinds), -1)[i], **names, context=kind, rule=rule)
        for i, kind in enumerate(kinds)
        for rule, value in found.items()
    ]
    return pd.concat(tables, ignore_index=True)


def by_length(train: Dataset, pairs: Dataset, **names: str) -> pd.DataFrame:
    """The control that sees lengths alone: `items` of the rule that each user's training pairs favoured."""
    own = length_rules(train, pairs)[USER_LENGTH]
    return items(pairs, own, **names, method=USER_LENGTH, context=NONE, rule=LIKELIHOOD)


def labelled(results: pd.DataFrame) -> pd.DataFrame:
    """Results for `four_way`: the contextual model with its own context only; "untrained" and "SFT" with a context, and
    what is ranked by likelihood for want of an anchor, under names of their own."""
    told = results.context != NONE
    own = ~results.context.isin(["random", "shuffled"]) & ((results.method != PROMPT) | told)
    control = results.method.isin([UNTRAINED, SFT])
    method = results.method.where(~(control & told), results.method + SFT_TOLD.removeprefix(SFT))
    method = method.where(~(control & ~told & (results.chance == 0.5)), results.method + ", by likelihood")
    return results.assign(method=method)[own].reset_index(drop=True)


def four_way(table: pd.DataFrame, named: bool, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Prompt only, soft user tokens, both, neither: when is a sentence in the prompt as good as a learned user model?

    `table`: `items` with `dataset` and `method` (`FOUR_WAYS`, any controls); `named`: see `clusters`. Returns
    `intervals`, and the paired `differences`, Holm-corrected over each of the two lists of comparisons.
    """
    found = intervals(table, by=["dataset", "method"], cluster=clusters(named), seed=seed, **NUMBERS)
    families = (FOUR_WAY_COMPARISONS, CONTROL_COMPARISONS)
    gaps = [differences(table, wanted, ["dataset"], clusters(named), seed=seed) for wanted in families]
    some = [gap for gap in gaps if len(gap)] or gaps[:1]  # pandas warns of empty ones
    return found, pd.concat(some, ignore_index=True)
