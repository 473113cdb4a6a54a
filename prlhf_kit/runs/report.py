"""The page that a run opens with (what it is in four lines, then a section a stage), the page of each executed
notebook, and that of `prlhf report`: all runs' numbers side by side. They work from disk."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pyarrow import ArrowInvalid

from prlhf_kit.files import write_text
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.records import Number, existing, how_made, numbers, records_of, runs_in
from prlhf_kit.runs.stage import PAGE as NOTEBOOK_PAGE, RECORD, inputs
from prlhf_kit.runs.tables import to_html

LEADERBOARD = "leaderboard.html"
LINKED = {"record": RECORD, "notebook": NOTEBOOK_PAGE}  # of a stage, by the page of all runs
FOLDER = Path(__file__).parent / "pages"
PAGES = Environment(autoescape=True, loader=FileSystemLoader(FOLDER))
PROGRESS = "application/vnd.jupyter.widget-view+json"
EQUATION = re.compile(r"(`+).+?\1|\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)  # code, which has none, first


def with_mathml(markdown: str) -> str:
    """Markdown with its equations as MathML, which browsers show without a script."""

    def converted(found: re.Match[str]) -> str:
        code, block, inline = found.groups()
        return found[0] if code else convert(block or inline, display="block" if block else "inline")

    return EQUATION.sub(converted, markdown)


def _markdown(source: str) -> str:
    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(with_mathml(source))


def tables(stage_dir: Path, record: dict[str, Any], kind: str) -> list[tuple[str, pd.DataFrame]]:
    """(caption, table) of each artefact of `kind` that a stage left. A lost one says so in its caption."""
    found = []
    for name, entry in record["artifacts"].items():
        if entry["kind"] == kind:
            try:
                found.append((entry["caption"], pd.read_parquet(stage_dir / name, columns=entry.get("columns"))))
            except (OSError, ArrowInvalid):  # gone, or cut
                lost = f"{stage_dir.name}/{name} can't be read; run its notebook again"
                found.append((f"{entry['caption']}: {lost}", pd.DataFrame()))
    return found


def _result(headlines: Sequence[tuple[str, pd.DataFrame]]) -> str:
    """A stage's result: the first row of a headline table, if its interval is not from 0 to 1, which says nothing."""
    for caption, table in headlines:
        if table.empty:
            continue
        row = table.iloc[0]
        ends = [row.get(end, float("nan")) for end in ("low", "high")]
        if ends == [0, 1]:
            continue
        number = next((str(c) for c in table.select_dtypes("float").columns if pd.notna(row[c])), None)
        names = ", ".join(str(value) for value in row if isinstance(value, str))
        shown = f": {number} {Number(row[number], *ends).with_interval()}" if number else ""
        return f"{caption}: {names}{shown}"
    return ""


def _data(record: dict[str, Any]) -> str:
    """The dataset that a stage prepared, with its pairs by split."""
    pairs = {name[6:]: n for name, n in record["metrics"].items() if name.startswith("pairs/") and n is not None}
    dataset = Path(str(record["parameters"].get("dataset", ""))).name
    if not dataset or not pairs:
        return dataset
    return f"{dataset}: {', '.join(f'{n:.0f} {name}' for name, n in pairs.items())} pairs"


def write_index(run_dir: str | Path) -> Path:
    """Write `<run_dir>/index.html` from the stages' records and return its path."""
    run_dir = Path(run_dir)
    stages = [record | {"stage": stage} for stage, record in records_of(run_dir).items() if record]
    for record in stages:
        stage_dir = run_dir / record["stage"]
        headlines, shown = (tables(stage_dir, record, kind) for kind in ("headline", "shown"))
        record["result"] = _result(headlines)
        record["tables"] = [{"caption": caption, "html": to_html(table)} for caption, table in headlines + shown]
        record["page"] = (stage_dir / NOTEBOOK_PAGE).is_file()
        left = record["artifacts"].items()
        record["figures"] = [(f"{record['stage']}/{name}", e) for name, e in left if e["kind"] == "figure"]
    # of the last stage with a result the section is open, and of what comes after it
    at = max((i for i, record in enumerate(stages) if record["result"]), default=len(stages))
    metrics = [(record["stage"], *one) for record in reversed(stages) for one in record["metrics"].items()]
    first = "".join(f"{stage}: {name} {'-' if value is None else f'{value:.3f}'}" for stage, name, value in metrics[:1])
    page = PAGES.get_template("run.html.j2").render(
        name=run_dir.name,
        stages=stages,
        models=dict.fromkeys(str(r["parameters"]["model"]) for r in stages if "model" in r["parameters"]),
        data=dict.fromkeys(filter(None, map(_data, stages))),
        result=stages[at]["result"] if at < len(stages) else first,
        opened=at,
        doubtful=[
            record["stage"]
            for record in stages
            if record["status"] != "completed" or inputs(run_dir, record.get("inputs", {})) != record.get("inputs", {})
        ],
        dirty=[record["stage"] for record in stages if record["git"].get("dirty")],
        notes=[f"{record['stage']}: {note}" for record in stages for note in record.get("notes", [])],
        provenance={name: entry for record in stages for name, entry in record.get("provenance", {}).items()},
    )
    write_text(run_dir / "index.html", page)
    return run_dir / "index.html"


def notebook_page(notebook: nbformat.NotebookNode, title: str) -> str:
    """An executed notebook as HTML that needs no network. Progress bars and trainers' tables are taken out: they are
    for who waits."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if "outputs" in cell:
            shown = [output.get("data", {}) for output in cell.outputs]
            waits = [PROGRESS in data or "<progress" in data.get("text/html", "") for data in shown]
            cell.outputs = [output for output, wait in zip(cell.outputs, waits, strict=True) if not wait]
    exporter = HTMLExporter(
        raw_template=(FOLDER / "notebook.html.j2").read_text(), exclude_input_prompt=True, exclude_output_prompt=True
    )
    exporter.register_filter("markdown2html", _markdown)
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    return page


def write_page(dirs: Iterable[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of all runs in `dirs` (runs, by folder or name, and folders of runs) and return its path, which is
    `out`, or `leaderboard.html` in the first of `dirs`, or beside it where that is a run."""
    dirs = list(dirs)
    runs = [Path(os.path.abspath(run)) for run in runs_in(dirs)]  # not resolved: a link to a run keeps its own name
    first = Path(os.path.abspath(existing(dirs[0])))
    page = Path(os.path.abspath(out or (first.parent if first in runs else first) / LEADERBOARD))
    if page.is_dir():
        raise RunError(f"{page} is a folder; expected the path of the page. Give --out {page / LEADERBOARD}, say.")
    unreadable: dict[str, Any] = {"status": "unreadable", "parameters": {}, "metrics": {}, "git": {}}
    found = [{stage: record or unreadable for stage, record in records_of(run).items()} for run in runs]
    rows = how_made(found)
    for stage in sorted({stage for records in found for stage in records}):
        mine = [records.get(stage) for records in found]
        left = [{name: _href(run / stage / file, page) for name, file in LINKED.items()} for run in runs]
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
