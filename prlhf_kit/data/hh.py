"""`hh`: helpful and harmless comparisons of one general user (Bai et al. 2022, arXiv 2204.05862).

Hub: `Anthropic/hh-rlhf` (MIT), folders `helpful-base` and `harmless-base`, splits `train` and `test`; rows `chosen`
and `rejected`, whole dialogues. Local: those folders with `{train,test}.jsonl.gz`, or DSP's cleaned files
`helpful.{train,test}.json`, `harmless.{train,test}.json` in `text`-`score` format (from
https://github.com/Linear95/DSP).

Row counts as they are commonly reported, not checked against the hub: helpful-base 43,835 train and 2,354 test rows,
harmless-base 42,537 and 2,312.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prlhf_kit.data.collect import Card, Tally, opening, require_known, split_of
from prlhf_kit.data.dialogue import GENERAL, NotAPair, common_prompt, text_score_records
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.data.sources import Rows, hub_rows, local_rows, require_columns

HUB = "Anthropic/hh-rlhf"
Part = tuple[str, str | None, Rows]  # subset, split of the source, rows
SUBSETS = ("helpful", "harmless")
CARD = Card(
    title="HH-RLHF (Bai et al. 2022, arXiv 2204.05862)",
    source=f"hub: {HUB}; DSP's cleaned files: https://github.com/Linear95/DSP",
    licence="MIT; DSP's cleaned files CC BY-NC 4.0",
    users="1 (general): the crowd workers are not named",
    pairs="helpful-base 46,189, harmless-base 44,849",
    quality="Offensive content by design. Many pairs differ little, some are labelled against sense. In a few rows the "
    "dialogues differ before the last answer; they are dropped. Some prompts are in train and test.",
    counts={"helpful, train": 43_835, "helpful, test": 2_354, "harmless, train": 42_537, "harmless, test": 2_312},
    rules={"prompt in train and test": "drop"},
)


def read(
    tally: Tally, path: str | Path | None = None, *, subset: str = "both", test_share: float = 0.1, seed: int = 0
) -> Iterator[tuple[str, dict]]:
    """Records of the user "general".

    Args:
        path: a folder with either form, or one file of either form.
        subset: "helpful", "harmless" or "both".
        test_share, seed: for a file without a split of its own, which is split by prompt.
    """
    require_known([subset], (*SUBSETS, "both"), "subset")
    if path is not None and Path(path).is_file():
        name = Path(path).name.split(".")[0]
        if subset != "both" and name in SUBSETS and name != subset:
            raise SchemaError(f"subset={subset!r}, but {path} is {name!r}. Pass subset={name!r}, or the folder.")
        parts: list[Part] = [(name, None, local_rows(path))]
    else:
        wanted = SUBSETS if subset == "both" else (subset,)
        parts = [part for name in wanted for part in _parts(path, name)]
    for name, split, rows in parts:
        yield from general_records(rows, tally, "hh", name, split, test_share, seed)


def general_records(
    rows: Rows, tally: Tally, dataset: str, name: str, split: str | None, test_share: float, seed: int
) -> Iterator[tuple[str, dict]]:
    """Records of rows with `chosen` and `rejected` dialogues, or in `text`-`score` format.

    Args:
        split: of the source ("train" or "test"); None splits by prompt.
    """
    where = None if split is None else {"train": "train", "test": "test_seen"}[split]
    first = next(rows(), {})
    if "text" in first:
        count = f"{name}, {split or 'all'}"
        yield from text_score_records(rows(), tally, f"{dataset}-{name}", GENERAL, where, test_share, seed, count=count)
        return
    for number, row in enumerate(rows()):
        require_columns(row, ("chosen", "rejected"), dataset)
        tally.count(f"{name}, {split or 'all'}")
        found = dialogue_pair(row)
        if isinstance(found, str):
            tally.drop(where or "(not split)", GENERAL, found)
            continue
        prompt, chosen, rejected = found
        place = where or split_of(GENERAL, opening(prompt), (), test_share, seed)
        yield place, record(f"{dataset}-{name}-{split or 'all'}-{number}", GENERAL, prompt, chosen, rejected)


def dialogue_pair(row: dict[str, Any]) -> tuple[list[dict[str, str]], str, str] | str:
    """(prompt, chosen, rejected) of a row with two whole dialogues, or why it is none."""
    try:
        prompt, (chosen, rejected) = common_prompt(row["chosen"] or "", row["rejected"] or "")
    except NotAPair as reason:
        return str(reason)
    return prompt, chosen, rejected


def _parts(path: str | Path | None, name: str) -> list[Part]:
    if path is None:
        return [(name, s, hub_rows(HUB, s, data_dir=f"{name}-base")) for s in ("train", "test")]
    if not list(Path(path).glob(f"{name}*")):
        raise SchemaError(f"{path} has nothing of the subset {name!r}, expected {name}-base/ or {name}*.json there.")
    found: list[Part] = []
    for split in ("train", "test"):
        if list(Path(path).glob(f"{name}-base/{split}.*")) or list(Path(path).glob(f"{name}.{split}.*")):
            found.append((name, split, local_rows(path, f"{name}-base/{split}.*", f"{name}.{split}.*")))
    return found or [(name, None, local_rows(path, f"{name}*"))]
