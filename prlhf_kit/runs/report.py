"""The page that a run opens with (its headline table and figures, and links to every stage), and the page of each
executed notebook. They work from disk."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
from jinja2 import Environment
from nbconvert import HTMLExporter
from pyarrow import ArrowInvalid

from prlhf_kit.files import write_text
from prlhf_kit.runs.records import records_of
from prlhf_kit.runs.stage import inputs

STYLE = """:root { color-scheme: light dark; --page: #fff; --text: #1a1a1a; --faint: #555; --line: #ddd;
  --code: #f5f5f5; --link: #0b57a4; --bad: #b00020; }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --text: #e8e8e8; --faint: #b0b4ba; --line: #444;
  --code: #262d38; --link: #8ab8f0; --bad: #ff8a8a; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: var(--text);
  background: var(--page); overflow-wrap: break-word; }
a { color: var(--link); } h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; }
.scroll { overflow: auto; max-height: 85vh; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; overflow-wrap: normal; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { position: sticky; top: 0; background: var(--page); }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; background: white; }
figcaption, .note { color: var(--faint); font-size: .9rem; }
.failed, .interrupted, .died { color: var(--bad); font-weight: bold; }
pre { overflow-x: auto; background: var(--code); padding: .7rem; }
@media (max-width: 40rem) { img { max-width: none; } th, td { padding: .3rem .5rem; }
  table { width: max-content; } th, td { max-width: 16rem; } pre { max-width: 80vw; } }
"""

PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }} - prlhf_kit</title>
<style>
{{ style | safe }}</style></head><body>
<h1>{{ name }}</h1>
{% if doubtful %}<p class="failed">Not of one piece: {{ doubtful | join(", ") }} failed, or is older than what it was
made from. What stands below may come from an earlier attempt; run the notebooks again.</p>{% endif %}
{% macro show(tables) %}{% for table in tables %}
<h2>{{ table.caption }}</h2>
<div class="scroll" tabindex="0" role="region" aria-label="{{ table.caption }}">{{ table.html | safe }}</div>
{% endfor %}{% endmacro %}
{{ show(headline) }}
{% for path, f in figures %}
<figure><div class="scroll" tabindex="0" role="region" aria-label="{{ f.caption }}">
<img src="{{ path }}" alt="{{ f.caption }}"{{ " width=%d" % f.width if f.width is integer }}></div>
<figcaption>{{ f.caption }}</figcaption></figure>
{% endfor %}
{{ show(tables) }}
<h2>Stages</h2><div class="scroll" tabindex="0" role="region" aria-label="Stages"><table>
<tr><th>stage</th><th>status</th><th>time</th><th>peak memory</th><th>files</th></tr>
{% for s in stages %}<tr><td>{{ s.stage }}</td><td class="{{ s.status }}">{{ s.status }}</td>
<td>{{ "%.0f s" % s.seconds if s.seconds is defined else "" }}</td>
<td>{{ "%.1f GiB" % (s.peak_memory_bytes / 2**30) if s.peak_memory_bytes is defined else "" }}</td>
<td><a href="{{ s.stage }}/notebook.html">notebook</a> <a href="{{ s.stage }}/run.json">record</a></td></tr>
{% if s.error %}<tr><td colspan="5"><pre>{{ s.error }}</pre></td></tr>{% endif %}
{% endfor %}</table></div>
{% if stages %}<p class="note">
prlhf_kit {{ stages[-1].versions.prlhf_kit }}, commit {{ stages[-1].git.commit or "none" }}
{{ "(with uncommitted changes)" if stages[-1].git.dirty }}, torch {{ stages[-1].versions.torch }},
transformers {{ stages[-1].versions.transformers }}, trl {{ stages[-1].versions.trl }}.
{% for name, p in provenance.items() %}{{ name }}: {{ p.id if p.id else "" }} {{ p.fingerprint }}. {% endfor %}
</p>{% endif %}
</body></html>
""")

# nbconvert's page, with the figures' captions for who can't see them, and without scripts that it does not need
NOTEBOOK = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block notebook_css -%}{{ super() }}
<style>
.jp-RenderedImage, .highlight pre { overflow-x: auto; }
@media (max-width: 40rem) { .jp-RenderedImage > img { max-width: none !important; } }
</style>{%- endblock -%}
{%- block html_head_js_mathjax -%}{% if resources.equations %}{{ super() }}{% endif %}{%- endblock -%}
{%- block data_png scoped -%}
{%- set width = output | get_metadata('width', 'image/png') -%}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"
{%- if width %} width="{{ width }}"{% endif %}
 alt="{{ (output | get_metadata('alt', 'image/png') or '') | escape_html }}">
</div>
{%- endblock -%}
"""
PROGRESS = "application/vnd.jupyter.widget-view+json"


def artifacts(run_dir: Path, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """(path from the run's folder, entry) of each artefact of `kind` in a run, results before data."""
    records = {stage: record["artifacts"] for stage, record in records_of(run_dir).items() if record}
    named = [(f"{stage}/{name}", entry) for stage, left in reversed(records.items()) for name, entry in left.items()]
    return [(path, entry) for path, entry in named if entry["kind"] == kind]


def tables(run_dir: Path, kind: str) -> list[tuple[str, pd.DataFrame]]:
    """(caption, table) of each artefact of `kind` in a run. A lost one says so in its caption."""
    found = []
    for path, entry in artifacts(run_dir, kind):
        try:
            found.append((entry["caption"], pd.read_parquet(run_dir / path)))
        except (OSError, ArrowInvalid):  # gone, or cut
            found.append((f"{entry['caption']}: {path} can't be read; run its notebook again", pd.DataFrame()))
    return found


def to_html(table: pd.DataFrame) -> str:
    """The table as HTML, its texts escaped and their line breaks kept (pandas would print them as backslash-n)."""

    def text(value: Any) -> Any:
        plain = value is None or isinstance(value, (bool, int, float, np.generic)) or value is pd.NaT or value is pd.NA
        return value if plain else html.escape(str(value)).replace("\n", "<br>")

    return table.round(3).map(text).rename(columns=text).to_html(index=False, border=0, na_rep="-", escape=False)


def write_index(run_dir: str | Path) -> Path:
    """Write `<run_dir>/index.html` from the stages' records and return its path."""
    run_dir = Path(run_dir)
    stages = [record | {"stage": stage} for stage, record in records_of(run_dir).items() if record]
    provenance = {name: entry for record in stages for name, entry in record.get("provenance", {}).items()}

    def shown(kind: str) -> list[dict[str, str]]:
        return [{"caption": caption, "html": to_html(table)} for caption, table in tables(run_dir, kind)]

    doubtful = [
        record["stage"]
        for record in stages
        if record["status"] != "completed" or inputs(run_dir, record.get("inputs", {})) != record.get("inputs", {})
    ]
    page = PAGE.render(
        name=run_dir.name,
        stages=stages,
        figures=artifacts(run_dir, "figure"),
        headline=shown("headline"),
        tables=shown("shown"),
        provenance=provenance,
        doubtful=doubtful,
        style=STYLE,
    )
    write_text(run_dir / "index.html", page)
    return run_dir / "index.html"


def notebook_page(notebook: nbformat.NotebookNode, title: str) -> str:
    """An executed notebook as HTML. Its equations alone need the network (MathJax); without it they are TeX. Progress
    bars are taken out: they are for who waits, and would need a script from elsewhere."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if PROGRESS not in output.get("data", {})]
    equations = any("$" in cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    exporter = HTMLExporter(raw_template=NOTEBOOK, exclude_input_prompt=True, exclude_output_prompt=True)
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}, "equations": equations})
    return page
