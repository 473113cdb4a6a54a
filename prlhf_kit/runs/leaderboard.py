"""All runs' numbers side by side in one table, with links to every record. Works from disk."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup, escape

from prlhf_kit.files import write_text
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.records import records_of, runs_in
from prlhf_kit.runs.report import STYLE
from prlhf_kit.runs.stage import PAGE as NOTEBOOK_PAGE, RECORD

NAME = "leaderboard.html"
COLUMNS = ["run", "stage", "status", "metric", "value", "record"]

PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ count }} runs - prlhf_kit</title>
<style>
{{ style | safe }}
body { max-width: none; } td { white-space: pre-line; }
</style></head><body>
<h1>{{ count }} run{{ "s" if count != 1 }} side by side</h1>
<div class="scroll" tabindex="0" role="region" aria-label="All runs"><table>
<thead><tr><th>run</th>{% for cell in heads %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
{% for row in rows %}<tr><th>{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
</body></html>
""")


@dataclass(frozen=True)
class RunRecords:
    """A run's folder, the name that tells it apart, and the record of each stage."""

    name: str
    path: Path
    stages: dict[str, dict[str, Any]]


def collect(dirs: Iterable[str | Path]) -> list[RunRecords]:
    """Every run in `dirs`, each a run or a folder of runs. Raises `RunError` for one that holds no run."""
    runs = runs_in(Path(os.path.abspath(given)) for given in dirs)  # abspath: a link to a run keeps its own name
    nothing = {"status": "unreadable", "parameters": {}, "metrics": {}, "git": {}}  # listed all the same
    found = [records_of(run) for run in runs]
    for record in [record for records in found for record in records.values() if record]:
        record["metrics"] = {name: _number(value) for name, value in record["metrics"].items()}
    return [
        RunRecords(name, run, {stage: record or nothing for stage, record in records.items()})
        for name, run, records in zip(_names(runs), runs, found, strict=True)
    ]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) <= sys.float_info.max else None


