"""What a loader reads: rows of a dataset in its own schema, from local files or from the Hugging Face hub."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, load_dataset

from prlhf_kit.data.schema import SchemaError

KINDS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv", ".parquet", ".arrow")
IGNORED = ("dataset_info.json", "state.json", "dataset_dict.json")  # what `save_to_disk` writes beside the rows
last_read: dict[str, Any] = {}  # source, number and content of the row that was read last, for error messages


@dataclass(frozen=True)
class Rows:
    """Rows that can be read more than once, one at a time: `parts` are (source, what reads it)."""

    parts: list[tuple[str, Callable[[], Iterable[dict[str, Any]]]]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for source, read in self.parts:
            for number, row in enumerate(read()):
                last_read.update(source=source, number=number, row=row)
                yield row


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Only a plain JSON list is read as a whole; CSV is all text.

    JSON is not read by `datasets`: it takes columns and types from a file's first 10 MB, so it refuses a file in which
    a field is null until then (an `article` of TL;DR), and it turns a column of texts such as "2020-01-01" into dates.
    """
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=1000):
                    yield from batch.to_pylist()
        elif name.endswith(".arrow"):
            yield from Dataset.from_file(str(path))
        elif name.endswith(".csv"):
            csv.field_size_limit(2**31 - 1)
            with path.open(encoding="utf-8-sig", newline="") as file:
                for row in csv.DictReader(file, strict=True):
                    if None in row or None in row.values():
                        raise ValueError(f"a line has not as many fields as the header: {str(row)[:120]}")
                    yield row
        elif name.endswith((".json", ".jsonl")):
            # utf-8-sig: a byte order mark is no text
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
                first = file.read(1)
                while first.isspace():
                    first = file.read(1)
                file.seek(0)
                for row in json.load(file) if first == "[" else (json.loads(line) for line in file if line.strip()):
                    if not isinstance(row, dict):
                        raise ValueError(f"it holds a {type(row).__name__}, expected objects")
                    yield row
        else:
            raise ValueError("a file of an unknown kind")
    # JSON, UTF-8 and Arrow errors are ValueErrors; a gzip file that is cut short gives EOFError or zlib.error
    except (OSError, ValueError, EOFError, RecursionError, csv.Error, zlib.error) as error:
        raise SchemaError(f"can't read {path}: {error}. Expected {' or '.join(KINDS)}, text in UTF-8.") from error


def local_files(path: str | Path, *patterns: str) -> list[Path]:
    """A file, or a folder's files that match one of the glob `patterns` (the first that any file matches).

    Raises:
        SchemaError: nothing there; says what was expected and what was found.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    for pattern in patterns:
        if files := sorted(p for p in path.glob(pattern) if p.name.endswith(KINDS) and p.name not in IGNORED):
            return files
    found = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())[:8]
    what = f"found {found}" if found else "it is empty" if path.exists() else "there is no such file or folder"
    raise SchemaError(f"{path}: {what}; expected a file, or a folder with {' or '.join(patterns)}.")


def rows_of(files: Iterable[Path]) -> Rows:
    """Rows of JSON (a list of objects), JSON lines, CSV, parquet or Arrow files."""
    return Rows([(str(file), partial(_read, file)) for file in files])


def local_rows(path: str | Path, *patterns: str) -> Rows:
    """Rows of `local_files`."""
    return rows_of(local_files(path, *patterns))


def local_parts(path: str | Path, patterns: Iterable[str], whole: Iterable[str]) -> list[tuple[str | None, Rows]]:
    """("train", its rows) and ("test", its rows), where a folder has such files; else (None, all rows).

    Args:
        patterns: names of a part's files, with {part}.
        whole: names of the files of a source without such parts.
    """
    found: list[tuple[str | None, Rows]] = []
    for part in ("train", "test"):
        names = [pattern.format(part=part) for pattern in patterns]
        if any(file for name in names for file in Path(path).glob(name)):
            found.append((part, local_rows(path, *names)))
    return found or [(None, local_rows(path, *whole))]


CONVERTED = "refs/convert/parquet"  # the hub's own parquet conversion of repositories that hold a script


def hub_rows(
    repository: str, split: str, config: str | None = None, *, converted: bool = False, **options: Any
) -> Rows:
    """Rows of a split on the hub, downloaded once into the cache of `datasets` and memory-mapped.

    Args:
        converted: read the hub's parquet conversion: `datasets` refuses repositories that hold a loading script.
        options: of `datasets.load_dataset`.

    Raises:
        SchemaError: the hub can't be reached, or has no such dataset, configuration or split.
    """
    if converted:
        options |= {"revision": CONVERTED, "data_files": {split: f"{config or 'default'}/{split}/*.parquet"}}
    where = f"{repository!r}" + (f", configuration {config!r}" if config else "")
    try:
        dataset = load_dataset(repository, None if converted else config, split=split, **options)
    except Exception as error:  # whatever the hub, the network or a builder raises
        fetch = f"hf download {repository} --repo-type dataset" + (f" --revision {CONVERTED}" if converted else "")
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise SchemaError(
            f"can't load split {split!r} of {where} from the hub: {why} If the hub can't be "
            f"reached from here, download it elsewhere with `{fetch} --local-dir DIR`, copy DIR and pass it as path."
        ) from error
    return Rows([(f"{where}, split {split!r}", lambda: dataset)])
