"""`tldr`: comparisons of summaries of Reddit posts, with the worker who compared them (Stiennon et al. 2020)."""

from collections import Counter
from pathlib import Path

import numpy as np

from prlhf_kit.data.registry import Records, Source, Tally, dataset, require_known, split_for
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.data.sources import hub_rows, local_rows

HUB = "openai/summarize_from_feedback"
PARTS = {"train": "train", "validation": "test", "valid1": "test", "valid2": "test"}


@dataset(
    "tldr",
    title="TL;DR comparisons (Stiennon et al. 2020, arXiv 2009.01325)",
    source=f"hub: {HUB}, comparisons",
    licence="MIT; Reddit posts keep their authors' rights",
    users="workers, a few with most of the pairs",
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
def read(
    tally: Tally,
    path: Source = None,
    *,
    mode: str = "real",
    top: int = 10,
    seed: int = 3456,
) -> Records:
    """Records: `train` and `adapt_unseen` from the train split, both tests from the validation split.

    "synthetic" is the data of P-RLHF (Li et al. 2024, arXiv 2402.05133), with the generator and seed of its released
    notebook: a worker prefers longer summaries with probability 0.7; of the ten, seven do. Departure: unseen workers'
    training rows are kept.

    A row: `{"info": {"post": "I fell.", "title": "Ouch", "subreddit": "tifu", "article": None}, "summaries": [{"text":
    "Fell.", "policy": "sup4"}, {"text": "I fell.", "policy": "ref"}], "choice": 1, "worker": "w3", "split": "train"}`;
    `choice` is the index of the preferred summary; of news articles, `article` is set in place of the others.

    Args:
        path: a folder with `comparisons/{train,validation}/*`, `{train,validation}*` or OpenAI's `batch*.json`.
        mode: "real", the workers' own choices on all pairs; "synthetic", P-RLHF's length preferences, on the pairs
            whose two policies contain "sup" and neither "ppo" nor "cnn".
        top: this many workers with most training comparisons are seen, all others unseen (10 or 40 in P-RLHF).
        seed: draws the workers' preferences ("synthetic").
    """
    require_known([mode], ("real", "synthetic"), "mode")
    synthetic = mode == "synthetic"
    parts = ("train", "validation")
    if path is None:
        sources = [hub_rows(HUB, split, "comparisons", converted=True) for split in parts]
    elif Path(path).is_file() or any(Path(path).glob("**/batch*.json")):
        sources = [local_rows(path, "batch*.json", "comparisons/batch*.json")]
    else:
        patterns = ("comparisons/{0}/*", "comparisons/{0}*", "{0}/*", "{0}*")
        sources = [local_rows(path, *(pattern.format(split) for pattern in patterns)) for split in parts]
    found: dict[str, Counter[str]] = {part: Counter() for part in parts}
    for row in (row for source in sources for row in source):  # who annotated how much
        require_known([row["split"]], PARTS, "split")
        name = "train" if row["split"] == "train" else "validation"
        tally.count(f"comparisons, {name}")
        if not synthetic or _supervised(row):
            found[name][row["worker"]] += 1
    workers = sorted(found["train"] | found["validation"])  # so that it does not depend on the order of rows
    workers.sort(key=lambda worker: -found["train"][worker])
    seen = set(workers[:top])
    for name, n in found.items():
        tally.count(f"{'after the policy filter' if synthetic else 'of all workers'}, {name}", n.total())
        if synthetic:
            tally.count(f"of the top {top} workers, {name}", sum(n[worker] for worker in seen))
    drawn = np.random.RandomState(seed).random_sample(len(workers)) < 0.7  # P-RLHF's share
    taste = dict(zip(workers, np.where(drawn, "longer", "shorter"), strict=True)) if synthetic else {}
    for number, row in enumerate(row for source in sources for row in source):
        worker, part = row["worker"], PARTS[row["split"]]
        split = split_for(worker not in seen, part == "test")
        if synthetic and not _supervised(row):
            tally.drop(split, worker, "not from two supervised policies")
            continue
        a, b = (summary["text"] or "" for summary in row["summaries"])
        if row["choice"] not in (0, 1) or isinstance(row["choice"], bool):
            raise SchemaError(f"choice is {row['choice']!r}, expected 0 or 1: which of the two summaries is preferred.")
        if synthetic:
            a_wins = len(a) >= len(b) if taste[worker] == "longer" else len(a) <= len(b)
        else:
            a_wins = row["choice"] == 0
        answers = (a, b) if a_wins else (b, a)
        pair_id = f"{'train' if part == 'train' else 'validation'}-{number}"
        info = row["info"]
        text = info["article"] if info["post"] is None else info["post"]
        asked = f"ARTICLE: {text}\nTL;DR: "  # of news (CNN/DM), which have no subreddit and title
        if info["subreddit"] is not None:  # as P-RLHF lays it out
            asked = f"SUBREDDIT: r/{info['subreddit']}\nTITLE: {info['title']}\nPOST: {text}\nTL;DR: "
        yield split, record(pair_id, worker, asked if text else "", *answers, group=taste.get(worker))


def _supervised(row: dict) -> bool:
    policies = [summary["policy"] for summary in row["summaries"]]
    return all("sup" in p and "ppo" not in p and "cnn" not in p for p in policies)
