"""`prlhf report`: all runs' numbers side by side on one page, with links to every record. Works from disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prlhf_kit.files import write_text
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.records import existing, how_made, numbers, records_of, runs_in
from prlhf_kit.runs.report import PAGES
from prlhf_kit.runs.stage import PAGE as NOTEBOOK_PAGE, RECORD

NAME = "leaderboard.html"
FILES = {"record": RECORD, "notebook": NOTEBOOK_PAGE}  # of a stage, linked


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
    rows = how_made(found)
    for stage in sorted({stage for records in found for stage in records}):
        mine = [records.get(stage) for records in found]
        left = [{name: _href(run / stage / file, page) for name, file in FILES.items()} for run in runs]
        heads = [record and record | {"left": links} for record, links in zip(mine, left, strict=True)]
        cells = [{} if record is None else numbers(record["metrics"]) for record in mine]
        rows.append((stage, heads))
        rows += [
            (name, [each.get(name) or "" for each in cells]) for name in dict.fromkeys(n for c in cells for n in c)
        ]
    around = os.path.commonpath([run.parent for run in runs])
    links = [(os.path.relpath(run, around), _href(run / "index.html", page)) for run in runs]
    text = PAGES.get_template("runs.html.j2").render(heads=links, rows=rows)
    write_text(page, text.encode("utf-8", "replace").decode())  # a name of a folder need not be valid text
    return page


def _href(path: Path, page: Path) -> str | None:
    """The address of `path` in a link from `page`, None where there is no such file."""
    return quote(os.fsencode(os.path.relpath(path, page.parent))) if path.is_file() else None
