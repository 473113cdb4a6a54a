"""`files`: preferences from files of one's own or any dataset of the hub, with a column mapping."""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from prlhf_kit.data.registry import Records, Tally, dataset, names, opening, require_known, split_of
from prlhf_kit.data.schema import COLUMNS, MESSAGES, SPLITS, SchemaError, message
from prlhf_kit.data.sources import KINDS, Rows, from_hub, last_read, local_files, rows_of, saved
from prlhf_kit.files import only_on_hub

log = logging.getLogger(__name__)


@dataset(
    "files",
    title="Files of one's own",
    source="your file or folder (JSON, JSON lines, also .gz, CSV or parquet), or any dataset of the hub",
    licence="your own",
    users="any",
    quality="The checks say what they find.",
)
def read(
    tally: Tally,
    path: str | Path | Dataset | DatasetDict,
    *,
    columns: Mapping[str, str] | None = None,
    config: str | None = None,
    test_share: float = 0.1,
    unseen: str | Sequence[str] = (),
    seed: int = 0,
) -> Records:
    """Records, with their `split` if there is such a column, else split by prompt.

    A row: `{"user_id": "ann", "prompt": "How do I make tea?", "chosen": "Boil water.", "rejected": "No idea."}`.

        load("files", "org/name", columns={"user_id": "annotator"})  # from the hub

    Args:
        path: a file, a folder of files (the hub's layout and `save_to_disk` too), the id of a dataset on the hub, or a
            dataset in memory. Files and splits named train, test_seen, test_unseen or adapt_unseen (and more after a
            dot or a dash) are those splits; "test" is taken as test_seen.
        columns: the record's column (or `split`) -> yours, where the names differ. `prompt`, `chosen` and `rejected`
            are text, or lists of {role, content} messages (as JSON text in CSV); where chosen and rejected hold the
            whole dialogue, what they share is the prompt. Ids may be whole numbers.
        config: which of the hub's configurations.
        test_share, unseen, seed: where there is no split: share of the prompts for tests, users not trained on, draws.
    """
    if isinstance(columns, str):
        raise SchemaError(f'columns={columns!r} is a text, expected JSON: {{"user_id": "your column"}}, quotes too.')
    mapping = {name: name for name in (*COLUMNS, "split")} | dict(columns or {})
    require_known(mapping, (*COLUMNS, "split"), "column of the record")
    unseen, met, renamed = names(unseen), set(), 0
    for part, rows in _parts(path, config):
        for number, row in enumerate(rows):
            tally.count("rows")
            where = "row {number} of {source}".format(**last_read)
            found = {name: row.get(column) for name, column in mapping.items()}
            found |= {name: _messages(found[name], name) for name in MESSAGES}
            whole = _take_out_prompt(found)
            for name in ("user_id", *MESSAGES):
                if mapping[name] not in row and not (name == "prompt" and whole):
                    way = f'Name yours by the option columns: {{"{name}": "your column"}}.'
                    if number:
                        way = "The rows before it have one: fix the row, or leave it out."
                    raise SchemaError(
                        f"{where} has no column {mapping[name]!r} for {name!r}; found {sorted(row)}. {way}"
                    )
            user = _id(found["user_id"])
            met.add(user)
            out: dict[str, Any] = {
                "pair_id": _id(found["pair_id"]) or f"{part or 'row'}-{number}",
                "user_id": user,
                "user_text": found["user_text"] or None,
                "group": _id(found["group"]) or None,
                **{name: found[name] for name in MESSAGES},
            }
            split = part or found["split"]
            if split is None:
                split = split_of(user, opening(out["prompt"]), unseen, test_share, seed)
            elif split == "test":
                split, renamed = "test_seen", renamed + 1
            elif split not in SPLITS:
                raise SchemaError(f"{where} has the split {split!r}, expected one of {', '.join(SPLITS)}.")
            yield split, out
    if renamed:
        log.warning("the split 'test' (%d pairs) is taken as test_seen: users of train, new prompts.", renamed)
    require_known(unseen, met, "user")


def _parts(path: str | Path | Dataset | DatasetDict, config: str | None) -> list[tuple[str | None, Rows]]:
    """(split, its rows), or (None, all rows) where nothing is named after a split."""
    if not isinstance(path, Dataset | DatasetDict):
        if Path(path, "dataset_dict.json").is_file():
            path = saved(path)
        elif only_on_hub(path) and not str(path).endswith(KINDS):
            path = from_hub(str(path), config)
    if isinstance(path, DatasetDict):
        return [(split, Rows([(f"split {split!r}", rows.__iter__)])) for split, rows in path.items()]
    if isinstance(path, Dataset):
        return [(None, Rows([("the dataset", path.__iter__)]))]
    files = local_files(path, "*", "data/*")
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.name.replace("-", ".").split(".")[0], []).append(file)
    named = [split for split in (*SPLITS, "test") if split in by_stem and Path(path).is_dir()]
    other = [files[0].name for stem, files in by_stem.items() if stem not in named]
    if named and other:
        raise SchemaError(
            f"{path} has files of the splits {named}, and {other[0]!r}, which belongs to no known split. Name it after "
            f"one of {', '.join(SPLITS)} (a test set is test_seen if its users are in train), or move it elsewhere."
        )
    return [(split, rows_of(by_stem[split])) for split in named] if named else [(None, rows_of(files))]


def _take_out_prompt(found: dict[str, Any]) -> bool:
    """Whether chosen and rejected hold the whole dialogue; what they share of it becomes the prompt."""
    chosen, rejected = found["chosen"], found["rejected"]
    if not all(isinstance(m, dict) and "role" in m for m in (*chosen, *rejected)):
        return False
    if len(chosen) < 2 or len(rejected) < 2 or chosen[0]["role"] == "assistant" or chosen[0] != rejected[0]:
        return False
    same = [a == b for a, b in zip(chosen[:-1], rejected[:-1], strict=False)]
    shared = [*same, False].index(False)
    found["prompt"], found["chosen"], found["rejected"] = chosen[:shared], chosen[shared:], rejected[shared:]
    return True


def _id(value: Any) -> Any:
    return str(value) if type(value) is int else value or ""  # what is no text then does not fit the record


def _messages(value: Any, name: str) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("[{"):  # messages in a CSV, or a text that is JSON
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(value)
            if all(isinstance(m, dict) and m.keys() == {"role", "content"} for m in found):
                value = found
    if value is None or isinstance(value, str):  # null: an empty text, which the checks drop and count
        return message("user" if name == "prompt" else "assistant", value or "")
    return [{**m, "content": ""} if isinstance(m, dict) and m.get("content", 0) is None else m for m in value]
