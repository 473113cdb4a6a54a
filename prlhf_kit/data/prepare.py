"""Keep a checked dataset on disk: parquet, with a card that says where it came from and what was dropped."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from datasets import DatasetDict

from prlhf_kit.data.load import fingerprint, resolved
from prlhf_kit.data.registry import DATASETS, Card, Report
from prlhf_kit.data.schema import SchemaError
from prlhf_kit.files import git_state, now, only_on_hub, sha256, versions, write_json

CARD_FILE = "card.json"


def prepare(
    data: DatasetDict,
    report: Report,
    out: str | Path,
    name: str,
    path: str | Path | None,
    options: Mapping[str, Any],
    limits: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Path:
    """Write one parquet file a split, `README.md` (a data card that the hub can read too) and `card.json` into `out`.

    It is written beside `out` and moved there at the end: a reader sees all of it or nothing. `kit.data.load(out)` and
    `datasets.load_dataset(out)` read it.

    Args:
        data, report: what `load_with_report` returned.
        out: new folder; an existing one is refused unless `replace`, and one that was not prepared always.
        name, path, options, limits: what they were loaded from, for the card.
    """
    out = Path(out)
    require_free(out, path, replace)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        for split, dataset in data.items():
            dataset.to_parquet(staging / f"{split}.parquet")
        card = {
            "dataset": name,
            "path": None if path is None else str(path),
            "source_sha256": None if path is None or only_on_hub(path) else sha256(Path(path)),
            "options": resolved(name, options),
            "limits": dict(limits or {}),
            "fingerprint": fingerprint(data),
            "splits": {split: {"pairs": len(rows), "users": len(set(rows["user_id"]))} for split, rows in data.items()},
            "kept": report.summary,
            "counts": dict(report.counts),
            "drops": report.table.to_dict("records"),
            "checks": report.checks.to_dict("records"),
            "versions": versions(),
            "git": git_state(),
            "prepared": now(),
        }
        write_json(staging / CARD_FILE, card)
        (staging / "README.md").write_text(_page(card, DATASETS.get(name)))
        staging.chmod(0o755)  # mkdtemp's folders are for their owner only
        if out.exists():
            shutil.rmtree(out)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def require_free(out: Path, path: str | Path | None, replace: bool) -> None:
    """Refuse an output folder that exists (but for a prepared one that may be replaced) or that holds the source."""
    if path is not None:
        here, source = out.resolve(), Path(path).resolve()
        if here == source or here in source.parents or (source.is_dir() and source in here.parents):
            raise SchemaError(f"{out} and the source {path} lie in each other. Choose a folder elsewhere.")
    if out.exists() and not (replace and (out / CARD_FILE).is_file()):
        what = "is no prepared dataset and is not replaced" if replace else "exists already"
        raise SchemaError(f"{out} {what}. Choose another folder{'' if replace else ', or replace it with --force'}.")


def _page(card: Mapping[str, Any], known: Card | None) -> str:
    """`README.md`: where each split lies, as the hub reads it, and the card in words."""
    files = [{"split": split, "path": f"{split}.parquet"} for split in card["splits"]]
    front = {"configs": [{"config_name": "default", "data_files": files}]}
    shown = ("title", "source", "licence", "users", "quality")
    facts = {name: getattr(known, name) for name in shown} if known else {}
    facts |= {name: value for name, value in card.items() if name not in ("drops", "checks")}
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {card['dataset']}", ""]
    lines += [f"- **{name}**: {value}" for name, value in facts.items()]
    lines += ["", "What was dropped, by user, and the checks: `card.json`. Columns: `prlhf_kit/data/schema.py`.", ""]
    return "\n".join(lines)


def compare_counts(name: str, report: Report) -> pd.DataFrame:
    """What was counted beside the paper's own numbers: `count`, `paper`, `found` (null: not counted), `difference`."""
    rows = [(key, paper, report.counts.get(key)) for key, paper in DATASETS[name].counts.items()]
    table = pd.DataFrame(rows, columns=["count", "paper", "found"]).astype({"paper": "Int64", "found": "Int64"})
    return table.assign(difference=table.found - table.paper)


def cards_table() -> str:
    """All datasets as a markdown table, for the docs."""
    lines = ["| name | what | users | licence |", "|---|---|---|---|"]
    for name, c in DATASETS.items():
        lines.append(f"| `{name}` | {c.title} | {c.users} | {c.licence.split('. ')[0]} |")  # the card has all of it
    return "\n".join(lines)