def metrics(dirs: Iterable[str | Path]) -> pd.DataFrame:
    """Every metric of the runs in `dirs`, one a row; columns `run, stage, status, metric, value, record` (a path).

    A metric that could not be computed has the value NaN. A stage without metrics has one row without a metric, so
    that its status is there too.
    """
    rows = [
        (run.name, stage, record["status"], name, value, str(run.path / stage / RECORD))
        for run in collect(dirs)
        for stage, record in run.stages.items()
        for name, value in (record["metrics"] or {None: None}).items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


def write_page(dirs: Iterable[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of all runs in `dirs` and return its path.

    Args:
        dirs: runs and folders of runs.
        out: the page; by default `leaderboard.html` in the first of `dirs`, or beside it where that is a run.

    Raises:
        RunError: one of `dirs` holds no run, or the page can't be written there.
    """
    dirs = list(dirs)
    runs = collect(dirs)
    first = Path(os.path.abspath(dirs[0]))
    page = Path(os.path.abspath(out or (first.parent if runs[0].path == first else first) / NAME))
    if page.is_dir():
        raise RunError(f"{page} is a folder; expected the path of the page. Give --out {page / NAME}, say.")
    rows = _setup(runs)
    for stage in sorted({stage for run in runs for stage in run.stages}):
        rows += _stage_rows(stage, runs, page)
    heads = [_link(run.name, run.path / "index.html", page) for run in runs]
    text = PAGE.render(count=len(runs), heads=heads, rows=rows, style=STYLE)
    try:
        write_text(page, text.encode("utf-8", "replace").decode())  # a name of a folder need not be valid text
    except OSError as error:
        raise RunError(f"{page} can't be written: {error}. Name another place with --out.") from None
    return page


def _names(paths: list[Path]) -> list[str]:
    """The shortest ends of `paths` that tell them apart: `a/run` and `b/run`, but `demo` where there is one."""
    names: dict[Path, str] = {}
    left, depth = paths, 0
    while left:
        depth += 1
        same: dict[str, list[Path]] = {}
        for path in left:
            same.setdefault("/".join(path.parts[-depth:]), []).append(path)
        names |= {path: name for name, (path, *others) in same.items() if not others}
        left = [path for group in same.values() if len(group) > 1 for path in group]
    return [names[path] for path in paths]


def _link(text: str, path: Path, page: Path) -> Markup:
    """`text` as a link from `page` to `path`, percent-encoded; without one where there is no such file."""
    if not path.is_file():
        return escape(text)
    address = quote(os.fsencode(os.path.relpath(path, page.parent)))
    return Markup('<a href="{}">{}</a>').format(address, text)


def _short(value: float) -> str:
    """Three significant digits; counts and large numbers without an exponent.

    >>> _short(0.609375), _short(12345.0), _short(1234.5), _short(0.00002)
    ('0.609', '12345', '1234', '2e-05')
    """
    return f"{value:.0f}" if abs(value) < 1e9 and (value.is_integer() or abs(value) >= 1e3) else f"{value:.3g}"


def _cells(values: dict[str, float | None]) -> dict[str, str]:
    """What the table shows of a record's metrics.

    `NAME_low/REST` with `NAME_high/REST`, and `NAME_n/REST`, join the cell of `NAME/REST`. Where that has no number
    they keep rows of their own, so that nothing is lost.
    """
    cells: dict[str, str] = {}
    joined = set()
    for name, value in values.items():
        if value is None:
            cells[name] = ""
            continue
        head, slash, rest = name.partition("/")
        low, high, n = (f"{head}_{part}{slash}{rest}" for part in ("low", "high", "n"))
        cells[name] = _short(value)
        ends = [values.get(low), values.get(high)]
        if None not in ends:
            cells[name] += " [" + ", ".join(_short(end) for end in ends if end is not None) + "]"
            joined |= {low, high}
        if (count := values.get(n)) is not None:
            cells[name] += f" n = {_short(count)}"
            joined.add(n)
    return {name: cell for name, cell in cells.items() if name not in joined}


def _stage_rows(stage: str, runs: list[RunRecords], page: Path) -> list[list[str]]:
    """A stage's status in each run, with links to what it left, and a row for each metric."""
    records = [run.stages.get(stage) for run in runs]
    cells = [_cells(record["metrics"]) if record else {} for record in records]
    heads = [_head(record, run.path / stage, page) if record else "" for run, record in zip(runs, records, strict=True)]
    names = dict.fromkeys(name for column in cells for name in column)
    return [[stage, *heads], *([name, *(column.get(name, "") for column in cells)] for name in names)]


def _head(record: dict[str, Any], folder: Path, page: Path) -> Markup:
    seconds, peak = record.get("seconds"), record.get("peak_memory_bytes")
    cost = [f"{seconds:.0f} s"] if isinstance(seconds, int | float) else []
    cost += [f"{peak / 2**30:.1f} GiB"] if isinstance(peak, int | float) else []
    status = Markup('<span class="{}">{}</span>').format(record["status"], record["status"])
    files = {"record": folder / RECORD, "notebook": folder / NOTEBOOK_PAGE}
    links = [_link(name, path, page) for name, path in files.items() if path.is_file()]
    return Markup(" ").join([status, escape(", ".join(cost)), *links])


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, sort_keys=True)


def _setup(runs: list[RunRecords]) -> list[list[str]]:
    """Rows on how each run was made: date, commit, data and models, the seed, and parameters that differ."""
    dates = [[str(s.get("ended") or s.get("started") or "") for s in run.stages.values()] for run in runs]
    rows = [["date (UTC)", *(max(times)[:16].replace("T", " ") for times in dates)]]
    commits = [[_commit(s["git"]) for s in run.stages.values() if s["git"]] for run in runs]
    rows.append(["commit", *("\n".join(dict.fromkeys(found)) for found in commits)])
    for kind in dict.fromkeys(name for run in runs for s in run.stages.values() for name in s.get("provenance", {})):
        found = [
            [s.get("provenance", {})[kind] for s in run.stages.values() if kind in s.get("provenance", {})]
            for run in runs
        ]
        rows.append([kind, *("\n".join(dict.fromkeys(map(_identity, entries))) for entries in found)])
    return rows + _parameters(runs)


def _commit(git: dict[str, Any]) -> str:
    return str(git.get("commit") or "none")[:8] + (" (dirty)" if git.get("dirty") else "")


def _identity(entry: Any) -> str:
    """A model's name and the fingerprint of it or of data, as `Stage.uses` recorded them."""
    return f"{entry.get('id', '')} {entry.get('fingerprint', '')}".strip() if isinstance(entry, dict) else str(entry)


def _parameters(runs: list[RunRecords]) -> list[list[str]]:
    """A row for the seed and for each parameter that has not the same value in all runs that have its stage."""
    given: dict[str, list[dict[str, str]]] = {}  # parameter -> for each run: stage -> value
    present = [[stage for stage, record in run.stages.items() if record["parameters"]] for run in runs]
    for i, run in enumerate(runs):
        for stage in present[i]:
            for name, value in run.stages[stage]["parameters"].items():
                if name != "run_dir":
                    given.setdefault(name, [{} for _ in runs])[i][stage] = _text(value)
    rows = []
    for name, values in sorted(given.items(), key=lambda item: item[0] != "seed"):
        stages = {stage for column in values for stage in column}
        seen = {
            (stage, column.get(stage))
            for column, there in zip(values, present, strict=True)
            for stage in there
            if stage in stages
        }
        if name == "seed" or len(seen) > len(stages):
            rows.append([name, *map(_in_one_cell, values)])
    return rows


def _in_one_cell(values: dict[str, str]) -> str:
    """A parameter's value in each stage, once where it is the same in all."""
    if len(set(values.values())) < 2:
        return "".join(dict.fromkeys(values.values()))
    return "\n".join(f"{value} ({stage})" for stage, value in values.items())
