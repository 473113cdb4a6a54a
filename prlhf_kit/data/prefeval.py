"""`prefeval`: stated preferences and options that respect or violate them (Zhao et al. 2025, arXiv 2502.09597).

From https://github.com/amazon-science/PrefEval (`benchmark_dataset/mcq_options/*.json`, one file a topic) or one file
with all of them: rows `topic`, `preference`, `question`, `classification_task_options` (four, the first respects the
preference). A user is a preference; its text is `user_text`, its topic the group.

A user has one question (a few have two), so seen users have no new prompts to be tested on: there are `train` and
`test_unseen` only, and what is learnt must come through `user_text`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from prlhf_kit.data.collect import Card, Tally, share
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.data.sources import local_files, read_rows, require_columns

CARD = Card(
    title="PrefEval, multiple choice (Zhao et al. 2025, arXiv 2502.09597)",
    source="https://github.com/amazon-science/PrefEval, benchmark_dataset/mcq_options",
    licence="CC BY-NC 4.0",
    users="about 1,000 stated preferences on 20 topics",
    pairs="3 a question: the option that respects the preference against each other one",
    quality="Written by a model. Options are one sentence; the first is always the right one in the source. The same "
    "question can be asked under two preferences.",
    counts={"questions": 1_000, "topics": 20},
    rules={"prompt in train and test": "drop", "user with too few pairs": "drop"},
)


def read(
    tally: Tally, path: str | Path | None = None, *, unseen_share: float = 0.2, seed: int = 0
) -> Iterator[tuple[str, dict]]:
    """Records of `train` and `test_unseen`.

    Args:
        path: a file, or the folder of topic files.
        unseen_share: share of the users that are not trained on.
        seed: draws them.
    """
    if path is None:
        raise SchemaError(
            "'prefeval' is not on the hub: download benchmark_dataset/mcq_options from "
            "https://github.com/amazon-science/PrefEval and pass the folder as path."
        )
    topics = set()
    number = -1
    for file in local_files(path, "*.json", "mcq_options/*.json"):
        for row in read_rows([file]):
            number += 1
            require_columns(row, ("preference", "question", "classification_task_options"), "prefeval")
            # one file a topic in the release, in which 'travel_hotel copy' is a slip
            topic = (row.get("topic") or file.stem).removesuffix(" copy")
            user = hashlib.sha256(row["preference"].encode()).hexdigest()[:12]
            where = "test_unseen" if share(seed, "user", user) < unseen_share else "train"
            tally.count("questions")
            if topic not in topics:
                topics.add(topic)
                tally.count("topics")
            options = row["classification_task_options"]
            if not isinstance(options, list) or len(options) < 2:
                raise SchemaError(f"classification_task_options is {options!r}, expected a list of two texts or more.")
            for i, option in enumerate(options[1:]):
                pair = (row["question"], options[0], option)
                yield where, record(f"{number}-{user}-{i}", user, *pair, user_text=row["preference"], group=topic)
