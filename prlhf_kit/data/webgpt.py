"""`webgpt`: comparisons of long answers with quotes (Nakano et al. 2021, arXiv 2112.09332).

Hub: `openai/webgpt_comparisons`, split `train` (a script repository: its parquet conversion is read, revision
`refs/convert/parquet`); rows `question{dataset, id, full_text}`, `answer_0`, `answer_1`, `score_0`, `score_1` (-1 to 1,
they add up to 0) and quotes and tokens, which are not read. Local: the same as a file, or DSP's cleaned
`webgpt.{train,test}.json` in `text`-`score` format.

19,578 comparisons by the hub's card; equal scores are ties and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prlhf_kit.data.collect import Card, Tally, split_of
from prlhf_kit.data.dialogue import GENERAL, require_number, text_score_records
from prlhf_kit.data.schema import record
from prlhf_kit.data.sources import hub_rows, local_rows, require_columns

HUB = "openai/webgpt_comparisons"
COLUMNS = ("question", "answer_0", "answer_1", "score_0", "score_1")
CARD = Card(
    title="WebGPT comparisons (Nakano et al. 2021, arXiv 2112.09332)",
    source=f"hub: {HUB}; DSP's cleaned files: https://github.com/Linear95/DSP",
    licence="not stated on the hub (OpenAI); DSP's cleaned files CC BY-NC 4.0",
    users="1 (general): the labellers are not named",
    pairs="19,578 comparisons, about a quarter of them ties",
    quality="Judged with the quotes in sight, which are not part of the record: marks such as [1] lead nowhere.",
    counts={"comparisons": 19_578},
    rules={"prompt in train and test": "drop"},
)


def read(
    tally: Tally, path: str | Path | None = None, *, test_share: float = 0.1, seed: int = 0
) -> Iterator[tuple[str, dict]]:
    """Records of the user "general", ties dropped and counted.

    Args:
        path: a file of either form, or a folder with `webgpt*`.
        test_share, seed: for a source without a split of its own, which is split by question.
    """
    if path is not None and list(Path(path).glob("webgpt.train.*")):
        parts = [
            (split, local_rows(path, f"webgpt.{name}.*")) for name, split in (("train", "train"), ("test", "test_seen"))
        ]
    else:
        rows = (
            hub_rows(HUB, "train", converted=True)
            if path is None
            else local_rows(path, "webgpt*", "default/train/*", "*train*", "*.parquet", "*.jsonl")
        )
        parts = [(None, rows)]  # type: ignore[list-item]
    for split, rows in parts:
        if "text" in next(rows(), {}):
            yield from text_score_records(rows(), tally, "webgpt", GENERAL, split, test_share, seed)
            continue
        for number, row in enumerate(rows()):
            require_columns(row, COLUMNS, "webgpt")
            tally.count("comparisons")
            question = row["question"]["full_text"]
            where = split_of(GENERAL, question or "", (), test_share, seed)
            for name in ("score_0", "score_1"):
                require_number(row[name], name)
            if row["score_0"] == row["score_1"]:
                tally.drop(where, GENERAL, "tie")
                continue
            a, b = row["answer_0"], row["answer_1"]
            chosen, rejected = (a, b) if row["score_0"] > row["score_1"] else (b, a)
            yield where, record(f"webgpt-{number}", GENERAL, question, chosen, rejected)
