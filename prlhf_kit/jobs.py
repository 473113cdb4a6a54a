"""Processes that run notebooks: started here a few at once, stopped together, and judged by the records they leave.

Nothing heavy is imported at the top: `prlhf --help` reads this file.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL = 0.1  # seconds between looks at the children
PATIENCE = 60  # seconds for children to end: `prlhf run` gives a notebook 2 x 20 s and then writes its record
FULL = 2**20  # bytes; a disk with less free space is called full
BUSY = "another process is running"  # what `prlhf run` says, with exit code 2, of a stage that runs elsewhere


@dataclass(frozen=True)
class Job:
    """One process of a sweep or a pipeline."""

    name: str  # the run's name within the sweep
    run_dir: Path  # its folder
    command: list[str]  # the process to run
    log: Path  # where its output goes


def command(notebooks: Sequence[Path], run_dir: Path, parameters: Mapping[str, str]) -> list[str]:
    """The command that runs `notebooks` in turn in `run_dir`; unchanged stages are skipped, stopped ones resume."""
    line = [sys.executable, "-m", "prlhf_kit.cli", "run", *(str(path.resolve()) for path in notebooks)]
    line += ["--out", str(run_dir.parent), "--run", run_dir.name]
    return line + [word for name, text in parameters.items() for word in ("-p", name, text)]


def gpus() -> list[str]:
    """GPUs that processes may be given: those of CUDA_VISIBLE_DEVICES where it is set, else all of the machine's."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for each in visible.split(",") if (name := each.strip()) and name != "-1"]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


