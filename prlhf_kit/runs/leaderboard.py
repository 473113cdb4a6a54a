"""All runs' numbers side by side in one table, with links to every record. Works from disk."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup, escape

from prlhf_kit.files import write_text
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.records import existing, records_of, runs_in
from prlhf_kit.runs.report import STYLE
from prlhf_kit.runs.stage import PAGE as NOTEBOOK_PAGE, RECORD

NAME = "leaderboard.html"
Runs = dict[Path, dict[str, dict[str, Any]]]  # a run's folder -> the record of each stage

PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ heads | length }} runs - prlhf_kit</title>
<style>
{{ style | safe }}
body { max-width: none; } td { white-space: pre-line; }
</style></head><body>
<h1>{{ heads | length }} run{{ "s" if heads | length != 1 }} side by side</h1>
<div class="scroll" tabindex="0" role="region" aria-label="All runs"><table>
<thead><tr><th>run</th>{% for cell in heads %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
{% for row in rows %}<tr><th>{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
</body></html>
""")


def _collect(dirs: Iterable[str | Path]) -> tuple[list[str], Runs]:
    """Every run in `dirs` with its name, which is its path from the folder around them all."""
    found: Runs = {}
    for run in runs_in(dirs):
        stages = found[Path(os.path.abspath(run))] = {}  # not resolved: a link to a run keeps its own name
        for stage, record in records_of(run).items():  # what can't be read is listed all the same
            record = record or {"status": "unreadable", "parameters": {}, "metrics": {}, "git": {}}
            stages[stage] = record | {"metrics": {name: _number(value) for name, value in record["metrics"].items()}}
    around = os.path.commonpath([run.parent for run in found])
    return [os.path.relpath(run, around) for run in found], found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) <= sys.float_info.max else None


def metrics(dirs: Iterable[str | Path]) -> pd.DataFrame:
    """Every metric of the runs in `dirs`, one a row; columns `run, stage, status, metric, value, record` (a path).

    A metric that could not be computed has the value NaN. A stage without metrics has one row without a metric, so
    that its status is there too.
    """
    names, runs = _collect(dirs)
    rows = [
        (run_name, stage, record["status"], name, value, str(run / stage / RECORD))
        for run_name, (run, stages) in zip(names, runs.items(), strict=True)
        for stage, record in stages.items()
        for name, value in (record["metrics"] or {None: None}).items()
    ]
    return pd.DataFrame(rows, columns=["run", "stage", "status", "metric", "value", "record"]).astype({"value": float})


