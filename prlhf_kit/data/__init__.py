"""Datasets of personal preferences, all in one record (`schema.py`)."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path

from datasets import DatasetDict

from prlhf_kit.data import simulated
from prlhf_kit.data.schema import Report, SchemaError, check

LOADERS = {"simulated": simulated.load}

__all__ = ["LOADERS", "Report", "SchemaError", "check", "fingerprint", "load"]


def load(name: str, path: str | Path | None = None, **options) -> DatasetDict:
    """Load dataset `name` as preference records (see `prlhf_kit.data.schema`).

    Args:
        name: one of `LOADERS`, or a folder written by `DatasetDict.save_to_disk` that holds preference records.
        path: local file or folder in the dataset's own form, where it isn't embedded.
        options: of the dataset's own loader.

    Raises:
        SchemaError: the name is unknown, or the data is not in the form of the record.
    """
    if name in LOADERS:
        return LOADERS[name](path, **options)
    if Path(name, "dataset_dict.json").is_file():
        return DatasetDict.load_from_disk(name)
    near = difflib.get_close_matches(name, LOADERS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise SchemaError(
        f"no dataset {name!r}.{hint} Known: {', '.join(LOADERS)}; or give a folder written by "
        "DatasetDict.save_to_disk with the columns of prlhf_kit.data.schema."
    )


def fingerprint(data: DatasetDict) -> str:
    """Hash of all splits' contents, for run records: 16 hex digits, the same wherever the data was loaded."""
    digest = hashlib.sha256()
    for split in sorted(data):
        digest.update(split.encode())
        digest.update(data[split].to_pandas().to_json(orient="records").encode())
    return digest.hexdigest()[:16]
