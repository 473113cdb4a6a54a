"""The page that a run opens with: its headline table and figures, and links to every stage. Works from disk."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment

from prlhf_kit.record import inputs, read_record

PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }} - prlhf_kit</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; font-size: .9rem; } .scroll { overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
figure { margin: 1.5rem 0; } img { max-width: 100%; background: white; }
figcaption, .note { color: #555; font-size: .9rem; }
.failed, .interrupted { color: #b00020; font-weight: bold; }
pre { overflow-x: auto; background: #f5f5f5; padding: .7rem; }
</style></head><body>
<h1>{{ name }}</h1>
{% if doubtful %}<p class="failed">Not of one piece: {{ doubtful | join(", ") }} failed, or is older than what it was
made from. What stands below may come from an earlier attempt; run the notebooks again.</p>{% endif %}
{% macro show(tables) %}{% for table in tables %}
<h2>{{ table.caption }}</h2><div class="scroll">{{ table.html | safe }}</div>{% endfor %}{% endmacro %}
{{ show(headline) }}
{% for f in figures %}
<figure><img src="{{ f.path }}" alt="{{ f.caption }}"><figcaption>{{ f.caption }}</figcaption></figure>
{% endfor %}
{{ show(tables) }}
<h2>Stages</h2><div class="scroll"><table>
<tr><th>stage</th><th>status</th><th>time</th><th>peak memory</th><th></th></tr>
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


def records(run_dir: Path) -> list[dict[str, Any]]:
    """Records of all stages of a run, in the order of their names."""
    found = (read_record(path) for path in sorted(run_dir.iterdir()) if path.is_dir() and path.name[0] != ".")
    return [record for record in found if record]


def tables(run_dir: Path, kind: str) -> list[tuple[str, pd.DataFrame]]:
    """(caption, table) of each artefact of `kind` in a run, results before data."""
    return [
        (entry["caption"], pd.read_parquet(run_dir / record["stage"] / name))
        for record in reversed(records(run_dir))
        for name, entry in record["artifacts"].items()
        if entry["kind"] == kind
    ]


def to_html(table: pd.DataFrame) -> str:
    """The table as HTML, its texts escaped and their line breaks kept (pandas would print them as backslash-n)."""

    def text(value: Any) -> Any:
        return html.escape(value).replace("\n", "<br>") if isinstance(value, str) else value

    return table.round(3).map(text).rename(columns=text).to_html(index=False, border=0, na_rep="", escape=False)


def write_index(run_dir: str | Path) -> Path:
    """Write `<run_dir>/index.html` from the stages' records and return its path."""
    run_dir = Path(run_dir)
    stages = records(run_dir)
    figures = [
        {"path": f"{record['stage']}/{name}", "caption": entry["caption"]}
        for record in reversed(stages)  # results before data
        for name, entry in record["artifacts"].items()
        if entry["kind"] == "figure"
    ]
    provenance = {name: entry for record in stages for name, entry in record.get("provenance", {}).items()}

    def shown(kind: str) -> list[dict[str, str]]:
        return [{"caption": caption, "html": to_html(table)} for caption, table in tables(run_dir, kind)]

    doubtful = [
        record["stage"]
        for record in stages
        if record["status"] != "completed" or inputs(run_dir, record.get("inputs", {})) != record.get("inputs", {})
    ]
    page = PAGE.render(
        name=run_dir.name, stages=stages, figures=figures, headline=shown("headline"), tables=shown("shown"),
        provenance=provenance, doubtful=doubtful,
    )  # fmt: skip
    path = run_dir / "index.html"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page)
    temporary.replace(path)
    return path
