"""`files`: preferences of one's own, from JSON (lines), CSV or parquet, with a column mapping."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prlhf_kit.data.cards import Tally, dataset, names, opening, require_known, split_of
from prlhf_kit.data.schema import COLUMNS, MESSAGES, SPLITS, SchemaError, message
from prlhf_kit.data.sources import Rows, local_files, rows_of


@dataset(
    "files",
    title="Files of one's own",
    source="path: JSON, JSON lines (also .gz), CSV or parquet",
    licence="your own",
    users="any",
    pairs="any",
    quality="The checks say what they find.",
    by_path="write your pairs as JSON, CSV or parquet, one file or a folder of them,",
)
def read(
    tally: Tally,
    path: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    test_share: float = 0.1,
    unseen: str | Sequence[str] = (),
    seed: int = 0,
) -> Iterator[tuple[str, dict]]:
    """Records, with their `split` if there is such a column, else split by prompt.

    A row: `{"user_id": "ann", "prompt": "How do I make tea?", "chosen": "Boil water.", "rejected": "No idea."}`.

    Args:
        path: a file, or a folder of files; files named train, test_seen, test_unseen or adapt_unseen (and more after a
            dot or a dash) are those splits.
        columns: the record's column (or `split`) -> yours, where the names differ. `prompt`, `chosen` and `rejected`
            are text, or lists of {role, content} messages (as JSON text in CSV); where chosen and rejected hold the
            whole dialogue, what they share is the prompt. Ids may be whole numbers.
        test_share, unseen, seed: where there is no split: share of the prompts for tests, users that are not trained
            on, and what draws the prompts.
    """
    assert path is not None
    mapping = {name: name for name in (*COLUMNS, "split")} | dict(columns or {})
    require_known(mapping, (*COLUMNS, "split"), "column of the record")
    unseen, met = names(unseen), set()
    for part, rows in _parts(Path(path)):
        for number, row in enumerate(rows):
            tally.count("rows")
            where = f"row {number} of {part or path}"
            for name in ("user_id", *MESSAGES):
                if mapping[name] not in row:
                    raise SchemaError(
                        f"{where} has no column {mapping[name]!r} for {name!r}; found {sorted(row)}. "
                        f"Pass columns={{{name!r}: 'your column'}}."
                    )
            found = {name: row.get(column) for name, column in mapping.items()}
            _strip_prompt(found)
            user = _id(found["user_id"], where, mapping["user_id"])
            met.add(user)
            out: dict[str, Any] = {
                "pair_id": _id(found["pair_id"], where, mapping["pair_id"]) or f"{part or 'row'}-{number}",
                "user_id": user,
                "user_text": found["user_text"] or None,
                "group": _id(found["group"], where, mapping["group"]) or None,
                **{name: _messages(found[name], name, where, mapping[name]) for name in MESSAGES},
            }
            split = part or found["split"]
            if split is None:
                split = split_of(user, opening(out["prompt"]), unseen, test_share, seed)
            elif split not in SPLITS:
                raise SchemaError(f"{where} has the split {split!r}, expected one of {', '.join(SPLITS)}.")
            yield split, out
    require_known(unseen, met, "user")


def _parts(path: Path) -> list[tuple[str | None, Rows]]:
    """(split, its rows), or (None, all rows) where no file is named after a split."""
    files = local_files(path, "*")
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.name.replace("-", ".").split(".")[0], []).append(file)
    named = [split for split in SPLITS if split in by_stem and path.is_dir()]
    other = [files[0].name for stem, files in by_stem.items() if stem not in SPLITS]
    if named and other:
        raise SchemaError(
            f"{path} has files of the splits {named}, and {other[0]!r}, of which the split is unknown. Name it after "
            f"one of {', '.join(SPLITS)} (a test set is test_seen if its users are in train), or move it elsewhere."
        )
    return [(split, rows_of(by_stem[split])) for split in named] if named else [(None, rows_of(files))]


def _strip_prompt(found: dict[str, Any]) -> None:
    """Take the dialogue so far out of `chosen` and `rejected` that hold all of it, as some datasets have it."""
    chosen, rejected = found["chosen"], found["rejected"]
    if not all(isinstance(value, list) and len(value) > 1 for value in (chosen, rejected)):
        return
    if chosen[:-1] == rejected[:-1] and all(isinstance(m, dict) and "role" in m for m in chosen):
        found["prompt"], found["chosen"], found["rejected"] = chosen[:-1], chosen[-1:], rejected[-1:]


def _id(value: Any, where: str, column: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise SchemaError(
        f"{where}, column {column!r}: an id is {value!r} ({type(value).__name__}), expected text or a whole number."
    )


def _messages(value: Any, name: str, where: str, column: str) -> list[dict[str, str]]:
    if isinstance(value, str) and value.lstrip().startswith("[{"):  # messages in a CSV
        with contextlib.suppress(ValueError):  # then it is text after all
            value = json.loads(value)
    if value is None or isinstance(value, str):  # null: an empty text, which the checks drop and count
        return message("user" if name == "prompt" else "assistant", value or "")
    if isinstance(value, list):
        return value
    raise SchemaError(
        f"{where}, column {column!r}: {name!r} is {str(value)[:60]!r}, expected text or a list of "
        "{'role': ..., 'content': text} messages. Mend or remove the row."
    )
