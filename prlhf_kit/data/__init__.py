"""Datasets of personal preferences, one file each, all in one record (`schema.py`)."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict, Features
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data import (
    compred,
    dsp,
    files,
    gpt4llm,
    hh,
    hh_relabelled,
    personalllm,
    prefeval,
    prism,
    psoups,
    simulated,
    tldr,
    webgpt,
)
from prlhf_kit.data.check import RULES, Report, check
from prlhf_kit.data.collect import Tally, collect
from prlhf_kit.data.schema import FEATURES, SPLITS, SchemaError
from prlhf_kit.data.select import at_most, few_shot
from prlhf_kit.data.sources import position

# A dataset is a module with a `CARD` and a `read(tally, path, **options)` that yields (split, record).
DATASETS: dict[str, ModuleType] = {
    "simulated": simulated,
    "tldr": tldr,
    "psoups": psoups,
    "prism": prism,
    "compred": compred,
    "dsp": dsp,
    "hh": hh,
    "webgpt": webgpt,
    "gpt4llm": gpt4llm,
    "hh_relabelled": hh_relabelled,
    "prefeval": prefeval,
    "personalllm": personalllm,
    "files": files,
}

__all__ = [
    "DATASETS",
    "RULES",
    "Report",
    "SchemaError",
    "at_most",
    "check",
    "few_shot",
    "fingerprint",
    "load",
    "load_with_report",
]

log = logging.getLogger(__name__)


def load(name: str, path: str | Path | None = None, **options: Any) -> DatasetDict:
    """Load dataset `name` as checked preference records (see `prlhf_kit.data.schema`).

    What the loader and the checks drop is logged as a warning; `load_with_report` returns it.

    Args:
        name: one of `DATASETS`, or a folder written by `prlhf data prepare` or `DatasetDict.save_to_disk`.
        path: local file or folder in the dataset's own schema; None: from the hub, or embedded.
        options: of the dataset's own `read`.

    Raises:
        SchemaError: the name or an option is unknown, or the data can't be used; the message says what to do.
    """
    data, report = load_with_report(name, path, **options)
    if not report.table.empty:
        log.warning("%s: %s", name, report)
    return data


def load_with_report(
    name: str,
    path: str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_prompt_tokens: int | None = None,
    max_tokens: int | None = None,
    min_pairs: int = 1,
    rules: Mapping[str, str] | None = None,
    **options: Any,
) -> tuple[DatasetDict, Report]:
    """`load`, with the report of what was counted and dropped, and with the limits and rules of `check`.

    The data are read as a stream and mapped into memory from disk. The dataset's own `CARD.rules` come before
    `check.RULES`, and `rules` before both.
    """
    if name in DATASETS:
        module = DATASETS[name]
        resolved(name, options)  # before any long work
        tally = Tally()
        features = Features({**FEATURES, **(module.CARD.extra or {})})
        raw = _collect(name, module.read(tally, path, **options), features)
        if raw and "train" not in raw:
            raise SchemaError(f"{name!r} gave no training pair, only pairs of {', '.join(raw)}. Look at the options.")
        if not raw:
            raise SchemaError(
                f"{name!r} gave no pairs; dropped: {dict(tally.drops)}. Look at the path and the options."
            )
        own = module.CARD.rules
    elif path is not None or options:
        raise SchemaError(_unknown(name))
    else:
        raw, tally = _read_folder(name), Tally()
        card = Path(name, "card.json")
        made_of = json.loads(card.read_text()).get("dataset") if card.is_file() else None
        own = DATASETS[made_of].CARD.rules if made_of in DATASETS else {}
    data, report = check(
        raw, tokenizer, max_prompt_tokens, max_tokens=max_tokens, min_pairs=min_pairs, rules={**own, **(rules or {})}
    )
    table = pd.concat([tally.table(), report.table], ignore_index=True).astype({"pairs": int})
    return data, Report(table, report.kept, report.checks, dict(tally.counts), report.shortened)


def _collect(name: str, rows: Iterator[tuple[str, dict]], features: Features) -> DatasetDict:
    """`collect`, where what goes wrong in a row is told as such: sources hold nulls and other kinds of values."""
    position.clear()
    try:
        return collect(rows, features)
    except SchemaError:
        raise
    except (TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
        where = f"row {position['row']} of {position['source']}" if position else "the options"
        raise SchemaError(
            f"{where} can't be used as {name!r}: {type(error).__name__}: {error}. A field is null or of another kind "
            "than in the dataset's own schema (see its docstring), or an option is of a wrong type."
        ) from error


def resolved(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of dataset `name` with the defaults filled in. Raises `SchemaError` for one that it does not have."""
    reader = DATASETS[name].load if name == "simulated" else DATASETS[name].read
    known = {key: p.default for key, p in inspect.signature(reader).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for key, value in options.items():
        if key in known and (key.endswith("_share") or key.startswith("p_")):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise SchemaError(f"{key}={value!r}: expected a number from 0 to 1.")
        elif key in known and isinstance(known[key], int) and not isinstance(known[key], bool):
            if value is None and key == "max_characters":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < (0 if key == "seed" else 1):
                raise SchemaError(f"{key}={value!r}: expected a whole number, at least {0 if key == 'seed' else 1}.")
        if key not in known:
            raise SchemaError(
                f"{name!r} has no option {key!r}.{_hint(key, known)} It has: {', '.join(known) or 'none'}."
            )
    return known | dict(options)


def _read_folder(name: str) -> DatasetDict:
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file():
        return DatasetDict.load_from_disk(name)
    found = {split: folder / f"{split}.parquet" for split in SPLITS if (folder / f"{split}.parquet").is_file()}
    if not found:
        raise SchemaError(_unknown(name))
    try:
        return DatasetDict({split: Dataset.from_parquet(str(file), split=split) for split, file in found.items()})
    except Exception as error:  # of pyarrow or of the builder
        raise SchemaError(f"can't read the prepared folder {name}: {error}. Prepare it again.") from error


def _unknown(name: str) -> str:
    return (
        f"no dataset {name!r}.{_hint(name, DATASETS)} Known: {', '.join(DATASETS)}; or give a folder written by "
        "`prlhf data prepare` or DatasetDict.save_to_disk with the columns of prlhf_kit.data.schema, without path or "
        "options."
    )


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def fingerprint(data: DatasetDict) -> str:
    """Hash of all splits' contents, for run records: 16 hex digits, the same wherever the data was loaded."""
    digest = hashlib.sha256()
    for split in sorted(data):
        digest.update(split.encode())
        for batch in data[split].iter(1000):
            digest.update(json.dumps(batch, sort_keys=True).encode())
    return digest.hexdigest()[:16]
