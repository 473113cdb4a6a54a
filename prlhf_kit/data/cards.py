"""What a dataset of the kit is: facts (`Card`), and a loader that yields (split, record) and counts what it drops."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from datasets import Features

from prlhf_kit.data.schema import SchemaError


class Tally:
    """What a loader counts (for comparison with a paper's numbers) and drops (by split, user and reason)."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.drops: Counter[tuple[str, str, str]] = Counter()

    def count(self, name: str, n: int = 1) -> None:
        self.counts[name] += n

    def drop(self, split: str | None, user_id: str, reason: str, n: int = 1) -> None:
        self.drops[split or "(not split)", user_id, reason] += n

    def table(self) -> pd.DataFrame:
        """Columns `split`, `user_id`, `reason`, `pairs`."""
        rows = [(*key, n) for key, n in self.drops.items()]
        return pd.DataFrame(rows, columns=["split", "user_id", "reason", "pairs"])


@dataclass(frozen=True)
class Report:
    """What the checks found, and what a loader had dropped before them.

    Args:
        table: one row per split, user and reason: columns `split`, `user_id`, `reason`, `pairs` (dropped).
        kept: pairs that are left, all splits together.
        checks: one row a check: columns `check`, `rule`, `pairs` (that failed it).
        counts: what the loader counted on its way, for comparison with a paper's own numbers.
        shortened: prompts that are kept without their oldest turns.
        tokens: where a tokenizer was given: one row a split, quantiles of the tokens of prompts and of pairs, over its
            first 1,000 pairs and before anything is dropped.
    """

    table: pd.DataFrame
    kept: int
    checks: pd.DataFrame
    counts: Mapping[str, int] = field(default_factory=dict)
    shortened: int = 0
    tokens: pd.DataFrame | None = None

    @property
    def summary(self) -> str:
        """One line for records: what was kept, and why the rest was not."""
        more = f"; {self.shortened} prompts without their oldest turns" if self.shortened else ""
        if self.table.empty:
            return f"{self.kept} pairs kept, none dropped{more}"
        found = self.table.groupby("reason", sort=False).pairs.sum()
        reasons = ", ".join(f"{n} {reason}" for reason, n in found.items())
        return f"{self.kept} of {self.kept + found.sum()} pairs kept{more}; dropped: {reasons}"

    @property
    def warning(self) -> str:
        """A line where more than a tenth was dropped, else \"\"."""
        share = self.table.pairs.sum() / max(self.kept + self.table.pairs.sum(), 1)
        return f"{share:.0%} of the pairs were dropped: {self.summary}" if share > 0.1 else ""

    def __str__(self) -> str:
        users = self.table.groupby("reason", sort=False).agg(pairs=("pairs", "sum"), users=("user_id", "nunique"))
        lines = [f"  {row.pairs} {reason} (of {row.users} users)" for reason, row in users.iterrows()]
        return "\n".join([self.summary.partition("; dropped: ")[0] + (":" if lines else ""), *lines])


@dataclass(frozen=True)
class Card:
    """Facts about a dataset, and its loader.

    Args:
        title: its name in the literature, with the paper.
        source: hub id, or where its files come from.
        licence: of the data.
        users: who states the preferences, and how many there are.
        pairs: how many pairs, by the paper that made or first used it.
        quality: what is known to be wrong with it, or easy to get wrong.
        read: `read(tally, path, **options)` yields (split, record). `path` None: from the hub, or embedded.
        counts: the paper's own numbers, by the name under which the loader counts them.
        rules: checks whose rule differs from `check.RULES` for this dataset.
        extra: columns beside the record's.
        by_path: where to download what is on no hub. Empty: the loader can do without `path`.
        folder: several files belong to it, so that `path` must be a folder.
    """

    title: str
    source: str
    licence: str
    users: str
    pairs: str
    quality: str
    read: Callable[..., Iterator[tuple[str, dict[str, Any]]]]
    counts: Mapping[str, int] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)
    extra: Features | None = None
    by_path: str = ""
    folder: bool = False


DATASETS: dict[str, Card] = {}  # in the order in which `prlhf_kit.data` imports them


def dataset(name: str, **facts: Any) -> Callable:
    """Decorates a loader: from now on `load(name)` finds it. `facts`: what stands on its `Card`."""

    def add(read: Callable) -> Callable:
        DATASETS[name] = Card(read=read, **facts)
        return read

    return add


def share(*key: object) -> float:
    """A number in [0, 1) that depends on `key` only: the same row lands in the same split on every machine.

    >>> share(0, "prompt", "How do I make tea?") == share(0, "prompt", "How do I make tea?")
    True
    """
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def split_of(
    user_id: str, prompt: str, unseen: Iterable[str], test_share: float, seed: int, part: str | None = None
) -> str:
    """The split of a pair.

    Args:
        prompt: for a dialogue its first turn (`opening`): turns of one dialogue then stay together.
        unseen: users who are not trained on. Their pairs are for tests and adaptation.
        test_share, seed: where the source has no parts: this share of the prompts is for tests, whoever is asked, so
            that no prompt is in train and test.
        part: "train" or "test", where the source has parts.
    """
    test = part == "test" if part else share(seed, "prompt", " ".join(prompt.split())) < test_share
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
    if strangers := sorted(set(wanted) - set(known)):
        raise SchemaError(f"no {what} {strangers[0]!r}; there are: {', '.join(sorted(known))}.")
