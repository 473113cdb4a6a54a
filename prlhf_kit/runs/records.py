"""Runs on the disk, by their records: found, and listed by `prlhf runs list`. A record's fields: docs/runs.md."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.stage import RECORD, process_is_gone, read_record

RUNS = Path("papermill_runs")


def find_runs(folder: Path, seen: set[Path] | None = None) -> list[Path]:
    """`folder` if it is a run, else all runs under it, each real folder once. Hidden folders are left out."""
    seen = set() if seen is None else seen
    if folder.resolve() in seen:
        return []
    seen.add(folder.resolve())
    children = sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_dir())
    if any((child / RECORD).is_file() for child in children):
        return [folder]
    return [run for child in children for run in find_runs(child, seen)]


def existing(given: str | Path, out: Path = RUNS) -> Path:
    """The folder of a run or of runs, given by path or by name in `out`. Raises `RunError` where there is none."""
    for folder in (Path(given), out / given):
        if folder.is_dir() and find_runs(folder):
            return folder
    names = [path.name for path in out.iterdir() if path.is_dir()] if out.is_dir() else []
    near = difflib.get_close_matches(str(given), names, n=1)
    what = "holds no run" if Path(given).is_dir() else "is no folder"
    raise RunError(
        f"{given} {what}, and {out} has no run of this name.{f' Did you mean {near[0]}?' if near else ''} Expected a "
        f"run (a folder with <stage>/{RECORD} in it) or a folder of runs. `prlhf run NOTEBOOK --run NAME` makes one."
    )


def place_of(run: str | Path, out: Path) -> Path:
    """Where `--run` puts a run: `out/<name>`, or a run's folder that is there. Raises `RunError` for other paths."""
    path = Path(run)
    named = not path.is_absolute() and (out / path).is_dir()
    if path.is_dir() and not named and path.resolve() != out.resolve() and find_runs(path):
        return path
    path = path.relative_to(out) if path.is_relative_to(out) else path
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise RunError(
            f"--run {run} lies outside {out}, where runs are kept. Expected a name, or the folder of a run that is "
            "there; --out DIR keeps runs elsewhere."
        )
    return out / path


def runs_in(dirs: Iterable[str | Path]) -> list[Path]:
    """Every run in `dirs`, each a run or a folder of runs (or a name, see `existing`), once."""
    return list(dict.fromkeys(run for given in dirs for run in find_runs(existing(given))))


def records_of(run: Path) -> dict[str, dict[str, Any] | None]:
    """Stage -> its record, None where that can't be read. `died`: it says `running`, but its process is gone."""
    records = {path.parent.name: read_record(path.parent) for path in sorted(run.glob(f"[!.]*/{RECORD}"))}
    for record in records.values():
        if record is not None and process_is_gone(record):
            record["status"] = "died"
    return records


def row(run: Path) -> list[str]:
    """Of a run: its name, what became of its stages, when it began (UTC), its time, commits (+: with uncommitted
    changes), models and datasets."""
    records = records_of(run)
    status = {stage: record["status"] if record else "unreadable" for stage, record in records.items()}
    done = sum(one == "completed" for one in status.values())
    stages = [f"{done} completed"] * bool(done) + [f"{s} {one}" for s, one in status.items() if one != "completed"]
    found = [record for record in records.values() if record]
    started = min((record["started"] for record in found), default="")[:16].replace("T", " ")
    seconds = sum(record.get("seconds", 0) for record in found)
    took = f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min"
    commits = {f"{str(r['git'].get('commit') or '')[:7]}{'+' * bool(r['git'].get('dirty'))}" for r in found}
    models, data = (
        {str(r["parameters"][key]) for r in found if key in r["parameters"]} for key in ("model", "dataset")
    )
    sets = (commits, models, data)
    return [str(run), ", ".join(stages), started, took, *(" ".join(sorted(s - {""})) for s in sets)]