def write_page(dirs: Iterable[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of all runs in `dirs` and return its path.

    Args:
        dirs: runs (folders or names) and folders of runs.
        out: the page; by default `leaderboard.html` in the first of `dirs`, or beside it where that is a run.

    Raises:
        RunError: one of `dirs` holds no run, or `out` is a folder.
    """
    dirs = list(dirs)
    names, runs = _collect(dirs)
    first = Path(os.path.abspath(existing(dirs[0])))
    page = Path(os.path.abspath(out or (first.parent if first in runs else first) / NAME))
    if page.is_dir():
        raise RunError(f"{page} is a folder; expected the path of the page. Give --out {page / NAME}, say.")
    rows = _how_made(runs)
    for stage in sorted({stage for stages in runs.values() for stage in stages}):
        heads = [_head(stages[stage], run / stage, page) if stage in stages else "" for run, stages in runs.items()]
        cells = [_cells(stages[stage]["metrics"]) if stage in stages else {} for stages in runs.values()]
        rows.append([stage, *heads])
        for name in dict.fromkeys(name for column in cells for name in column):
            rows.append([name, *(column.get(name, "") for column in cells)])
    links = [_link(name, run / "index.html", page) for name, run in zip(names, runs, strict=True)]
    text = PAGE.render(heads=links, rows=rows, style=STYLE)
    write_text(page, text.encode("utf-8", "replace").decode())  # a name of a folder need not be valid text
    return page


def _link(text: str, path: Path, page: Path) -> Markup:
    """`text` as a link from `page` to `path`; without one where there is no such file."""
    if not path.is_file():
        return escape(text)
    return Markup('<a href="{}">{}</a>').format(quote(os.fsencode(os.path.relpath(path, page.parent))), text)


def _short(value: float) -> str:
    """Three significant digits; counts and large numbers without an exponent.

    >>> _short(0.609375), _short(12345.0), _short(1234.5), _short(0.00002)
    ('0.609', '12345', '1234', '2e-05')
    """
    return f"{value:.0f}" if abs(value) < 1e9 and (value.is_integer() or abs(value) >= 1e3) else f"{value:.3g}"


def _cells(values: dict[str, float | None]) -> dict[str, str]:
    """A record's metrics as text. `NAME_low/REST`, `NAME_high/REST` and `NAME_n/REST` join the cell of `NAME/REST`, if
    that has a number."""
    cells = {name: "" if value is None else _short(value) for name, value in values.items()}
    for name in [name for name, value in values.items() if value is not None]:
        head, slash, rest = name.partition("/")
        low, high, n = (f"{head}_{part}{slash}{rest}" for part in ("low", "high", "n"))
        if cells.get(low) and cells.get(high):
            cells[name] += f" [{cells.pop(low)}, {cells.pop(high)}]"
        if cells.get(n):
            cells[name] += f" n = {cells.pop(n)}"
    return cells


def _head(record: dict[str, Any], folder: Path, page: Path) -> Markup:
    """A stage's status, time and memory, with links to what it left."""
    cost = [f"{record['seconds']:.0f} s"] if "seconds" in record else []
    cost += [f"{record['peak_memory_bytes'] / 2**30:.1f} GiB"] if "peak_memory_bytes" in record else []
    status = Markup('<span class="{}">{}</span>').format(record["status"], record["status"])
    files = {"record": folder / RECORD, "notebook": folder / NOTEBOOK_PAGE}
    links = [_link(name, path, page) for name, path in files.items() if path.is_file()]
    return Markup(" ").join([status, escape(", ".join(cost)), *links])


def _how_made(runs: Runs) -> list[list[str]]:
    """Rows on how each run was made: date, commit, data and models, the seed, and parameters that differ."""

    def row(name: str, texts: Iterable[Iterable[str]]) -> list[str]:
        return [name, *("\n".join(dict.fromkeys(each)) for each in texts)]

    def commit(git: dict[str, Any]) -> str:
        return str(git.get("commit") or "none")[:8] + (" (dirty)" if git.get("dirty") else "")

    all_stages = [list(stages.values()) for stages in runs.values()]
    times = [max(str(s.get("ended") or s.get("started", "")) for s in stages) for stages in all_stages]
    rows = [["date (UTC)", *(time[:16].replace("T", " ") for time in times)]]
    rows.append(row("commit", ([commit(s["git"]) for s in stages if s["git"]] for stages in all_stages)))
    used = [[s.get("provenance", {}) for s in stages] for stages in all_stages]
    for kind in dict.fromkeys(name for each in used for entries in each for name in entries):
        found = [[entries[kind] for entries in each if kind in entries] for each in used]
        rows.append(row(kind, ([f"{e.get('id', '')} {e.get('fingerprint', '')}".strip() for e in f] for f in found)))
    for name in dict.fromkeys(["seed", *sorted({key for each in all_stages for s in each for key in s["parameters"]})]):
        given = [
            {stage: _text(s["parameters"][name]) for stage, s in stages.items() if name in s["parameters"]}
            for stages in runs.values()
        ]
        having = [[stage for stage, s in stages.items() if s["parameters"]] for stages in runs.values()]
        # one has not the same value in all runs that have its stage, or is not there in some
        differs = any(
            len({texts.get(stage) for texts, stages in zip(given, having, strict=True) if stage in stages}) > 1
            for stage in {stage for texts in given for stage in texts}
        )
        if name == "seed" or (differs and name != "run_dir"):
            rows.append([name, *map(_in_one_cell, given)])
    return rows


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, sort_keys=True)


def _in_one_cell(values: dict[str, str]) -> str:
    """A parameter's value in each stage, once where it is the same in all."""
    if len(set(values.values())) < 2:
        return "".join(dict.fromkeys(values.values()))
    return "\n".join(f"{value} ({stage})" for stage, value in values.items())
