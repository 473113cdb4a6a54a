"""`hh_relabelled`: HH-RLHF pairs relabelled for two objectives (VPL: Poddar et al. 2024, arXiv 2408.10075).

From https://github.com/WEIRDLabUW/vpl_llm: JSON lines (`both.jsonl.gz`) with `Index`, `chosen`, `rejected` (dialogues
with "Human: " and "Assistant: "), `data_subset` (where the pair comes from) and `objective` (by which it was
relabelled). The objective is the user: two users with conflicting taste, since pairs of either subset are ranked by
either objective.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prlhf_kit.data.collect import Card, Tally, opening, split_of
from prlhf_kit.data.hh import dialogue_pair
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.data.sources import local_rows, require_columns

OBJECTIVES = {"helpful": "Help me with whatever I ask.", "harmless": "Never say anything that could do harm."}
CARD = Card(
    title="HH-RLHF relabelled by objective (VPL, Poddar et al. 2024, arXiv 2408.10075)",
    source="https://github.com/WEIRDLabUW/vpl_llm, both.jsonl.gz",
    licence="base data MIT; labels as published with VPL",
    users="2 objectives (helpful, harmless)",
    pairs="3,370 in the file that was tried",
    quality="Labelled by a model, not by people. The two users rank different pairs: where they disagree on the same "
    "pair can't be read off it.",
)


def read(
    tally: Tally, path: str | Path | None = None, *, test_share: float = 0.1, seed: int = 0
) -> Iterator[tuple[str, dict]]:
    """Records split by the dialogues' first turns.

    Args:
        path: the file, or a folder with `both.jsonl*`.
        test_share: share of the prompts for tests.
        seed: draws the prompts for tests.
    """
    if path is None:
        raise SchemaError(
            "'hh_relabelled' is not on the hub: make or download both.jsonl from "
            "https://github.com/WEIRDLabUW/vpl_llm and pass it as path."
        )
    for number, row in enumerate(local_rows(path, "both.jsonl*", "*.jsonl*")()):
        require_columns(row, ("chosen", "rejected", "objective"), "hh_relabelled")
        user = row["objective"]
        if user not in OBJECTIVES:
            raise SchemaError(f"the objective of row {number} is {user!r}, expected one of {list(OBJECTIVES)}.")
        tally.count("pairs")
        found = dialogue_pair(row)
        if isinstance(found, str):
            tally.drop("(not split)", user, found)
            continue
        prompt, chosen, rejected = found
        where = split_of(user, opening(prompt), (), test_share, seed)
        yield where, record(f"{user}-{number}", user, prompt, chosen, rejected, OBJECTIVES[user])
