"""Which pairs the stages of a reward model are trained and evaluated on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from datasets import Dataset, DatasetDict, concatenate_datasets

from prlhf_kit.data.select import by_value, sampled
from prlhf_kit.models.tokenize import encode

GENERAL = "general/train"  # name of the set that GRFT is trained on; no domain has it


def fitting(pairs: Dataset, tokenizer, max_length: int) -> Dataset:
    """The pairs of which neither text is longer than `max_length` tokens (others would be cut)."""

    def fits(row) -> bool:
        return all(len(encode(tokenizer, row["prompt"], row[c])[0]) <= max_length for c in ("chosen", "rejected"))

    return pairs.filter(fits)


def domain_sets(
    data: DatasetDict, column: str, names: Sequence[str], tokenizer, max_length: int, train: int, test: int, seed: int
) -> dict[str, Dataset]:
    """Training (`<name>`) and held-out pairs (`<name>/test`, of `test_seen`) of each domain that fit `max_length`.

    Raises:
        ValueError: a name that no pair has in `column`, or of which no pair is short enough.
    """
    known = sorted({value for value in data["train"][column] if value})
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no training pair has {column}={unknown[0]!r}. Known: {', '.join(known)}.")
    short = {split: fitting(data[split], tokenizer, max_length) for split in ("train", "test_seen")}
    own = {split: by_value(pairs, column, names) for split, pairs in short.items()}
    found = {}
    for name in names:
        for split, key, n in (("train", name, train), ("test_seen", f"{name}/test", test)):
            found[key] = _not_empty(sampled(own[split][name], n, seed), key, max_length)
    return found


def general_sets(
    general: Mapping[str, DatasetDict],
    tested_only: Collection[str],
    tokenizer,
    max_length: int,
    train: int,
    test: int,
    seed: int,
) -> dict[str, Dataset]:
    """The training pairs `GENERAL`, from all general sets alike, and held-out pairs of each (`<name>/test`).

    Of those in `tested_only`, which are not trained on, the training pairs are held-out ones as well.
    """
    if set(general) <= set(tested_only):
        raise ValueError(f"tested_only names all general sets ({', '.join(general)}), so none is left to train on.")
    found, parts = {}, []
    columns = ["user_id", "prompt", "chosen", "rejected"]
    trained = len(set(general) - set(tested_only))
    for name, data in general.items():
        short = {split: fitting(data[split], tokenizer, max_length).select_columns(columns) for split in data}
        if name in tested_only:
            held_out = concatenate_datasets(list(short.values()))
        else:
            held_out = short["test_seen"]
            parts.append(sampled(short["train"], -(-train // trained), seed))
        found[f"{name}/test"] = _not_empty(sampled(held_out, test, seed), f"{name}/test", max_length)
    found[GENERAL] = _not_empty(sampled(concatenate_datasets(parts), train, seed), "general", max_length)
    return found


def _not_empty(pairs: Dataset, name: str, max_length: int) -> Dataset:
    if not len(pairs):
        raise ValueError(f"no pair of {name!r} has texts of at most {max_length} tokens. Raise max_length.")
    return pairs
