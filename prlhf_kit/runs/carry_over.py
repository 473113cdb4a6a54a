"""Stages of a finished run from which the runs of a sweep start."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from prlhf_kit.files import unfinished
from prlhf_kit.runs.jobs import Job
from prlhf_kit.runs.notebook import artifacts_there
from prlhf_kit.runs.parameters import RunError, needs_of
from prlhf_kit.runs.stage import read_record, set_aside

TAKEN = ".from"  # the sweep's own copy of the stages


def find(source: str, out: Path, folder: Path) -> Path:
    """The folder of the run `source`: a path, or a name in `out`; if it is gone, the copy in the sweep's `folder`.

    Raises:
        RunError: there is none of them.
    """
    for path in (Path(source), out / source):
        if path.is_dir():
            return path
    if (folder / TAKEN).is_dir():
        print(f"there is no {source} any more; going on with what the sweep took from it, {folder / TAKEN}")
        return folder / TAKEN
    raise RunError(f"--from {source}: there is no such folder, and no run of this name in {out}.")


def needed(notebooks: Sequence[Path], source: Path | None) -> list[str]:
    """Stages that `notebooks` need (their metadata's `prlhf_kit.needs`) and that are not among them.

    Raises:
        RunError: the order of the notebooks is wrong, two have one name, or a stage can come from nowhere.
    """
    stages = [path.stem for path in notebooks]
    if len(set(stages)) < len(stages):
        raise RunError(f"two notebooks have the same name, but a run has one folder for each: {', '.join(stages)}.")
    found: list[str] = []
    for i, path in enumerate(notebooks):
        for need in needs_of(path):
            if need in stages[i:]:
                raise RunError(f"{path.name} needs {need}, which stands after it. Change their order.")
            if need in stages:
                continue
            if source is None:
                raise RunError(
                    f"{path.name} needs the stage {need}. Put its notebook before {path.name}, so that every run makes "
                    "it, or start from a finished run that has it: --from RUN."
                )
            found.append(need)
    if source is not None and not found:
        raise RunError(
            f"--from {source}: no notebook needs a stage of it. What a notebook needs stands in its metadata: "
            '{"prlhf_kit": {"needs": ["01_data_preparation"]}}.'
        )
    return list(dict.fromkeys(found))


def take(source: Path, needed: Sequence[str], folder: Path, jobs: Sequence[Job], stages: Sequence[str]) -> None:
    """Put the stages `needed` of the run `source` into the folder of every job.

    They are copied once, into the sweep's folder, so that nothing that happens to `source` later changes what the
    sweep started from; the runs share the copy's files by hard links. A run that is being worked on is left alone.

    Args:
        stages: those that the jobs run themselves.

    Raises:
        RunError: `source` lacks a stage, it did not complete, it is another one than the sweep began from, or it can't
            be copied.
    """
    _lacking(source, needed, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{TAKEN}.lock"):
            for stage in _lacking(source, needed, folder):  # another sweep may have been first
                _copy(source / stage, folder / TAKEN / stage, shutil.copy2)
            for job in jobs:
                job.run_dir.mkdir(exist_ok=True)
                with contextlib.ExitStack() as locks, contextlib.suppress(Timeout):
                    for stage in stages:
                        locks.enter_context(FileLock(job.run_dir / f".{stage}.lock", timeout=0))
                    for stage in needed:
                        _copy(folder / TAKEN / stage, job.run_dir / stage, _link)
    except OSError as error:
        raise RunError(f"the stages of {source} can't be copied to {folder}: {error}. Nothing was started.") from error


def _lacking(source: Path, needed: Sequence[str], folder: Path) -> list[str]:
    """Stages that the sweep's copy still lacks; all of them are found fit in `source`, else raises `RunError`."""
    lacking = []
    for stage in needed:
        record, kept = read_record(source / stage), read_record(folder / TAKEN / stage)
        if kept:
            if record not in (kept, None):
                raise RunError(
                    f"{folder} began from another {stage} than {source} has now. Go on with the one it began from by "
                    f"--from {folder / TAKEN}, or choose another name with --run."
                )
            continue
        status = record["status"] if record else "missing"
        if record and status == "completed" and not artifacts_there(source / stage, record):
            status = "without its artefacts"
        if status != "completed":
            raise RunError(f"--from {source}: its stage {stage} is {status}, expected a completed one. Run it first.")
        lacking.append(stage)
    return lacking


def _copy(old: Path, new: Path, copy_file: Callable[[str, str], object]) -> None:
    """Copy a stage's folder; a reader sees all of it or nothing. One that is there already stays."""
    if read_record(new) == read_record(old):
        return
    temporary = unfinished(new)
    try:
        shutil.copytree(old, temporary, copy_function=copy_file)
        if new.exists():
            set_aside(new)
        temporary.rename(new)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(old: str, new: str) -> None:
    try:
        os.link(old, new)
    except OSError:  # a file system without hard links
        shutil.copy2(old, new)
