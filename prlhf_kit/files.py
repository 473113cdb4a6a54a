"""What every part of the kit may use, without torch: files written whole or not at all, hashes, versions, git state."""

import contextlib
import datetime
import difflib
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

# those that decide a result
PACKAGES = "prlhf_kit torch transformers trl peft datasets accelerate numpy pandas".split()


def of_extra(module: str) -> Any:
    """A module that only one of the kit's extras has. Raises `ModuleNotFoundError`, which says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing(error.name or "") or str(error), name=error.name) from error


def missing(module: str) -> str | None:
    """The pip command for a module of one of the kit's extras; None for others."""
    texts = "\n".join(importlib.metadata.requires("prlhf_kit") or ())
    found = re.search(rf"^{re.escape(module)}\b.*extra == \W(\w+)", texts, re.MULTILINE | re.IGNORECASE)
    return f'{module} is not installed. Call: pip install "prlhf_kit[{found[1]}]"' if found else None


def _files(path: Path) -> list[tuple[str, Path]]:
    """A file, or those of a folder with their names from there; caches of `datasets` left out."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(p.relative_to(path).as_posix(), p) for p in found if p.is_file() and not p.name.startswith("cache-")]


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, or of a folder's file names and contents."""
    if path.is_dir():
        return hashlib.sha256(json.dumps([(name, sha256(p)) for name, p in _files(path)]).encode()).hexdigest()
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def file_states(path: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time of the last change of a file, or of each file that `sha256` reads of a folder."""
    return [(name, p.stat().st_size, p.stat().st_mtime_ns) for name, p in _files(path)]


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: " Did you mean 'x'?", or "" where no known name is like it."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def only_on_hub(name: object) -> bool:
    """Whether there is no file or folder of this name, and it could be a repository's on the hub, "owner/name"."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) is not None and not Path(str(name)).exists()


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically, see `write_text`."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    with temporary.open("w", encoding="utf-8", errors="replace") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def require_whole_characters(row: Mapping[str, Any], where: str) -> None:
    """Refuse half of a surrogate pair (an emoji that was cut), which JSON can spell and UTF-8 can't: a `ValueError`
    says which field of the row it is, and what stands in front."""
    for field, value in row.items():
        try:
            json.dumps([field, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            before = error.object[max(error.start - 20, 0) : error.start]
            raise ValueError(
                f"{where}, field {field!r}: behind {before!r} stands half a character (an emoji, cut?): remove it."
            ) from None


def unfinished(path: Path) -> Path:
    """A path beside `path` to write to; rename it to `path` when it is complete."""
    return path.with_name(f".{path.name}-{os.getpid()}-unfinished")


def versions() -> dict[str, str]:
    """Versions of Python and of `PACKAGES`."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def git_state(folder: Path | None = None) -> dict[str, Any]:
    """Commit and whether tracked files, or any in the package's folder (`folder`), differ from it; both None outside a
    checkout. Data and models that lie about do not count."""

    def git(*args: str) -> str | None:
        where = folder or Path(__file__).parent
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(["git", *args], cwd=where, capture_output=True, text=True, check=True).stdout.strip()
        return None

    status = git("status", "--porcelain", "--untracked-files=no") or git("status", "--porcelain", ".")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def short_hash(*parts: object) -> str:
    """16 hex digits that tell inputs apart. `parts`: whatever JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def in_chunks(
    compute: Callable[[Sequence], np.ndarray], items: Sequence, folder: Path | None, size: int = 256, what: str = ""
) -> np.ndarray:
    """`compute(items)`, `[n, ...]`, `size` items at a time.

    Args:
        compute: called with some of the items, returns one row each.
        folder: where finished chunks lie; its name must tell these items and this computation from any other
            (`short_hash`). None: nothing is kept.
        what: said by the progress bar.
    """
    found = []
    for start in tqdm(range(0, len(items), size), desc=what, disable=None, leave=False):
        if folder and (folder / f"{start:09d}.npy").exists():
            found.append(np.load(folder / f"{start:09d}.npy"))
            continue
        found.append(np.asarray(compute(items[start : start + size])))
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = unfinished(folder / f"{start:09d}.npy")
            with temporary.open("wb") as f:  # by a path, numpy would add .npy to its name
                np.save(f, found[-1])
            temporary.replace(folder / f"{start:09d}.npy")
    return np.concatenate(found)
