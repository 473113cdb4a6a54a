"""Which pairs are used, drawn once by a seed and shared by SFT, DPO and reward models."""

from __future__ import annotations

import pandas as pd
from datasets import Dataset

from prlhf_kit.data.collect import share
from prlhf_kit.data.schema import SchemaError


def subsample(
    pairs: Dataset,
    n: int | None = None,
    pairs_per_prompt: int | None = None,
    min_score_ratio: float | None = None,
    seed: int = 0,
) -> Dataset:
    """About `n` pairs, of all users alike, by whole prompts.

    The same rows in whatever order they come give the same choice, and `n` = 50 is among `n` = 100. ComPO (Kumar et
    al. 2024, arXiv 2410.16027) takes pairs with a score ratio of at least 2 and at most 5 a post.

    Args:
        n: pairs; a prompt's pairs (of one user) are taken together, so that up to `pairs_per_prompt` - 1 more may come.
            None: all.
        pairs_per_prompt: most pairs of a user and prompt. None: all.
        min_score_ratio: least value in the column `score_ratio`. None: any.
        seed: of the draw.

    Raises:
        SchemaError: a number below 1, no column `score_ratio`, or nothing left.
    """
    for name, value in {"n": n, "pairs_per_prompt": pairs_per_prompt, "min_score_ratio": min_score_ratio}.items():
        if value is not None and (isinstance(value, bool) or value < 1):
            raise SchemaError(f"{name}={value!r}: expected a number of at least 1, or None for all.")
    table = pd.DataFrame({"user": pairs["user_id"], "pair": pairs["pair_id"]})
    table["prompt"] = ["\0".join(m["content"] for m in prompt) for prompt in pairs["prompt"]]
    if min_score_ratio is not None:
        if "score_ratio" not in pairs.column_names:
            raise SchemaError(f"min_score_ratio needs the column score_ratio; the pairs have {pairs.column_names}.")
        table = table[[ratio is not None and ratio >= min_score_ratio for ratio in pairs["score_ratio"]]]
    if table.empty:
        raise SchemaError(f"no pair is left of {len(pairs)} (min_score_ratio={min_score_ratio}).")
    table["order"] = [share(seed, "pair", pair) for pair in table.pair]
    place = table.groupby(["user", "prompt"]).order.rank(method="first")
    table = table[place <= (pairs_per_prompt or len(table))]
    prompts = table.groupby(["user", "prompt"], as_index=False).size()
    prompts["order"] = [share(seed, "prompt", *key) for key in zip(prompts.user, prompts.prompt, strict=True)]
    prompts["turn"] = prompts.groupby("user").order.rank(method="first")  # every user's first prompt, then their second
    prompts = prompts.sort_values(["turn", "order"])
    if n is not None:
        prompts = prompts[prompts["size"].cumsum() - prompts["size"] < n]
    kept = table.reset_index().merge(prompts[["user", "prompt"]], on=["user", "prompt"])["index"]
    return pairs.select(sorted(kept))
