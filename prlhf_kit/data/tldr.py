"""`tldr`: comparisons of summaries of Reddit posts, with the worker who compared them (Stiennon et al. 2020).

Hub: `openai/summarize_from_feedback`, configuration `comparisons`, splits `train` and `validation`. That is a script
repository, which recent `datasets` refuses, so the hub's own parquet conversion is read (revision
`refs/convert/parquet`). Local: a folder with `comparisons/{train,validation}/*.parquet`, the same as JSON lines,
`save_to_disk` folders `train` and `validation`, or OpenAI's `batch*.json`.

Schema: `info{id, post, title, subreddit, site, article}`, `summaries[{text, policy, note}]` (two), `choice` (index of
the preferred one), `worker`, `batch`, `split`, `extra{confidence}`.

Counts of P-RLHF (Li et al. 2024, arXiv 2402.05133) and its released notebook: 92,858 / 86,086 comparisons; 38,487 /
16,294 after the policy filter; the ten workers with most training comparisons have 23,299 / 4,921, the forty 38,065 /
13,060. Its worker preferences are drawn with NumPy's legacy generator, seed 3456: seven of the ten prefer longer
summaries, with 16,607 / 3,371 comparisons. The same seed is the default here.

Departure: the rows of workers who are not seen are kept as `adapt_unseen` (P-RLHF drops them).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from prlhf_kit.data.collect import Card, Tally
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.data.sources import Rows, hub_rows, local_rows, require_columns

HUB = "openai/summarize_from_feedback"
CARD = Card(
    title="TL;DR comparisons (Stiennon et al. 2020, arXiv 2009.01325)",
    source=f"hub: {HUB}, comparisons",
    licence="MIT (code and labels); Reddit posts keep their authors' rights",
    users="workers, a few with most of the pairs",
    pairs="92,858 train and 86,086 validation comparisons",
    quality="Workers label what is a good summary, not what they like; most pairs are from a few workers. P-RLHF's "
    "synthetic mode replaces their choices by length alone: a length rule per user is then the oracle.",
    counts={
        "comparisons, train": 92_858,
        "comparisons, validation": 86_086,
        "after the policy filter, train": 38_487,
        "after the policy filter, validation": 16_294,
        "of the top 10 workers, train": 23_299,
        "of the top 10 workers, validation": 4_921,
        "of the top 40 workers, train": 38_065,
        "of the top 40 workers, validation": 13_060,
    },
    rules={"prompt in train and test": "drop", "user with too few pairs": "drop"},
)
COLUMNS = ("info", "summaries", "choice", "worker", "split")


def read(
    tally: Tally,
    path: str | Path | None = None,
    *,
    mode: str = "real",
    top: int = 10,
    p_longer: float = 0.7,
    seed: int = 3456,
) -> Iterator[tuple[str, dict]]:
    """Records: `train` and `adapt_unseen` from the train split, both tests from the validation split.

    Args:
        mode: "real", the workers' own choices on all pairs; "synthetic", P-RLHF's length preferences, on the pairs
            whose two policies contain "sup" and neither "ppo" nor "cnn".
        top: this many workers with most training comparisons are seen, all others unseen (10 or 40 in P-RLHF).
        p_longer: with this probability a worker prefers longer summaries, else shorter ones ("synthetic").
        seed: draws the workers' preferences ("synthetic").
    """
    if mode not in ("real", "synthetic"):
        raise SchemaError(f"mode={mode!r}: expected 'real' (the worker's own choice) or 'synthetic' (P-RLHF's length).")
    sources = _sources(path)
    found: dict[str, dict[str, int]] = {"train": {}, "validation": {}}
    for row in _rows(sources):  # who annotated how much
        split = _split(row)
        tally.count(f"comparisons, {split}")
        if mode == "real" or _supervised(row):
            found[split][row["worker"]] = found[split].get(row["worker"], 0) + 1
    columns = {split: pd.Series(workers, dtype=int) for split, workers in found.items()}
    # in the order of ids first, so that it does not depend on the order of rows
    table = pd.DataFrame(columns).fillna(0).astype(int).sort_index()
    table = table.sort_values("train", ascending=False, kind="stable")
    for split in ("train", "validation"):
        tally.count(
            f"{'after the policy filter' if mode == 'synthetic' else 'of all workers'}, {split}",
            int(table[split].sum()),
        )
        if mode == "synthetic":
            tally.count(f"of the top {top} workers, {split}", int(table[split].head(top).sum()))
    seen = set(table.index[:top])
    drawn = np.random.RandomState(seed).random_sample(len(table)) < p_longer
    taste = dict(zip(table.index, np.where(drawn, "longer", "shorter"), strict=True)) if mode == "synthetic" else {}
    for number, row in enumerate(_rows(sources)):
        worker, split = row["worker"], _split(row)
        where = {"train": ("train", "adapt_unseen"), "validation": ("test_seen", "test_unseen")}[split][
            worker not in seen
        ]
        if mode == "synthetic" and not _supervised(row):
            tally.drop(where, worker, "not from two supervised policies")
            continue
        a, b = (summary["text"] or "" for summary in row["summaries"])
        if row["choice"] not in (0, 1) or isinstance(row["choice"], bool):
            raise SchemaError(f"choice is {row['choice']!r}, expected 0 or 1: which of the two summaries is preferred.")
        if mode == "real":
            a_wins = row["choice"] == 0
        else:
            a_wins = len(a) >= len(b) if taste[worker] == "longer" else len(a) <= len(b)
        chosen, rejected = (a, b) if a_wins else (b, a)
        pair_id = f"{split}-{number}"
        yield where, record(pair_id, worker, _prompt(row["info"]), chosen, rejected, group=taste.get(worker))


def _sources(path: str | Path | None) -> list[Rows]:
    if path is None:
        return [hub_rows(HUB, split, "comparisons", converted=True) for split in ("train", "validation")]
    if Path(path).is_file() or any(Path(path).glob("batch*.json")) or any(Path(path).glob("comparisons/batch*.json")):
        return [local_rows(path, "batch*.json", "comparisons/batch*.json")]
    return [
        local_rows(path, f"comparisons/{split}/*", f"comparisons/{split}*", f"{split}/*", f"{split}*", f"*{split}*")
        for split in ("train", "validation")
    ]


def _rows(sources: list[Rows]) -> Iterator[dict]:
    for source in sources:
        for row in source():
            require_columns(row, COLUMNS, "tldr")
            if not isinstance(row["worker"], str) or len(row["summaries"]) != 2:
                raise SchemaError(f"expected a worker (text) and two summaries, got {str(row)[:200]}.")
            yield row


def _split(row: dict) -> str:
    if row["split"] not in ("train", "validation", "valid1", "valid2"):
        raise SchemaError(f"split is {row['split']!r}, expected train, valid1 or valid2.")
    return "train" if row["split"] == "train" else "validation"


def _supervised(row: dict) -> bool:
    policies = [summary["policy"] for summary in row["summaries"]]
    return all("sup" in p and "ppo" not in p and "cnn" not in p for p in policies)


def _prompt(info: dict) -> str:
    """As P-RLHF lays it out; news articles (CNN/DM), which have no subreddit and title, without those."""
    text = info["article"] if info["post"] is None else info["post"]
    if not text:
        return ""  # which the checks drop and count
    if info["subreddit"] is None:
        return f"ARTICLE: {text}\nTL;DR: "
    return f"SUBREDDIT: r/{info['subreddit']}\nTITLE: {info['title']}\nPOST: {text}\nTL;DR: "