class Workers:
    """At most so many processes at once. Leaving the `with` block ends those that still run.

    Several workers get one GPU each (in turn where there are fewer GPUs), and their share of the cores as
    OMP_NUM_THREADS unless that is set. One worker has the whole machine.
    """

    def __init__(self, workers: int) -> None:
        self.running: dict[subprocess.Popen, tuple[Job, int]] = {}
        self.slots = list(range(workers))[::-1]
        self._not_started: deque[tuple[Job, str]] = deque()
        self._gpus = gpus() if workers > 1 else []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._threads = max(1, cores // workers) if workers > 1 else None

    def start(self, job: Job) -> None:
        """Start `job`. There must be a free slot. A job that can't be started is reported by `wait`."""
        env = dict(os.environ)
        if self._threads:
            env.setdefault("OMP_NUM_THREADS", str(self._threads))
        slot = self.slots.pop()
        if self._gpus:
            env["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        try:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with job.log.open("a") as log:  # appended: another sweep may be writing into it
                child = subprocess.Popen(
                    job.command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, preexec_fn=interrupted_with_parent,
                )  # fmt: skip
        except OSError as error:
            self.slots.append(slot)
            self._not_started.append((job, f"could not be started: {error}"))
        else:
            self.running[child] = job, slot

    def wait(self) -> tuple[Job, int | str]:
        """The next job that ends, and its exit code or what happened to it. At least one must have been started."""
        while True:
            if self._not_started:
                return self._not_started.popleft()
            for child, (job, slot) in self.running.items():
                if (code := child.poll()) is not None:
                    del self.running[child]
                    self.slots.append(slot)
                    return job, code if code >= 0 else f"killed by signal {-code} ({signal.Signals(-code).name})"
            time.sleep(POLL)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to wait for."""
        return not self.running and not self._not_started

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.running:
            child.terminate()  # `prlhf run` ends its notebook and writes its record
        end = time.monotonic() + PATIENCE
        try:
            for child in self.running:
                child.wait(max(0.0, end - time.monotonic()))
        except (KeyboardInterrupt, subprocess.TimeoutExpired):  # Ctrl-C once more: now
            for child in self.running:
                child.kill()  # its notebook's process dies with it
                child.wait()


def interrupted_with_parent() -> None:
    """In the child: hear SIGTERM when the parent is gone, however it ended, so that no orphan goes on (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def local(jobs: Sequence[Job], workers: int) -> Generator[tuple[Job, int | str], None, None]:
    """Run `jobs` on this machine, `workers` at once; each job as it ends, with its exit code or what happened to it."""
    waiting = deque(jobs)
    with Workers(min(workers, len(jobs))) as pool:
        while waiting or not pool.idle:
            while waiting and pool.slots:
                pool.start(waiting.popleft())
            yield pool.wait()


def log_size(job: Job) -> int:
    """Bytes that an earlier attempt left in the job's log."""
    return job.log.stat().st_size if job.log.is_file() else 0


def outcome(job: Job, stages: Sequence[str], result: int | str | None, since: str, skip: int = 0) -> dict[str, Any]:
    """What became of a job, by its stages' records as well as by how its process ended.

    Args:
        stages: the stages that the job runs, in order.
        result: its exit code, or what happened to it; None if it was never seen to end.
        since: time (`record.now`) at which this attempt began; older records say nothing about it.
        skip: bytes at the start of its log that belong to earlier attempts.

    Returns:
        `status` (completed, failed, died, interrupted, running, busy elsewhere, not started), `seconds` of all its
        stages, and of the one that did not complete `stage`, `cell` and `message`; None where nothing is to be said.
    """
    from prlhf_kit.record import read_record

    records = {stage: read_record(job.run_dir / stage) for stage in stages}
    times = [record["seconds"] for record in records.values() if record and "seconds" in record]
    row: dict[str, Any] = {"status": "failed", "seconds": round(sum(times), 1) if times else None}
    row |= {"stage": None, "cell": None, "message": None}
    stopped = next((s for s in stages if (records[s] or {}).get("status") != "completed"), None)
    record = records[stopped or stages[-1]] or {}
    current = record.get("started", "") >= since
    if stopped is None and (result == 0 or current):
        # with another code than 0 it failed after the last notebook: at the index page, on a full disk say
        return row | {"status": "completed", "message": _ended(job, result, skip) if result else None}
    if result is None:
        if not current:
            return row | {"status": "not started"}
        status = "died" if record["status"] == "running" and _gone(record) else record["status"]
        return row | {"status": status, "stage": stopped}
    row["stage"] = stopped
    if result == 2 and BUSY in _log(job, skip):
        return row | {"status": "busy elsewhere", "message": "another process is running it"}
    if not current or stopped is None:
        return row | {"message": _ended(job, result, skip)}
    if record["status"] == "failed":
        first, _, _ = record["error"].partition("\n")
        place, raised, what = first.partition(" raised ")
        if raised and place.startswith("cell "):
            return row | {"cell": int(place.removeprefix("cell ")), "message": what}
        return row | {"message": first}
    status = "died" if record["status"] == "running" else record["status"]
    return row | {"status": status, "message": _ended(job, result, skip)}


def _gone(record: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a record was on this machine and is no more."""
    if record.get("host") != platform.node():
        return False
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return True
    return False


def _log(job: Job, skip: int) -> str:
    try:
        with job.log.open("rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(max(skip if skip <= size else 0, size - 4000))
            return f.read().decode(errors="replace")
    except OSError:
        return ""


def _ended(job: Job, result: int | str, skip: int) -> str:
    """How the process ended, with the last line of its log, and whether its disk is full (so that it could not say)."""
    lines = [line.strip() for line in _log(job, skip).splitlines() if line.strip()]
    said = [f"exit code {result}" if isinstance(result, int) else result]
    said += lines[-1:] or [f"nothing in {job.log}"]
    folder = next(path for path in (job.run_dir, *job.run_dir.parents) if path.exists())
    if (free := shutil.disk_usage(folder).free) < FULL:
        said.append(f"the disk of {folder} is full: {free} bytes left")
    return "; ".join(said)


def count(text: str) -> int:
    """A whole number from 1 up, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def said(name: str, row: Mapping[str, Any]) -> str:
    """A job's outcome in one line."""
    where = "".join(f", {key} {row[key]}" for key in ("stage", "cell") if row[key] not in (None, name))
    took = f" ({row['seconds']:.0f} s)" if row["status"] == "completed" and row["seconds"] is not None else ""
    return f"{name} {row['status']}{took}{where}" + (f": {row['message']}" if row["message"] else "")


def table(rows: Mapping[str, Mapping[str, Any]], what: str) -> str:
    """The summary for the terminal: one line for each run or stage (`what`) with where and how it failed."""
    import pandas as pd

    columns = ["status", "seconds", "stage", "cell", "message"]
    shown = [[name, *("" if row[c] is None else str(row[c]) for c in columns)] for name, row in rows.items()]
    frame = pd.DataFrame(shown, columns=[header := f"{what} ", *columns]).map(
        lambda t: t if len(t) < 120 else f"{t[:117]}..."
    )
    frame = frame.loc[:, [c in (header, "status", "seconds") or frame[c].any() for c in frame]]
    texts = frame.apply(lambda column: column if column.name == "seconds" else column.str.ljust(column.str.len().max()))
    return texts.to_string(index=False, justify="left")
