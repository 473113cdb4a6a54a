"""What the reader in the prompt is worth: right, wrong and no context; every community's context on every community's
pairs; prompts against soft user tokens. What judges say by community is in `communities.py`.

Tables of single results (`items`) hold one row a pair or question: `user_id`, `prompt` (without the reader), `item`,
`value` (1 right, 0 wrong, between the two for ties), `chance` (what guessing gets), and columns that name what was
tried, such as `dataset`, `method` and `context`.

`named`: users are communities, domains or objectives with names, and those in the table are all that one asks about.
Intervals and tests are then by prompt, and say what other prompts would give. Otherwise they say what other users *and*
other prompts would give (`intervals.crossed_interval`), which few communities can never show: no test over two or four
of them can give p < 0.05.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets
from numpy.typing import ArrayLike

from prlhf_kit.data.chat import prompt_text
from prlhf_kit.data.context import RECORDED, Contexts, Messages
from prlhf_kit.data.schema import SchemaError
from prlhf_kit.evaluation.accuracy import ranked_right
from prlhf_kit.evaluation.fairness import ACCURACY, differences
from prlhf_kit.evaluation.statistics import cluster_bootstrap, crossed_interval, holm

NONE = "none"  # the context of nobody
NEITHER, PROMPT, SOFT, BOTH = FOUR_WAYS = ("neither", "prompt only", "soft tokens", "both")
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
    base = anchor.set_index("pair_id")
    missing = scores.pair_id[~scores.pair_id.isin(base.index)]
    if len(missing) or not base.index.is_unique:
        raise ValueError(
            f"the anchor has {len(base)} rows for {base.index.nunique()} pairs, and none for {len(missing)} scores; "
            "expected one row for every pair. Score the same pairs with the reference model, without context."
        )
    base = base.loc[scores.pair_id]
    gains = [scores[f"{of}_logp"].to_numpy() - base[f"{of}_logp"].to_numpy() for of in ("chosen", "rejected")]
    difference = gains[0] - gains[1]
    return ranked_right(np.where(np.abs(difference) < TIE, 0.0, difference), np.zeros(len(difference)))


def items(rows: Dataset, value: ArrayLike, **names: str) -> pd.DataFrame:
    """A table of single results, see above.

    Args:
        rows: pairs, or `options.questions`, without context: methods are compared on the same prompts.
        value: `[n]`, for instance `rewarded(...)`, or `choose(...).right`.
        names: what was tried, for instance `dataset="dsp", method=BOTH`.
    """
    _without_context(rows)
    asked = "question_id" in rows.column_names
    chance = [1 / len(options) for options in rows["options"]] if asked else 0.5
    prompts = [prompt_text(prompt) for prompt in rows["prompt"]]
    table = {"user_id": rows["user_id"], "prompt": prompts, "item": rows["question_id" if asked else "pair_id"]}
    values = np.asarray(value, float)
    if values.shape != (len(rows),):
        raise ValueError(f"values of shape {values.shape} for {len(rows)} rows, expected one each, in order.")
    return pd.DataFrame(
        {**names, **{name: list(column) for name, column in table.items()}, "value": values, "chance": chance}
    )


def by_context(
    rank: Rank,
    rows: Dataset,
    contexts: Contexts,
    kinds: Sequence[str] = ("true", "none", "random", "shuffled"),
    **names: str,
) -> pd.DataFrame:
    """Results of one model with different contexts in the same prompts: a table of `items` with the column `context`.

    `accuracies(table, ["context"])` and `comparisons(table, CONTEXT_COMPARISONS, "context", ...)` sum it up.

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


def context_matrix(rank: Rank, pairs: Dataset, contexts: Contexts, seed: int = 0) -> pd.DataFrame:
    """Accuracy on every community's pairs with every community's context in the prompt, and with none.

    Args:
        rank: is called once, with all pairs in all contexts.
        pairs: without context. Communities are their users.
        contexts: template and people; its own `context` does not count.

    Returns:
        Columns `community` (whose pairs), `context` (whose context; "none"), `accuracy`, `low`, `high` (95%, by
        prompt), `n`, and `right`: whether that context says what the community's own says.
    """
    users = np.array(pairs["user_id"])
    communities = list(dict.fromkeys(users.tolist()))
    if NONE in communities:
        raise ValueError(f"a community has the name {NONE!r}, which stands for no context. Rename it.")
    plain = list(pairs["prompt"])
    prompts = {NONE: plain, **{who: [contexts.say(prompt, who) for prompt in plain] for who in communities}}
    found = _ranked(rank, pairs, prompts)
    asked = np.array([prompt_text(prompt) for prompt in plain])
    says = {who: str(told[0]) if told else "" for who, told in prompts.items()}
    rows = []
    for community in communities:
        mine = users == community
        for context, value in found.items():
            i = cluster_bootstrap(value[mine], asked[mine], seed=seed)
            right = context != NONE and says[context] == says[community]
            rows.append((community, context, i.estimate, i.low, i.high, i.n, right))
    return pd.DataFrame(rows, columns=["community", "context", "accuracy", "low", "high", "n", "right"])


