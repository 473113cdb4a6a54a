"""`gpt4llm`: responses to Alpaca instructions scored by GPT-4 (Peng et al. 2023, arXiv 2304.03277).

From https://github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM: `data/comparison_data.json` (or `_v2`), rows
`user_input` and `responses_and_scores[{response, source, score}]`. Also read: DSP's cleaned `gpt4llm.{train,test}.json`
in `text`-`score` format.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from prlhf_kit.data.collect import Card, Tally, split_of
from prlhf_kit.data.dialogue import GENERAL, require_number, text_score_records
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.data.sources import local_rows, require_columns

CARD = Card(
    title="GPT-4-LLM comparisons (Peng et al. 2023, arXiv 2304.03277)",
    source="https://github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM, data/comparison_data_v2.json",
    licence="CC BY-NC 4.0",
    users="1 (general): GPT-4",
    pairs="52K instructions with two or three scored responses each",
    quality="One model's judgement, known to favour long answers and its own. Many scores are equal.",
    rules={"prompt in train and test": "drop"},
)


def read(
    tally: Tally, path: str | Path | None = None, *, test_share: float = 0.1, seed: int = 0
) -> Iterator[tuple[str, dict]]:
    """Records of the user "general": every pair of a prompt's responses with different scores.

    Args:
        path: a file of either form, or a folder with `comparison_data*.json` or `gpt4llm.{train,test}.json`.
        test_share, seed: for a source without a split of its own, which is split by prompt.
    """
    if path is None:
        raise SchemaError(
            "'gpt4llm' is not on the hub: download data/comparison_data_v2.json from "
            "https://github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM and pass it as path."
        )
    if list(Path(path).glob("gpt4llm.train.*")):
        for name, split in (("train", "train"), ("test", "test_seen")):
            rows = local_rows(path, f"gpt4llm.{name}.*")
            yield from text_score_records(rows(), tally, f"gpt4llm-{name}", GENERAL, split, test_share, seed)
        return
    rows = local_rows(path, "comparison_data_v2.json", "comparison_data*.json", "gpt4llm*")
    if "text" in next(rows(), {}):
        yield from text_score_records(rows(), tally, "gpt4llm", GENERAL, None, test_share, seed)
        return
    for number, row in enumerate(rows()):
        require_columns(row, ("user_input", "responses_and_scores"), "gpt4llm")
        tally.count("prompts")
        where = split_of(GENERAL, row["user_input"], (), test_share, seed)
        for (i, a), (j, b) in combinations(enumerate(row["responses_and_scores"]), 2):
            tally.count("comparisons")
            for one in (a, b):
                require_number(one["score"], "score")
            if a["score"] == b["score"]:
                tally.drop(where, GENERAL, "tie")
                continue
            chosen, rejected = (a, b) if a["score"] > b["score"] else (b, a)
            pair_id = f"gpt4llm-{number}-{i}-{j}"
            yield where, record(pair_id, GENERAL, row["user_input"], chosen["response"], rejected["response"])
