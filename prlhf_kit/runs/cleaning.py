"""`prlhf runs gc`: what can go from runs without anybody missing it, and taking it away safely."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prlhf_kit.runs.carry_over import TAKEN
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.records import alive, read, runs_in
from prlhf_kit.runs.stage import PREVIOUS, RECORD

TEMPORARY = re.compile(r"\..+?(?:-(?P<pid>\d+))?-unfinished")  # of record.unfinished, and of fit, without a pid
HALF_WRITTEN = "half-written by a process that is gone"
LOCK = re.compile(r"\.(?P<stage>.+?)(?:\.kernel)?\.lock")
FREE_LOCK = "lock file that nobody holds"
QUIET = 3600  # seconds without a change after which nobody is taken to be writing a half-written file any more


@dataclass(frozen=True)
class Found:
    """A file or folder that can go, or that is left where `left` is set; `why` says so in words.

    `size` is in bytes; `failed`: it should have gone, but could not be deleted.
    """

    path: Path
    why: str
    size: int = 0
    left: bool = False
    failed: bool = False


def clean(root: Path, older_than: float = 0, delete: bool = False) -> Iterator[Found]:
    """Everything in `root`, a run or a folder of runs, that can go; with `delete` it is gone when it is named.

    What goes: `*-checkpoints` of completed stages, `.previous/<stage>` where the stage completed since, files and
    folders that a killed process left half-written (a sweep's copies of stages too), and lock files that nobody holds.
    Never an artefact, nothing in a stage that somebody works in (its locks are held meanwhile), and nothing behind a
    symbolic link.

    Args:
        older_than: days since the last change of what goes; lock files go at any age.

    Raises:
        RunError: `root` holds no run, or `older_than` is negative or NaN.
    """
    if not older_than >= 0:
        raise RunError(f"--older-than is {older_than:g} days, expected a number of at least 0.")
    runs = list(runs_in([root]))
    if not runs:
        raise RunError(f"{root} holds no run. Expected a run, or a folder of runs such as papermill_runs.")
    before = time.time() - older_than * 86400
    for run in runs:
        if run.resolve() != root.resolve() / run.relative_to(root):
            yield Found(run, "a link leads there; clean it up by its own name", left=True)
            continue
        yield from _clean_run(run, before, delete)
    for folder in _of_sweeps(root):
        if folder not in runs:
            yield from _half_written_in(folder, before, delete)


def _of_sweeps(root: Path) -> list[Path]:
    """Where a sweep puts copies of stages, if `root` is a sweep's folder or one that holds some: what it keeps for its
    runs, and their folders, which are no runs yet before they have a stage."""
    sweeps = [path for path in (root, *sorted(root.iterdir())) if path == root or _is_folder(path)]
    sweeps = [path for path in sweeps if _is_folder(path / TAKEN)]
    return [folder for path in sweeps for folder in sorted(path.iterdir()) if _is_folder(folder)]


def _half_written_in(folder: Path, before: float, delete: bool) -> Iterator[Found]:
    for path in sorted(folder.iterdir()):
        if _half_written(path):
            yield from _take(path, HALF_WRITTEN, before, delete)


def _clean_run(run: Path, before: float, delete: bool) -> Iterator[Found]:
    """See `clean`; `before` is a time in seconds since the epoch."""
    names = {path.name for path in run.iterdir() if path.name[0] != "." and _is_folder(path)}
    previous = run / PREVIOUS
    names |= {path.name for path in previous.iterdir()} if _is_folder(previous) else set()
    names |= {found["stage"] for path in run.iterdir() if (found := LOCK.fullmatch(path.name))}
    for stage in sorted(names):
        with contextlib.ExitStack() as held:
            locks = [run / f".{stage}.lock", run / f".{stage}.kernel.lock"]
            there = [path for path in locks if path.exists()]
            try:
                for path in locks if delete else there:  # a dry run leaves nothing behind, no lock file either
                    if not path.is_symlink():
                        held.enter_context(FileLock(path, timeout=0))
            except (Timeout, OSError) as error:
                why = "in use" if isinstance(error, Timeout) else f"can't be locked: {error}"
                yield Found(run / stage, why, left=True)
                continue
            for path, why in [*_of_stage(run / stage), *_replaced(run, stage)]:
                yield from _take(path, why, before, delete)
            for path in locks:  # last, while they are held: filelock tells whoever waits that the file is another
                if path.is_file() and not path.is_symlink() and path.stat().st_size == 0:
                    taken = list(_take(path, FREE_LOCK, math.inf, delete))
                    yield from taken if path in there else ()
    yield from _half_written_in(run, before, delete)
    with contextlib.suppress(OSError):  # only where it is empty
        if delete and not previous.is_symlink():
            previous.rmdir()


def _of_stage(stage_dir: Path) -> Iterator[tuple[Path, str]]:
    """Paths in a stage's folder that can go, and why. Nothing of a folder whose record can't be read."""
    if not _is_folder(stage_dir) or (record := _record(stage_dir)) is None:
        return
    kept = {stage_dir / path for path in record["artifacts"]}
    for folder, folders, names in os.walk(stage_dir):  # which does not follow links
        for path in (Path(folder, name) for name in [*folders, *names]):
            if path in kept:
                why = ""
            elif _is_folder(path) and path.name.endswith("-checkpoints"):
                needed = record["status"] != "completed" or any(other.is_relative_to(path) for other in kept)
                why = "" if needed else "checkpoints of a completed stage"
            elif _half_written(path):
                why = HALF_WRITTEN
            else:
                continue
            if path.name in folders:  # as a whole, or not at all
                folders.remove(path.name)
            if why:
                yield path, why


def _replaced(run: Path, stage: str) -> Iterator[tuple[Path, str]]:
    """The stage that was set aside, if the one in its place completed."""
    path = run / PREVIOUS / stage
    if _is_folder(run / PREVIOUS) and _is_folder(path) and _is_folder(run / stage):
        record = _record(run / stage)
        if record is not None and record["status"] == "completed":
            yield path, "replaced by a stage that completed"


def _record(stage_dir: Path) -> dict[str, Any] | None:
    try:
        return read(stage_dir) if not (stage_dir / RECORD).is_symlink() else None
    except RunError:
        return None


def _half_written(path: Path) -> bool:
    """Whether `path` is a temporary file or folder of the kit that nobody can be writing any more."""
    found = TEMPORARY.fullmatch(path.name)
    if found is None or path.is_symlink() or (found["pid"] and alive(int(found["pid"]))):
        return False
    return _measured(path)[1] < time.time() - QUIET


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _measured(path: Path) -> tuple[int, float]:
    """Bytes and time of the last change of a file, or of all that is in a folder. Links are not followed."""
    inside = [Path(folder, name) for folder, folders, names in os.walk(path) for name in [*folders, *names]]
    found = [one.lstat() for one in [path, *inside]]
    return sum(one.st_size for one in found if not stat.S_ISDIR(one.st_mode)), max(one.st_mtime for one in found)


def _take(path: Path, why: str, before: float, delete: bool) -> Iterator[Found]:
    size, changed = _measured(path)
    if changed > before:
        return
    if delete:
        try:
            shutil.rmtree(path) if _is_folder(path) else path.unlink()
        except OSError as error:
            yield Found(path, f"{why}, but {error}", size, failed=True)
            return
    yield Found(path, why, size)
