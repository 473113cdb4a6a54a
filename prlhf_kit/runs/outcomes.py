"""What became of a job: judged by the records that its stages leave and by how its process ended, and shown.

Nothing heavy is imported at the top: `prlhf --help` reads this file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prlhf_kit.runs.jobs import Job

FULL = 2**20  # bytes; a disk with less free space is called full
BUSY = "another process is running"  # what `prlhf run` says, with exit code 2, of a stage that runs elsewhere
UNCOPIED = "not all of it was copied"  # what it says, with exit code 74, where only --copy-to failed


@dataclass(frozen=True)
class Before:
    """What earlier attempts at a job left: its stages' records, and the bytes of its log."""

    records: dict[str, dict[str, Any] | None]
    log: int


def before(job: Job, stages: Sequence[str]) -> Before:
    """What is there before an attempt begins, so that `outcome` can tell what is of this attempt.

    Times would not do: a node's clock may be behind, and a job of Slurm may have begun before it is watched again.
    """
    from prlhf_kit.runs.stage import read_record

    size = job.log.stat().st_size if job.log.is_file() else 0
    return Before({stage: read_record(job.run_dir / stage) for stage in stages}, size)


def outcome(job: Job, result: int | str | None, earlier: Before) -> dict[str, Any]:
    """What became of a job, by its stages' records as well as by how its process ended.

    Args:
        result: its exit code, or what happened to it; None if it was never seen to end.
        earlier: what there was before; as `before` says. Its stages are those that the job runs, in order.

    Returns:
        `status` (completed, failed, died, interrupted, running, busy elsewhere, not started), `seconds` of all its
        stages, and of the one that did not complete `stage`, `cell` and `message`; None where nothing is to be said.
    """
    from prlhf_kit.runs.records import process_is_gone

    stages = list(earlier.records)
    records = before(job, stages).records
    times = [record["seconds"] for record in records.values() if record and "seconds" in record]
    row: dict[str, Any] = {"status": "failed", "seconds": round(sum(times), 1) if times else None}
    row |= {"stage": None, "cell": None, "message": None}
    stopped = next((s for s in stages if (records[s] or {}).get("status") != "completed"), None)
    record = records[stopped or stages[-1]] or {}
    running = record.get("status") == "running"
    changed = record != (earlier.records[stopped or stages[-1]] or {})
    if stopped is None and (result == 0 or changed or (result == 74 and UNCOPIED in _log(job, earlier.log))):
        # with another code than 0 it failed after the last notebook: at the index page, on a full disk say
        return row | {"status": "completed", "message": _ended(job, result, earlier.log) if result else None}
    if result is None:
        gone = running and process_is_gone(record)
        if not changed and (gone or not running):
            return row | {"status": "not started"}
        return row | {"status": "died" if gone else record["status"], "stage": stopped}
    row["stage"] = stopped
    if result == 2 and BUSY in (_errors(job, earlier.log) or [""])[-1]:
        return row | {"status": "busy elsewhere", "message": "another process is running it"}
    # a job that was running already is one of Slurm's, which is watched again; its record does not say that it ended
    if not (changed or running) or stopped is None:
        return row | {"message": _ended(job, result, earlier.log)}
    if record["status"] == "failed":
        first, _, _ = record["error"].partition("\n")
        place, raised, what = first.partition(" raised ")
        if raised and place.startswith("cell "):
            return row | {"cell": int(place.removeprefix("cell ")), "message": what}
        return row | {"message": first}
    return row | {"status": "died" if running else record["status"], "message": _ended(job, result, earlier.log)}


def _log(job: Job, skip: int) -> str:
    try:
        with job.log.open("rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(max(skip if skip <= size else 0, size - 4000))
            return f.read().decode(errors="replace")
    except OSError:
        return ""


def _errors(job: Job, skip: int) -> list[str]:
    """Errors that `prlhf run` told; the last is this process's, also where another sweep's process writes there."""
    return [line for line in _log(job, skip).splitlines() if line.startswith("prlhf: ")]


def _ended(job: Job, result: int | str, skip: int) -> str:
    """How the process ended, with the last word of its log, and whether its disk is full (so that it could not say)."""
    log = _errors(job, skip) if isinstance(result, int) else []  # before its report, which is flushed later
    lines = [line.strip() for line in log or _log(job, skip).splitlines() if line.strip()]
    lines = [line.removeprefix("prlhf: ") for line in lines if BUSY not in line]  # that said another sweep's process
    said = [f"exit code {result}" if isinstance(result, int) else result]
    said += lines[-1:] or [f"nothing in {job.log}"]
    folder = next(path for path in (job.run_dir, *job.run_dir.parents) if path.exists())
    if (free := shutil.disk_usage(folder).free) < FULL:
        said.append(f"the disk of {folder} is full: {free} bytes left")
    return "; ".join(said)


def exit_code(rows: Iterable[Mapping[str, Any]]) -> int:
    """0 if all completed; 74 if all did, but not all notebooks were copied; else 1."""
    rows = list(rows)
    if not all(row["status"] in ("completed", "unchanged") for row in rows):
        return 1
    return 74 if any(UNCOPIED in (row["message"] or "") for row in rows) else 0


def in_one_line(name: str, row: Mapping[str, Any]) -> str:
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
