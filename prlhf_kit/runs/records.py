"""Runs on the disk, by their records: found, listed by `prlhf runs list`, and read for the pages and tables that show
several. A record's fields: docs/runs.md."""

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prlhf_kit.files import nearest
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.stage import RECORD, read_record

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
    what = "holds no run" if Path(given).is_dir() else "is no folder"
    raise RunError(
        f"{given} {what}, and {out} has no run of this name.{nearest(given, names)} Expected a "
        f"run (a folder with <stage>/{RECORD} in it) or a folder of runs. `prlhf run NOTEBOOK --run NAME` makes one."
    )


def place_of(run: str | Path, out: Path) -> Path:
    """Where `--run` puts a run: `out/<name>`, or a run's folder that is there. Raises `RunError` for other paths."""
    if ":/" in str(out):  # pathlib has made one slash of two
        raise RunError(f"--out {out} is an address, expected a local folder. `--copy-to URL` copies to a store.")
    path = Path(run)
    named = not path.is_absolute() and (out / path).is_dir()
    if path.is_dir() and not named and path.resolve() != out.resolve() and find_runs(path):
        return path
    path = path.relative_to(out) if path.is_relative_to(out) else path
    if path.is_absolute() or ".." in path.parts or not path.parts:
        ways = "Expected a name, or the folder of a run; --out DIR keeps runs elsewhere"
        raise RunError(f"--run {run} lies outside {out}, where runs are kept. {ways}.")
    return out / path


def runs_in(dirs: Iterable[str | Path]) -> list[Path]:
    """Every run in `dirs`, each a run or a folder of runs (or a name, see `existing`), once."""
    return list(dict.fromkeys(run for given in dirs for run in find_runs(existing(given))))


def records_of(run: Path) -> dict[str, dict[str, Any] | None]:
    """Stage -> its record, None where that can't be read."""
    return {path.parent.name: read_record(path.parent) for path in sorted(run.glob(f"[!.]*/{RECORD}"))}


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


@dataclass
class Number:
    """A metric with its 95% interval and the n that it was measured on; NaN where the record has none."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: float = math.nan

    def __str__(self) -> str:
        number = _plain(self.value) if math.isnan(self.low) else self.with_interval()
        return number + ("" if math.isnan(self.n) else f" n = {_plain(self.n)}")

    def with_interval(self) -> str:
        """Three decimals and the interval, if there is one."""
        value, low, high = (f"{number:.3f}" for number in np.round([self.value, self.low, self.high], 3))
        return value if math.isnan(self.low) else f"{value} [{low}, {high}]"


def _plain(value: float) -> str:
    whole = abs(value) < 1e9 and (float(value).is_integer() or abs(value) >= 1e3)
    return f"{value:.0f}" if whole else f"{value:.3g}"


def numbers(metrics: Mapping[str, Any]) -> dict[str, Number | None]:
    """A record's metrics, None for what is not a number. `NAME_low/REST`, `NAME_high/REST` and `NAME_n/REST` join
    `NAME/REST`, if that is one."""
    found = {
        name: Number(value) if isinstance(value, int | float) and abs(value) <= sys.float_info.max else None
        for name, value in metrics.items()
    }
    for name, number in list(found.items()):
        head, slash, rest = name.partition("/")
        low, high, n = (f"{head}_{part}{slash}{rest}" for part in ("low", "high", "n"))
        if number and (least := found.get(low)) and (most := found.get(high)):
            number.low, number.high = least.value, most.value
            del found[low], found[high]
        if number and (count := found.get(n)):
            number.n = count.value
            del found[n]
    return found


def how_made(runs: list[dict[str, dict[str, Any]]]) -> list[tuple[str, list[Any]]]:
    """Rows on how each run was made: date, commit, data and models, the seed, and parameters that differ."""

    def lines(texts: Iterable[str]) -> str:
        return "\n".join(dict.fromkeys(texts))

    def commit(git: dict[str, Any]) -> str:
        return str(git.get("commit") or "none")[:8] + (" (dirty)" if git.get("dirty") else "")

    def cell(name: str, run: dict[str, dict[str, Any]]) -> str:
        values = {stage: r["parameters"][name] for stage, r in run.items() if name in r["parameters"]}
        texts = {s: v if isinstance(v, str) and v else json.dumps(v, sort_keys=True) for s, v in values.items()}
        return lines(f"{text} ({s})" if len(set(texts.values())) > 1 else text for s, text in texts.items())

    def differs(name: str) -> bool:  # between runs that have the stage
        for stage in {stage for run in runs for stage in run}:
            having = [run[stage]["parameters"] for run in runs if stage in run and run[stage]["parameters"]]
            if len({json.dumps(each[name], sort_keys=True) if name in each else None for each in having}) > 1:
                return True
        return False

    times = [max((str(r.get("ended") or r.get("started", "")) for r in run.values()), default="") for run in runs]
    rows: list[tuple[str, list[Any]]] = [("date (UTC)", [time[:16].replace("T", " ") for time in times])]
    rows.append(("commit", [lines(commit(r["git"]) for r in run.values() if r["git"]) for run in runs]))
    made_from = [[record.get("provenance", {}) for record in run.values()] for run in runs]
    for kind in dict.fromkeys(name for entries in made_from for entry in entries for name in entry):
        used = [[entry[kind] for entry in entries if kind in entry] for entries in made_from]
        rows.append((kind, [lines(f"{u.get('id', '')} {u.get('fingerprint', '')}".strip() for u in us) for us in used]))
    names = sorted(
        {name for run in runs for record in run.values() for name in record["parameters"]} - {"run_dir", "seed"}
    )
    rows += [(name, [cell(name, run) for run in runs]) for name in ["seed", *filter(differs, names)]]
    return rows
