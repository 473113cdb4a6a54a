"""From a loader's rows to memory-mapped splits, with a tally of what was counted and dropped on the way."""

from __future__ import annotations

import atexit
import hashlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, config
from tqdm.auto import tqdm

from prlhf_kit.data.schema import FEATURES, SPLITS, SchemaError

BATCH = 1000  # rows that are in memory at a time


class Tally:
    """What a loader counts (for comparison with a paper's numbers) and drops (by split, user and reason)."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.drops: Counter[tuple[str, str, str]] = Counter()

    def count(self, name: str, n: int = 1) -> None:
        self.counts[name] += n

    def drop(self, split: str, user_id: str, reason: str) -> None:
        self.drops[split, user_id, reason] += 1

    def table(self) -> pd.DataFrame:
        """Columns `split`, `user_id`, `reason`, `pairs`."""
        rows = [(*key, n) for key, n in self.drops.items()]
        return pd.DataFrame(rows, columns=["split", "user_id", "reason", "pairs"])


def share(*key: object) -> float:
    """A number in [0, 1) that depends on `key` only: the same row lands in the same split on every machine.

    >>> share(0, "prompt", "How do I make tea?") == share(0, "prompt", "How do I make tea?")
    True
    """
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def split_of(user_id: str, prompt: str, unseen: Iterable[str], test_share: float, seed: int) -> str:
    """The split of a pair where a dataset has none of its own: by prompt, so that no prompt is in train and test.

    For a dialogue pass its first turn (`opening`): turns of one dialogue then stay together.

    A `test_share` of the prompts is for tests, whoever is asked; pairs of `unseen` users on the others are for
    adaptation.
    """
    test = share(seed, "prompt", " ".join(prompt.split())) < test_share
    if user_id in unseen:
        return "test_unseen" if test else "adapt_unseen"
    return "test_seen" if test else "train"


def opening(prompt: list[dict[str, str]]) -> str:
    """What the user says first in a dialogue."""
    return next((m["content"] or "" for m in prompt if m["role"] == "user"), "")


def names(value: str | Iterable[str]) -> tuple[str, ...]:
    """Names that were given as one text or as several."""
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def require_known(wanted: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse names of `wanted` that are not among `known`."""
    strangers = sorted(set(wanted) - set(known))
    if strangers:
        raise SchemaError(f"no {what} {strangers[0]!r}; there are: {', '.join(sorted(known))}.")


def collect(rows: Iterable[tuple[str, dict]], features: Features = FEATURES) -> DatasetDict:
    """Write (split, record) rows to Arrow files and map them into memory: a million pairs take disk, not RAM.

    The files lie in the cache folder of `datasets` and go when the process ends; `prlhf data prepare` keeps them.

    Raises:
        SchemaError: a row does not fit `features`.
    """
    schema = features.arrow_schema
    Path(config.HF_DATASETS_CACHE).mkdir(parents=True, exist_ok=True)
    temporary = tempfile.TemporaryDirectory(dir=config.HF_DATASETS_CACHE, prefix="prlhf_kit-")
    atexit.register(temporary.cleanup)  # and with it the object lives until then
    folder = Path(temporary.name)
    writers: dict[str, pa.RecordBatchStreamWriter] = {}
    counts: Counter[str] = Counter()
    try:
        shown = tqdm(rows, desc="reading", unit=" pairs", disable=None, leave=False)
        for batch in _batches(shown, BATCH):
            for split in dict.fromkeys(split for split, _ in batch):
                chunk = [row for where, row in batch if where == split]
                if split not in writers:
                    writers[split] = pa.ipc.new_stream(str(folder / f"{split}.arrow"), schema)
                writers[split].write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))
                counts[split] += len(chunk)
    except (pa.ArrowException, UnicodeEncodeError) as error:
        raise SchemaError(f"a row does not fit the record: {error}. Expected {dict(features)}.") from error
    finally:
        for writer in writers.values():
            writer.close()
    order = [s for s in SPLITS if s in counts] + sorted(set(counts) - set(SPLITS))
    return DatasetDict({split: Dataset.from_file(str(folder / f"{split}.arrow")) for split in order})


def _batches(rows: Iterable, size: int) -> Iterator[list]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


@dataclass(frozen=True)
class Card:
    """Facts about a dataset.

    Args:
        title: its name in the literature, with the paper.
        source: hub id, or where its files come from.
        licence: of the data.
        users: who states the preferences, and how many there are.
        pairs: how many pairs, by the paper that made or first used it.
        quality: what is known to be wrong with it, or easy to get wrong.
        counts: the paper's own numbers, by the name under which the loader counts them.
        rules: checks whose rule differs from `check.RULES` for this dataset.
        extra: columns beside the record's.
    """

    title: str
    source: str
    licence: str
    users: str
    pairs: str
    quality: str
    counts: Mapping[str, int] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)
    extra: Features | None = None
