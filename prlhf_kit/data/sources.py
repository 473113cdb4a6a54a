"""What a loader reads: rows of a dataset in its own schema, from local files or from the Hugging Face hub."""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_dataset

from prlhf_kit.data.schema import SPLITS, SchemaError
from prlhf_kit.files import require_whole_characters

KINDS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv", ".parquet", ".arrow")
# what `save_to_disk` writes beside the rows, and the hub once did
IGNORED = ("dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json")
last_read: dict[str, Any] = {}  # source, number and content of the row that was read last, for error messages


@dataclass(frozen=True)
class Rows:
    """Rows that can be read more than once, one at a time: `parts` are (source, what reads it)."""

    parts: list[tuple[str, Callable[[], Iterable[Any]]]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for source, read in self.parts:
            for number, row in enumerate(read()):
                last_read.update(source=source, number=number, row=row)
                yield row


Parts = list[tuple[str | None, Rows]]  # rows of "train" and "test", or (None, all rows)


def _read(path: Path) -> Iterator[dict[str, Any]]:
    # JSON is not read by `datasets`: it takes columns and types from a file's first 10 MB, so it refuses one in which a
    # field is null until then (an `article` of TL;DR), and it turns texts such as "2020-01-01" into dates
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            with pq.ParquetFile(path) as parquet:
                for batch in parquet.iter_batches(batch_size=1000):
                    yield from batch.to_pylist()
        elif name.endswith(".arrow"):
            yield from Dataset.from_file(str(path))
        elif name.endswith(".csv"):
            csv.field_size_limit(sys.maxsize)  # Python's own limit is 131,072
            with path.open(encoding="utf-8-sig", newline="") as file:
                header = file.readline()
                file.seek(0)
                for row in csv.DictReader(file, delimiter=max(",;\t", key=header.count), strict=True):
                    if None in row or None in row.values():
                        raise ValueError(f"a line has not as many fields as the header: {str(row)[:120]}")
                    yield row
        elif name.endswith((".json", ".jsonl")):
            # utf-8-sig: a byte order mark is no text
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
                rows: Iterable[Any] = (json.loads(line) for line in file if line.strip())
                first = next((part.lstrip() for part in iter(lambda: file.read(1000), "") if part.strip()), "")
                file.seek(0)
                if first.startswith("["):
                    rows = json.load(file)
                for number, row in enumerate(rows):
                    if not isinstance(row, dict):
                        raise ValueError(f"row {number} is a {type(row).__name__}, expected an object")
                    require_whole_characters(row, f"row {number}")
                    yield row
        else:
            raise ValueError("a file of an unknown kind")
    # JSON, UTF-8 and Arrow errors are ValueErrors; a gzip file that is cut short gives EOFError or zlib.error
    except (OSError, ValueError, EOFError, RecursionError, csv.Error, zlib.error) as error:
        raise SchemaError(f"can't read {path}: {error}. Expected {' or '.join(KINDS)}, text in UTF-8.") from error


def local_files(path: str | Path, *patterns: str) -> list[Path]:
    """A file, or a folder's files that match one of the glob `patterns` (the first that any file matches)."""
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


def saved(folder: str | Path) -> DatasetDict:
    """What `DatasetDict.save_to_disk`, or `prlhf data prepare` (a parquet file a split), wrote into `folder`."""
    found, part = DatasetDict(), Path(folder, "dataset_dict.json")
    try:
        if part.is_file():
            for split in json.loads(part.read_text())["splits"]:
                part = Path(folder, split)
                found[split] = Dataset.load_from_disk(str(part))
        else:
            there = {part.stem: part for part in sorted(Path(folder).glob("*.parquet"))}
            for split in [split for split in SPLITS if split in there] + sorted({*there} - {*SPLITS}):
                part = there[split]
                pq.ParquetFile(part).close()  # says what is wrong, which the builder of `datasets` hides
                found[split] = Dataset.from_parquet(str(part), split=split)
    except Exception as error:  # of pyarrow, of the file system, or of the builder
        raise SchemaError(f"can't read {part}: {error} It is damaged or cut off: write it again.") from error
    return found


def local_rows(path: str | Path, *patterns: str) -> Rows:
    return rows_of(local_files(path, *patterns))


def local_parts(path: str | Path, patterns: Iterable[str], whole: Iterable[str]) -> Parts:
    """("train", its rows) and ("test", its rows), where a folder has files named by `patterns` with {part}; else
    (None, all rows) of the files `whole`."""
    found: Parts = []
    for part in ("train", "test"):
        names = [pattern.format(part=part) for pattern in patterns]
        if any(any(Path(path).glob(name)) for name in names):
            found.append((part, local_rows(path, *names)))
    return found or [(None, local_rows(path, *whole))]


def hub_rows(repository: str, split: str, config: str | None = None, converted: bool = False, **options: Any) -> Rows:
    """Rows of a split on the hub; arguments as of `from_hub`."""
    dataset = from_hub(repository, config, split, converted, **options)
    return Rows([(f"split {split!r} of {(repository, config)}", lambda: dataset)])


def from_hub(
    repository: str, config: str | None = None, split: str | None = None, converted: bool = False, **options: Any
) -> Any:
    """A split on the hub, or all of them, downloaded once into the cache of `datasets` and memory-mapped.

    Args:
        converted: read the hub's parquet conversion: `datasets` refuses repositories that hold a loading script.
        options: of `datasets.load_dataset`.
    """
    fetch = f"hf download {repository} --repo-type dataset"
    if converted:
        revision = "refs/convert/parquet"
        options |= {"revision": revision, "data_files": {split: f"{config or 'default'}/{split}/*.parquet"}}
        fetch, config = f"{fetch} --revision {revision}", None
    try:
        return load_dataset(repository, config, split=split, **options)
    except Exception as error:  # whatever the hub, the network or a builder raises
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise SchemaError(
            f"can't load {repository!r} (no file or folder here), {config=}, {split=}, from the hub: {why} If it can't "
            f"be reached from here, download it elsewhere with `{fetch} --local-dir DIR` and pass DIR as path."
        ) from error
