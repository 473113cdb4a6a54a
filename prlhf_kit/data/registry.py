"""What a dataset of the kit is: facts (`Card`), and a loader that yields (split, record) and counts what it drops."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Features

from prlhf_kit.data.schema import SchemaError
from prlhf_kit.files import nearest

Source = str | Path | None  # a file or folder; None: the hub
Records = Iterator[tuple[str, dict[str, Any]]]  # what a loader yields: (split, record)


class Tally:
    """What a loader counts (for comparison with a paper's numbers) and drops (by split, user and reason)."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.drops: Counter[tuple[str, str, str]] = Counter()

    def count(self, name: str, n: int = 1) -> None:
        self.counts[name] += n

    def drop(self, split: str | None, user_id: str, reason: str, n: int = 1) -> None:
        self.drops[split or "(not split)", user_id, reason] += n


@dataclass(frozen=True)
class Report:
    """What the checks found, and what a loader had dropped before them.

    Args:
        table: pairs dropped: columns `split`, `user_id`, `reason`, `pairs`.
        kept: pairs that are left, all splits together.
        checks: one row a check: columns `check`, `rule`, `pairs` (that failed it).
        counts: what the loader counted, for comparison with a paper's numbers.
        shortened: prompts that are kept without their oldest turns.
        tokens: with a tokenizer: quantiles of the tokens of each split's first 1,000 pairs, before anything is dropped.
        source: title and licence, where the dataset has a card: with the summary, what is printed of a report.
    """

    table: pd.DataFrame
    kept: int
    checks: pd.DataFrame
    counts: Mapping[str, int] = field(default_factory=dict)
    shortened: int = 0
    tokens: pd.DataFrame | None = None
    source: str = ""

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
        return "\n".join(filter(None, [self.source, self.summary]))


@dataclass(frozen=True)
class Card:
    """Facts about a dataset, and its loader."""

    title: str  # its name in the literature, with the paper
    source: str  # hub id, or where its files come from
    licence: str
    users: str  # who states the preferences, and how many there are
    quality: str  # what is known to be wrong with it, or easy to get wrong
    read: Callable[..., Records]  # (tally, path, **options) -> (split, record)
    counts: Mapping[str, int] = field(default_factory=dict)  # the paper's, by the loader's name for them
    rules: Mapping[str, str] = field(default_factory=dict)  # where they differ from `check.RULES`
    extra: Features | None = None  # columns beside the record's
    folder: bool = False  # several files belong to it, so that `path` must be a folder


DATASETS: dict[str, Card] = {}  # in the order in which `prlhf_kit.data` imports them


def dataset(name: str, **facts: Any) -> Callable:
    """Decorates a loader, so that `load(name)` finds it; `facts` are its `Card`'s.

    What is on no hub has no default for `path`.
    """

    def add(read: Callable) -> Callable:
        DATASETS[name] = Card(read=read, **facts)
        return read

    return add


def share(*key: object) -> float:
    """A number in [0, 1) that depends on `key` only: the same row lands in the same split on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def split_of(
    user_id: str,
    prompt: str,
    unseen: Iterable[str],
    test_share: float,
    seed: int,
    part: str | None = None,
    fold: int = 0,
) -> str:
    """The split of a pair.

    Args:
        prompt: for a dialogue its first turn (`opening`): turns of one dialogue then stay together.
        unseen: users who are not trained on. Their pairs are for tests and adaptation.
        test_share, seed: where the source has no parts: this share of the prompts is for tests, whoever is asked, so
            that no prompt is in train and test.
        part: "train" or "test", where the source has parts.
        fold: which share of the prompts: 0 the first, 1 the next, for cross-validation.
    """
    drawn = share(seed, "prompt", " ".join(prompt.split()))
    test = part == "test" if part else fold * test_share <= drawn < (fold + 1) * test_share
    return split_for(user_id in unseen, test)


def split_for(unseen: bool, test: bool) -> str:
    """The split of a pair, by whether its user is never trained on, and whether it is for tests."""
    if unseen:
        return "test_unseen" if test else "adapt_unseen"
    return "test_seen" if test else "train"


def opening(prompt: list[dict[str, str]]) -> str:
    """What the user says first in a dialogue."""
    return next((m["content"] or "" for m in prompt if m["role"] == "user"), "")


def names(value: str | Iterable[str], known: Iterable[str] | None = None, what: str = "") -> tuple[str, ...]:
    """Names that were given as one text or as several, all of them among `known`."""
    found = (value,) if isinstance(value, str) else tuple(map(str, value))
    require_known(found, found if known is None else known, what)
    return found


def require_known(wanted: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse names of `wanted` that are not among `known`."""
    if unknown := sorted(set(wanted) - set(known)):
        hint = nearest(unknown[0], known)
        raise SchemaError(f"no {what} {unknown[0]!r}.{hint} There are: {', '.join(known) or 'none'}.")
