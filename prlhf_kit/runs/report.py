"""The page that a run opens with (what it is in four lines, then a section a stage), and the page of each executed
notebook. They work from disk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from jinja2 import Environment
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pyarrow import ArrowInvalid

from prlhf_kit.files import write_text
from prlhf_kit.runs.records import records_of
from prlhf_kit.runs.stage import PAGE as NOTEBOOK_PAGE, inputs
from prlhf_kit.runs.tables import to_html

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
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; } dt { font-weight: bold; }
dd { margin: 0; overflow-wrap: anywhere; }
details { border-top: 1px solid var(--line); padding: .5rem 0; } summary { cursor: pointer; padding: .3rem 0; }
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
<dl>
<dt>What</dt><dd>{% for s in stages %}{{ ", " if not loop.first }}<a href="#{{ s.stage }}">{{ s.stage }}</a>
{%- endfor %}{% if models %}; model {{ models | join(", ") }}{% endif %}</dd>
<dt>On</dt><dd>{{ data | join(", ") or "no data recorded" }}</dd>
<dt>Result</dt><dd>{{ result or "no stage with results has completed" }}</dd>
<dt>Notes</dt><dd>
{% if doubtful %}<span class="failed">Not of one piece: {{ doubtful | join(", ") }} failed, or is older
than what it was made from. What stands below may come from an earlier attempt; run the notebooks again.</span>
{% endif %}{% if dirty %}Made with uncommitted changes: {{ dirty | join(", ") }}.
{% endif %}{% for note in notes %}{{ note }}.
{% endfor %}{% if not (doubtful or dirty or notes) %}none{% endif %}</dd></dl>
{% for s in stages %}<details{{ " open" if s.status != "completed" or loop.index0 >= opened or loop.length == 1 }}>
<summary><b>{{ s.stage }}</b> <span class="{{ s.status }}">{{ s.status }}</span>
{{- ", %.0f s" % s.seconds if s.seconds is defined }}
{{- ", %.1f GiB" % (s.peak_memory_bytes / 2**30) if s.peak_memory_bytes is defined }}</summary>
<p id="{{ s.stage }}">{% if s.page %}<a href="{{ s.stage }}/notebook.html">notebook</a>{% endif %}
<a href="{{ s.stage }}/run.json">record</a></p>
{% if s.error %}<pre>{{ s.error }}</pre>{% endif %}
{% for table in s.tables %}
<h2>{{ table.caption }}</h2>
<div class="scroll" tabindex="0" role="region" aria-label="{{ table.caption }}">{{ table.html | safe }}</div>
{% endfor %}
{% for path, f in s.figures %}
<figure><div class="scroll" tabindex="0" role="region" aria-label="{{ f.caption }}">
<img src="{{ path }}" alt="{{ f.caption }}"{{ " width=%d" % f.width if f.width is integer }}></div>
<figcaption>{{ f.caption }}</figcaption></figure>
{% endfor %}</details>
{% endfor %}
{% if stages %}<p class="note">
prlhf_kit {{ stages[-1].versions.prlhf_kit }}, commit {{ stages[-1].git.commit or "none" }}, torch
{{ stages[-1].versions.torch }}, transformers {{ stages[-1].versions.transformers }}, trl {{ stages[-1].versions.trl }}.
{% for name, p in provenance.items() %}{{ name }}: {{ p.id if p.id else "" }} {{ p.fingerprint }}. {% endfor %}
</p>{% endif %}
</body></html>
""")

# nbconvert's page with code folded, figures' captions, and without scripts that it does not need
NOTEBOOK = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block notebook_css -%}{{ super() }}
<style>
.jp-RenderedImage, .jp-RenderedHTML, .highlight pre { overflow: auto; max-height: 85vh; }
summary { cursor: pointer; color: #555; } figcaption { color: #555; padding: .3rem 0 1rem; }
@media (max-width: 40rem) { .jp-RenderedImage > img { max-width: none !important; } }
</style>{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block input -%}<details><summary>code</summary>{{ super() }}</details>{%- endblock -%}
{%- block data_png scoped -%}
{%- set width, alt = output | get_metadata('width', 'image/png'), output | get_metadata('alt', 'image/png') -%}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"
{%- if width %} width="{{ width }}"{% endif %}
 alt="{{ (alt or '') | escape_html }}">
{% if alt %}<figcaption>{{ alt | escape_html }}</figcaption>{% endif %}
</div>
{%- endblock -%}
"""
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
    """A stage in one number: the first row of a headline table, but for an interval from 0 to 1, which says nothing."""
    for caption, table in headlines:
        if table.empty:
            continue
        row = table.iloc[0]
        ends = [row.get(end, float("nan")) for end in ("low", "high")]
        if ends == [0, 1]:
            continue
        number = next((str(c) for c in table.select_dtypes("float").columns if pd.notna(row[c])), None)
        interval = f" [{ends[0]:.3f}, {ends[1]:.3f}]" if pd.notna(ends).all() else ""
        names = ", ".join(str(value) for value in row if isinstance(value, str))
        return f"{caption}: {names}" + (f": {number} {row[number]:.3f}{interval}" if number else "")
    return ""


def _data(record: dict[str, Any]) -> str:
    """The dataset that a stage prepared, with its pairs by split."""
    pairs = {name[6:]: n for name, n in record["metrics"].items() if name.startswith("pairs/") and n is not None}
    dataset = Path(str(record["parameters"].get("dataset", ""))).name
    return f"{dataset}: {', '.join(f'{n:.0f} {name}' for name, n in pairs.items())} pairs" if pairs else dataset


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
    page = PAGE.render(
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
        style=STYLE,
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
    exporter = HTMLExporter(raw_template=NOTEBOOK, exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_filter("markdown2html", _markdown)
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    return page
