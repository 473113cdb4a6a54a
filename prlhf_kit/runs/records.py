"""Run records, read and compared: `prlhf runs list`, `show` and `diff`. Written by `notebook.py` (headless) and
`stage.py` (JupyterLab)."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prlhf_kit.runs.leaderboard import find_runs
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.stage import RECORD, SCHEMA

FIELDS = {"schema", "stage", "status", "parameters", "metrics", "artifacts", "versions", "git", "started"}
DIED, UNREADABLE = "died", "unreadable"
STATUSES = ("completed", "failed", "interrupted", "running", DIED, UNREADABLE)
MISSING = object()  # what one of two runs does not have
Row = dict[str, Any]


def read(stage_dir: Path) -> dict[str, Any]:
    """A stage's record. Its status is `died` where it says `running` but its process is gone.

    Raises:
        RunError: there is none, it can't be read, or a later version of the kit wrote it.
    """
    path = stage_dir / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} can't be read: {error}. Expected the JSON that a notebook's run leaves.") from None
    if not isinstance(record, dict) or not record.keys() >= FIELDS:
        raise RunError(f"{path} is no run record: it lacks {', '.join(sorted(FIELDS - set(record)))}. Run it again.")
    if record["schema"] > SCHEMA:
        raise RunError(
            f"{path} follows schema {record['schema']}; prlhf_kit {importlib.metadata.version('prlhf_kit')} knows "
            f"schemas up to {SCHEMA}. Upgrade prlhf_kit, to the version in its field versions.prlhf_kit or a later one."
        )
    if record["status"] == "running" and process_is_gone(record):
        record["status"] = DIED
    return record


def process_is_gone(record: dict[str, Any]) -> bool:
    """Known on the machine of the process alone. Early records name no machine: this one is assumed."""
    if "pid" not in record or record.get("host", platform.node()) != platform.node():
        return False
    return not alive(record["pid"])


def alive(pid: int) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def stages(run: Path) -> dict[str, Path]:
    """Stage -> folder, of a run or of one stage of it. Raises `RunError` where `run` is neither."""
    if (run / RECORD).is_file():
        return {Path(os.path.abspath(run)).name: run}
    found = {path.parent.name: path.parent for path in sorted(run.glob(f"[!.]*/{RECORD}"))}
    if not found:
        what = "holds no run" if run.is_dir() else "is no folder"
        raise RunError(
            f"{run} {what}. Expected the folder of a run, or of one of its stages: papermill_runs/demo, or "
            "papermill_runs/demo/03_pdpo_training. `prlhf runs list` names the runs that there are."
        )
    return found


def runs_in(dirs: Iterable[Path]) -> Iterator[Path]:
    """Every run in `dirs`, as paths that begin as they do. Raises `RunError` for one that is no folder."""
    for folder in dirs:
        if not folder.is_dir():
            raise RunError(f"{folder} is no folder. Expected a run, or a folder of runs such as papermill_runs.")
        yield from find_runs(folder)


def summary(run: Path) -> Row:
    """One run in a row: its stages' statuses, when it began, its time, and what it was made by and from."""
    found: dict[str, dict[str, Any]] = {}
    status: dict[str, str] = {}
    for stage, folder in stages(run).items():
        try:
            found[stage] = read(folder)
            status[stage] = found[stage]["status"]
        except RunError:
            status[stage] = UNREADABLE
    records = list(found.values())
    commits = {(r["git"]["commit"] or "")[:7] + ("+" if r["git"]["dirty"] else "") for r in records}
    data = {r.get("provenance", {}).get("data", {}).get("fingerprint") for r in records}
    models = {r["parameters"]["model"] for r in records if isinstance(r["parameters"].get("model"), str)}
    return {
        "run": str(run),
        "stages": status,
        "started": min((r["started"] for r in records), default=None),
        "seconds": round(sum(map(seconds, records)), 1),
        "commits": sorted(commits - {""}),
        "models": sorted(models),
        "data": sorted(name[:8] for name in data if name),
    }


def seconds(record: dict[str, Any]) -> float:
    """How long a stage took; 0 where it has not ended."""
    if "seconds" in record or "ended" not in record:
        return record.get("seconds", 0)
    start, end = (datetime.datetime.fromisoformat(record[name]) for name in ("started", "ended"))
    return (end - start).total_seconds()


def in_words(status: dict[str, str]) -> str:
    """What became of a run's stages; those that are done are only counted.

    >>> in_words({"01_data": "completed", "03_pdpo": "failed", "05_eval": "completed"})
    '2 completed, 03_pdpo failed'
    """
    done = sum(one == "completed" for one in status.values())
    rest = [f"{stage} {one}" for stage, one in status.items() if one != "completed"]
    return ", ".join([f"{done} completed"] * bool(done) + rest)


def differences(one: Path, other: Path) -> list[Row]:
    """What differs between two runs (or two stages of the same name), stage by stage.

    Rows have `stage`, `section` (status, parameters, versions, git, machine, provenance or metrics), `name`, `a` and
    `b` (left out where that run has no such thing), and for two numbers of `metrics` their `difference`, b - a.
    Times, process numbers and where the runs lie are no differences, nor are the bytes of artefacts: they hold times.

    Raises:
        RunError: not a run, a record that can't be read, or no stage that both have.
    """
    a, b = stages(one), stages(other)
    if not a.keys() & b.keys():
        raise RunError(
            f"{one} and {other} have no stage in common: {', '.join(a)} there, {', '.join(b)} here. Expected two runs "
            "of the same notebooks."
        )
    rows: list[Row] = []
    for stage in sorted({*a, *b}):
        left, right = (_sections(read(side[stage])) if stage in side else {} for side in (a, b))
        for section in left if left and right else ["status"]:
            one_side, other_side = left.get(section, {}), right.get(section, {})
            for name in sorted({*one_side, *other_side}):
                values = [one_side.get(name, MISSING), other_side.get(name, MISSING)]
                if values[0] == values[1]:
                    continue
                row = {"stage": stage, "section": section, "name": name}
                row |= {side: value for side, value in zip("ab", values, strict=True) if value is not MISSING}
                if section == "metrics" and all(isinstance(value, (int, float)) for value in values):
                    row["difference"] = values[1] - values[0]
                rows.append(row)
    return rows


def _sections(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What of a record can differ in earnest; paths in the run's own folder are told from there on."""
    run_dir = record["parameters"].get("run_dir")
    parameters = {name: _inside(value, run_dir) for name, value in record["parameters"].items() if name != "run_dir"}
    provenance = {
        f"{thing}, {name}": _inside(value, run_dir)
        for thing, entry in record.get("provenance", {}).items()
        for name, value in entry.items()
    }
    return {
        "status": {"status": record["status"]},
        "parameters": parameters,
        "versions": record["versions"],
        "git": record["git"],
        "machine": record.get("machine", {}),
        "provenance": provenance,
        "metrics": record["metrics"],
    }


def _inside(value: Any, run_dir: Any) -> Any:
    if isinstance(value, str) and isinstance(run_dir, str) and (value + "/").startswith(f"{run_dir.rstrip('/')}/"):
        return "<run>" + value[len(run_dir.rstrip("/")) :]
    if isinstance(value, list):
        return [_inside(each, run_dir) for each in value]
    if isinstance(value, dict):
        return {name: _inside(each, run_dir) for name, each in value.items()}
    return value
