"""`load`: any dataset of the kit, or a prepared folder, as checked preference records."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from datasets import Dataset, DatasetDict, Features

from prlhf_kit.data.check import check
from prlhf_kit.data.collect import collect
from prlhf_kit.data.registry import DATASETS, Report, Tally, require_known
from prlhf_kit.data.schema import FEATURES, SchemaError
from prlhf_kit.data.sources import last_read, saved

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def load(name: str | Dataset | DatasetDict, path: str | Path | None = None, **options: Any) -> DatasetDict:
    """Load dataset `name` as checked preference records (see `prlhf_kit.data.schema`).

    What is dropped is logged as a warning; `load_with_report` returns it.

        data = load("dsp", "downloads/dsp", domains=["academy", "business"])
        data["train"][0]["user_id"]  # "academy"

    Args:
        name: one of `DATASETS`; a folder written by `prlhf data prepare` or `DatasetDict.save_to_disk`; or a dataset in
            memory, which is read as "files" are: `load(mine, columns={"user_id": "worker"})`.
        path: local file or folder in the dataset's own schema; None: from the hub, or embedded.
        options: of the dataset's own loader (`prlhf data list`).

    Raises:
        SchemaError: an unknown name or option, or data that can't be used; the message says what to do.
    """
    data, report = load_with_report(name, path, **options)
    if not report.table.empty:
        log.warning("%s: %s", name if isinstance(name, str) else "files", report)
    return data


def load_with_report(
    name: str | Dataset | DatasetDict,
    path: str | Path | Dataset | DatasetDict | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_prompt_tokens: int | None = None,
    max_tokens: int | None = None,
    min_pairs: int = 1,
    rules: Mapping[str, str] | None = None,
    **options: Any,
) -> tuple[DatasetDict, Report]:
    """`load`, with the report of what was counted and dropped, and with the limits and rules of `check`.

    The dataset's own `Card.rules` come before `check.RULES`, and `rules` before both.
    """
    if not isinstance(name, str):
        name, path = "files", name
    tally = Tally()
    if name in DATASETS:
        resolved(name, options)
        raw, made_of = _read(name, tally, path, options), name
    else:
        raw = saved(name)
        if not raw or path is not None or options:
            way = "dataset or prepared folder (which takes no path and no options; in a notebook give its full path)"
            require_known([name], DATASETS, way)
        card = Path(name, "card.json")
        made_of = json.loads(card.read_text()).get("dataset", "") if card.is_file() else ""
    known = DATASETS.get(made_of)
    own = known.rules if known else {}
    data, report = check(
        raw, tokenizer, max_prompt_tokens, max_tokens=max_tokens, min_pairs=min_pairs, rules={**own, **(rules or {})}
    )
    dropped = pd.DataFrame([(*key, n) for key, n in tally.drops.items()], columns=report.table.columns)
    table = pd.concat([dropped, report.table], ignore_index=True).astype({"pairs": int})
    source = f"{known.title}; licence: {known.licence}" if known else ""
    return data, Report(table, report.kept, report.checks, dict(tally.counts), report.shortened, report.tokens, source)


def _read(name: str, tally: Tally, path: Any, options: Mapping[str, Any]) -> DatasetDict:
    """All that the loader yields. What goes wrong in a row is told as such: sources hold nulls and other types."""
    card = DATASETS[name]
    if path is None and signature(card.read).parameters["path"].default is Parameter.empty:
        raise SchemaError(f"{name!r} is not on the hub: get it from its source ({card.source}) and pass it as path.")
    if card.folder and path is not None and Path(path).is_file():
        raise SchemaError(f"{path} is a file; {name!r} needs the folder with all of its files, as the hub has it.")
    last_read.clear()
    try:
        raw = collect(card.read(tally, path, **options), Features({**FEATURES, **(card.extra or {})}))
    except SchemaError:
        raise
    except (TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
        where = "row {number} of {source}".format(**last_read) if last_read else f"the options {dict(options)}"
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, KeyError) and last_read:
            why = f"it has no column {error}, only {list(last_read['row'])}"
        raise SchemaError(
            f"{where} can't be used as {name!r}: {why}. A field is missing, null or of another type than in the "
            "dataset's own schema, or an option is of a wrong type. Data of your own: 'files', with a column mapping."
        ) from error
    if "train" not in raw:
        raise SchemaError(
            f"{name!r} gave no training pair, only pairs of {[*raw]}; dropped: {dict(tally.drops)}. See its options."
        )
    return raw


def resolved(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of dataset `name` with the defaults filled in. Raises `SchemaError` for one that it does not have."""
    parameters = signature(DATASETS[name].read).parameters
    known = {key: p.default for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    require_known(options, known, f"option of {name!r} named")
    return known | dict(options)


def fingerprint(data: DatasetDict) -> str:
    """Hash of all splits' contents, for run records: 16 hex digits, the same wherever the data was loaded."""
    digest = hashlib.sha256()
    for split in sorted(data):
        digest.update(split.encode())
        for batch in data[split].iter(1000):
            digest.update(json.dumps(batch, sort_keys=True).encode())
    return digest.hexdigest()[:16]
