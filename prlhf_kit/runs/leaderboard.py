"""`prlhf report`: all runs' numbers side by side on one page, with links to every record. Works from disk."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment
from markupsafe import Markup, escape

from prlhf_kit.files import write_text
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.records import existing, records_of, runs_in
from prlhf_kit.runs.report import STYLE
from prlhf_kit.runs.stage import PAGE as NOTEBOOK_PAGE, RECORD

NAME = "leaderboard.html"
PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ heads | length }} run{{ "s" if heads | length != 1 }} - prlhf_kit</title>
<style>
{{ style | safe }}
body { max-width: none; } td { white-space: pre-line; }
</style></head><body>
<h1>{{ heads | length }} run{{ "s" if heads | length != 1 }} side by side</h1>
<div class="scroll" tabindex="0" role="region" aria-label="All runs"><table>
<thead><tr><th>run</th>{% for cell in heads %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
{% for name, cells in rows %}<tr><th>{{ name }}</th>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
</body></html>
""")


def write_page(dirs: Iterable[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of all runs in `dirs` (runs, by folder or name, and folders of runs) and return its path, which is
    `out`, or `leaderboard.html` in the first of `dirs`, or beside it where that is a run."""
    dirs = list(dirs)
    runs = [Path(os.path.abspath(run)) for run in runs_in(dirs)]  # not resolved: a link to a run keeps its own name
    first = Path(os.path.abspath(existing(dirs[0])))
    page = Path(os.path.abspath(out or (first.parent if first in runs else first) / NAME))
    if page.is_dir():
        raise RunError(f"{page} is a folder; expected the path of the page. Give --out {page / NAME}, say.")
    unreadable: dict[str, Any] = {"status": "unreadable", "parameters": {}, "metrics": {}, "git": {}}
    found = [{stage: record or unreadable for stage, record in records_of(run).items()} for run in runs]
    rows = _how_made(found)
    for stage in sorted({stage for records in found for stage in records}):
        mine = [records.get(stage) for records in found]
        heads = ["" if r is None else _head(r, run / stage, page) for r, run in zip(mine, runs, strict=True)]
        cells = [{} if record is None else _cells(record["metrics"]) for record in mine]
        rows.append((stage, heads))
        rows += [(name, [each.get(name, "") for each in cells]) for name in dict.fromkeys(n for c in cells for n in c)]
    around = os.path.commonpath([run.parent for run in runs])
    links = [_link(os.path.relpath(run, around), run / "index.html", page) for run in runs]
    text = PAGE.render(heads=links, rows=rows, style=STYLE)
    write_text(page, text.encode("utf-8", "replace").decode())  # a name of a folder need not be valid text
    return page


def _link(text: str, path: Path, page: Path) -> Markup:
    """`text` as a link from `page` to `path`; without one where there is no such file."""
    if not path.is_file():
        return escape(text)
    return Markup('<a href="{}">{}</a>').format(quote(os.fsencode(os.path.relpath(path, page.parent))), text)


def _head(record: dict[str, Any], folder: Path, page: Path) -> Markup:
    """A stage's status, time and memory, with links to what it left."""
    cost = [f"{record['seconds']:.0f} s"] if "seconds" in record else []
    cost += [f"{record['peak_memory_bytes'] / 2**30:.1f} GiB"] if "peak_memory_bytes" in record else []
    status = Markup('<span class="{}">{}</span>').format(record["status"], record["status"])
    files = {"record": folder / RECORD, "notebook": folder / NOTEBOOK_PAGE}
    links = [_link(name, path, page) for name, path in files.items() if path.is_file()]
    return Markup(" ").join([status, escape(", ".join(cost)), *links])


def _cells(metrics: dict[str, Any]) -> dict[str, str]:
    """A record's metrics as text. `NAME_low/REST`, `NAME_high/REST` and `NAME_n/REST` join the cell of `NAME/REST`, if
    that has a number."""
    cells = dict.fromkeys(metrics, "")
    for name, value in metrics.items():
        if isinstance(value, int | float) and abs(value) <= sys.float_info.max:
            whole = abs(value) < 1e9 and (float(value).is_integer() or abs(value) >= 1e3)
            cells[name] = f"{value:.0f}" if whole else f"{value:.3g}"
    for name in [name for name, text in cells.items() if text]:
        head, slash, rest = name.partition("/")
        low, high, n = (f"{head}_{part}{slash}{rest}" for part in ("low", "high", "n"))
        if cells.get(low) and cells.get(high):
            cells[name] += f" [{cells.pop(low)}, {cells.pop(high)}]"
        if cells.get(n):
            cells[name] += f" n = {cells.pop(n)}"
    return cells


def _how_made(runs: list[dict[str, dict[str, Any]]]) -> list[tuple[str, list[Any]]]:
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


def command(args: argparse.Namespace) -> int:
    """`prlhf report`."""
    print(f"report: {write_page(args.dirs, args.out)}")
    return 0
