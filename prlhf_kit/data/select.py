"""Every way in which pairs are drawn from a dataset: by a seed, by user, by a column's value."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, concatenate_datasets

from prlhf_kit.data.chat import prompt_text
from prlhf_kit.data.registry import require_known, share
from prlhf_kit.data.schema import SchemaError


def subsample(pairs: Dataset, n: int | None = None, pairs_per_prompt: int | None = None, seed: int = 0) -> Dataset:
    """About `n` pairs, of all users alike, by whole prompts; the rows' order does not matter, and draws are nested.

    Args:
        n: pairs; a prompt's pairs (of one user) are taken together, so that a few more may come. None: all.
        pairs_per_prompt: most pairs of a user and prompt (5 in ComPO, Kumar et al. 2024, arXiv 2410.16027). None: all.
    """
    _require_positive(n=n, pairs_per_prompt=pairs_per_prompt)
    table = pd.DataFrame({"user": pairs["user_id"], "pair": pairs["pair_id"]})
    table["prompt"] = ["\0".join(m["content"] for m in prompt) for prompt in pairs["prompt"]]
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


def in_blocks(pairs: Dataset, size: int, seed: int = 0) -> Dataset:
    """The pairs in an order drawn by `seed`, in which each `size` of them are of one user and prompt. What is left over
    of a user and prompt comes at the end."""
    _require_positive(size=size)
    table = pd.DataFrame({"user": pairs["user_id"], "prompt": [prompt_text(prompt) for prompt in pairs["prompt"]]})
    order = table.sample(frac=1, random_state=seed).groupby(["user", "prompt"]).groups.values()
    blocks = [own[i : i + size].tolist() for own in order for i in range(0, len(own), size)]
    np.random.default_rng(seed).shuffle(blocks)
    blocks.sort(key=lambda block: len(block) < size)
    return pairs.select([i for block in blocks for i in block])


def few_shot(data: DatasetDict, k: int, seed: int = 0, allow_fewer: bool = False) -> Dataset:
    """`k` pairs of every user of `adapt_unseen`, drawn by `seed`. Nested: those of k=2 are among those of 4.

    Raises:
        SchemaError: no `adapt_unseen`, or users with fewer pairs (unless `allow_fewer`).
    """
    if "adapt_unseen" not in data:
        raise SchemaError(f"the data have no split 'adapt_unseen', only {list(data)}: no user is kept from training.")
    _require_positive(k=k)
    counts = Counter(data["adapt_unseen"]["user_id"])
    users = set(counts) | set(data["test_unseen"]["user_id"] if "test_unseen" in data else ())
    few = sorted((counts[user], user) for user in users if counts[user] < k)
    if few and not allow_fewer:
        raise SchemaError(
            f"{len(few)} of {len(users)} unseen users have fewer than {k=}, {few[0]}: lower k, or allow_fewer=True."
        )
    return _first(data["adapt_unseen"], k, seed, "few-shot")


def at_most(data: DatasetDict, seed: int = 0, **pairs: int | None) -> DatasetDict:
    """`data` with at most so many pairs of every user in the splits named, drawn by `seed`: `at_most(data, train=10)`.

    Nested: the 10 pairs are among those of `at_most(data, train=20)`.
    """
    require_known(pairs, data, "split")
    _require_positive(**pairs)
    limited = {split: _first(data[split], k, seed, split) for split, k in pairs.items() if k is not None}
    return DatasetDict({**data, **limited})


def _require_positive(**numbers: float | None) -> None:
    for name, n in numbers.items():
        if n is not None and n < 1:
            raise SchemaError(f"{name}={n!r}: expected a number of at least 1, or None for all.")


def _first(pairs: Dataset, k: int, seed: int, purpose: str) -> Dataset:
    table = pd.DataFrame({"user": pairs["user_id"]})
    table["order"] = [share(seed, purpose, pair) for pair in pairs["pair_id"]]
    rank = table.groupby("user").order.rank(method="first")
    return pairs.select(table.index[rank <= k])


def sampled(pairs: Dataset, n: int, seed: int) -> Dataset:
    """`n` pairs drawn without replacement, or all if there are fewer."""
    return pairs.select(np.random.default_rng(seed).permutation(len(pairs))[:n])


def drawn(names: Sequence[str], n: int | None, seed: int = 0) -> list[str]:
    """`n` of the names, drawn, in their order; None: all."""
    places = np.random.default_rng(seed).permutation(len(names))[:n]
    return [names[place] for place in sorted(places)]


def most_pairs(values: Sequence[str], n: int) -> list[str]:
    """The `n` most frequent values (0: all), those of equal frequency as they come."""
    return [value for value, _ in Counter(values).most_common(n or None)]


def split_by(pairs: Dataset, column: str, values: Sequence[str]) -> dict[str, Dataset]:
    """The pairs with each of `values` in `column`."""
    found = pairs[column]
    return {value: pairs.select([i for i, own in enumerate(found) if own == value]) for value in values}


def joined(sets: Sequence[Dataset]) -> Dataset:
    """Pairs of several datasets as one, without the columns that only some of them have."""
    return concatenate_datasets([pairs.select_columns(["user_id", "prompt", "chosen", "rejected"]) for pairs in sets])


def unique_prompts(pairs: Dataset, n: int, seed: int = 0) -> list[list[dict[str, str]]]:
    """Up to `n` different prompts of `pairs`, drawn without replacement."""
    prompts = list({prompt_text(prompt): prompt for prompt in pairs["prompt"]}.values())
    order = np.random.default_rng(seed).permutation(len(prompts))[:n]
    return [prompts[i] for i in order]