def _ranked(rank: Rank, rows: Dataset, prompts: Mapping[str, list[Messages]]) -> dict[str, np.ndarray]:
    """`rank` of `rows` with the prompts of every key, in one call, so that equal questions are asked once."""
    _without_context(rows)
    rest, feature = rows.remove_columns("prompt"), rows.features["prompt"]
    parts = [rest.add_column("prompt", column, feature=feature) for column in prompts.values()]
    values = np.asarray(rank(concatenate_datasets(parts)), float)
    if values.shape != (len(rows) * len(prompts),):
        raise ValueError(f"rank gave values of shape {values.shape} for {len(rows) * len(prompts)} rows, expected [n].")
    return dict(zip(prompts, values.reshape(len(prompts), len(rows)), strict=True))


def _without_context(rows: Dataset) -> None:
    if set(RECORDED) & set(rows.column_names):
        raise SchemaError(f"the rows have a context already (columns {', '.join(RECORDED)}). Give those without.")


def accuracies(table: pd.DataFrame, by: Sequence[str], named: bool = False, seed: int = 0) -> pd.DataFrame:
    """Accuracy of `items` for each value of `by`, with a 95% interval (`named`: see above).

    Returns:
        Columns `by`, `accuracy`, `low`, `high`, `n`, `users`, `chance`.
    """
    rows = []
    for names, part in table.groupby(list(by), sort=False):
        i = crossed_interval(part.value, part.prompt if named else part.user_id, part.prompt, seed=seed)
        rows.append((*names, i.estimate, i.low, i.high, i.n, part.user_id.nunique(), part.chance.mean()))
    return pd.DataFrame(rows, columns=[*by, "accuracy", "low", "high", "n", "users", "chance"])


def comparisons(
    table: pd.DataFrame,
    wanted: Sequence[tuple[str, str]],
    column: str,
    by: Sequence[str],
    named: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Paired differences of `items`: one thing minus another on the same pairs or questions (`fairness.differences`).

    Args:
        wanted: (one, other), both values of `column`; what is not in the table is left out.
        column: which column names them, for instance "method" or "context".
        by: each value of these columns is a family of comparisons of its own, for Holm's correction.

    Returns:
        Columns `by`, `one`, `other`, `difference`, `low`, `high` (95%), `p`, `p_holm`, `detectable`, `n`, `users`.
    """
    families = []
    for names, part in table.groupby(list(by), sort=False):
        compared = part.assign(measure=ACCURACY, split="", method=part[column])
        if named:
            compared["user_id"] = compared.prompt
        found = [differences(compared[compared.method.isin(pair)], pair[0], seed=seed) for pair in wanted]
        rows = pd.concat([rows for rows in found if len(rows)] or found[:1], ignore_index=True)
        rows = rows.rename(columns={"method": "one", "control": "other"}).drop(columns="split")
        rows["p_holm"], rows["users"] = holm(rows.p.tolist()), part.user_id.nunique()
        for place, (name, value) in enumerate(zip(by, map(str, names), strict=True)):
            rows.insert(place, name, value)
        families.append(rows)
    return pd.concat(families, ignore_index=True)


def four_way(table: pd.DataFrame, named: Collection[str] = (), seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Prompt only, soft user tokens, both, neither: when is a sentence in the prompt as good as a learned user model?

    Args:
        table: `items` with the columns `dataset` and `method`: `FOUR_WAYS`, and any controls.
        named: the datasets whose users are named communities, see above.

    Returns:
        `accuracies` by `dataset` and `method`, and the paired `comparisons` of each dataset: `FOUR_WAY_COMPARISONS`,
        Holm-corrected over those, and `CONTROL_COMPARISONS`, over these.
    """
    found, gaps = [], []
    for dataset, part in table.groupby("dataset", sort=False):
        found.append(accuracies(part, ["dataset", "method"], dataset in named, seed))
        for wanted in (FOUR_WAY_COMPARISONS, CONTROL_COMPARISONS):
            gaps.append(comparisons(part, wanted, "method", ["dataset"], dataset in named, seed))
    return pd.concat(found, ignore_index=True), pd.concat(gaps, ignore_index=True)
