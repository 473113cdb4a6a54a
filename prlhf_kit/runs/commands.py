"""`prlhf runs list|show|diff|gc`: options, and how the findings are printed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

RUNS = Path("papermill_runs")
# written out, since the help is to come at once: tests compare it with run_records.STATUSES
STATUSES = ("completed", "failed", "interrupted", "running", "died", "unreadable")


def add_parser(commands: Any) -> None:
    """The sub-parsers of `prlhf runs`."""
    top = commands.add_parser(
        "runs",
        help="list, show, compare and clean up runs",
        description="Read the records of runs (docs/runs.md): list them, show one, compare two, free their space.",
        epilog="examples:\n  prlhf runs list\n  prlhf runs diff papermill_runs/seed0 papermill_runs/seed1",
    )
    actions = top.add_subparsers(metavar="COMMAND")

    p = actions.add_parser(
        "list",
        help="one row a run",
        description="One row a run: what became of its stages, when it began, its time, commit (+: with uncommitted "
        "changes), model and data. died: it says running, but its process is gone.",
        epilog="examples:\n  prlhf runs list\n  prlhf runs list papermill_runs /other/runs --status failed\n"
        "  prlhf runs list --json",
    )
    p.add_argument("dirs", nargs="*", type=Path, metavar="DIR", help=f"runs, or folders of runs (default: {RUNS})")
    p.add_argument("--status", choices=STATUSES, help="only runs with a stage of that status")
    p.add_argument("--json", action="store_true", help="as JSON")
    p.set_defaults(action=list_runs)

    p = actions.add_parser(
        "show",
        help="one run in full",
        description="Everything that a run's records hold: parameters, metrics, artefacts, versions, errors.",
        epilog="examples:\n  prlhf runs show papermill_runs/demo\n"
        "  prlhf runs show papermill_runs/demo/03_pdpo_training --json",
    )
    p.add_argument("run_dir", type=Path, metavar="DIR", help="the run's folder, or that of one of its stages")
    p.add_argument("--json", action="store_true", help="the records themselves, by stage")
    p.set_defaults(action=show)

    p = actions.add_parser(
        "diff",
        help="what differs between two runs",
        description="What differs between two runs, stage by stage: parameters, versions, git, machine, data and "
        "models, metrics (with their difference). Times and the place of the folders don't count.",
        epilog="examples:\n  prlhf runs diff papermill_runs/seed0 papermill_runs/seed1\n"
        "  prlhf runs diff papermill_runs/demo old/demo --json\n\nexit codes, as of diff: 0 the same, 1 different, "
        "2 they can't be compared",
    )
    p.add_argument("run_a", type=Path, metavar="DIR", help="a run's folder, or that of one of its stages")
    p.add_argument("run_b", type=Path, metavar="DIR", help="the other")
    p.add_argument("--json", action="store_true", help="as JSON")
    p.set_defaults(action=diff)

    p = actions.add_parser(
        "gc",
        help="free the space that nothing needs",
        description="Name what runs no longer need: checkpoints of completed stages, stages that a later one replaced "
        "(.previous), what killed processes left half-written, lock files. Deletes nothing without --delete; leaves "
        "every artefact, everything in use, and all that lies behind a link.",
        epilog="examples:\n  prlhf runs gc\n  prlhf runs gc papermill_runs/demo --older-than 7 --delete",
    )
    p.add_argument("folder", nargs="?", type=Path, default=RUNS, metavar="DIR", help=f"runs or a run (default: {RUNS})")
    p.add_argument(
        "--older-than",
        type=float,
        default=0,
        metavar="DAYS",
        help="only what did not change since; lock files at any age",
    )
    how = p.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="only name it (this is the default)")
    how.add_argument("--delete", action="store_true", help="delete it")
    p.set_defaults(action=gc)


def list_runs(args: argparse.Namespace) -> int:
    """`prlhf runs list`."""
    import pandas as pd

    from prlhf_kit.runs import records as run_records

    found = [run_records.summary(run) for run in run_records.runs_in(args.dirs or [RUNS])]
    found = [row for row in found if args.status in (None, *row["stages"].values())]
    if args.json:
        print(json.dumps(found, indent=1))
    elif not found:
        print("no runs" + (f" with a stage that is {args.status}" if args.status else ""))
    else:
        table = pd.DataFrame(
            {
                "run": row["run"],
                "stages": run_records.in_words(row["stages"]),
                "started (UTC)": (row["started"] or "")[:16].replace("T", " "),
                "time": _time(row["seconds"]),
                "commit": " ".join(row["commits"]),
                "model": " ".join(row["models"]),
                "data": " ".join(row["data"]),
            }
            for row in found
        )
        print(_columns([table.columns.tolist(), *table.to_numpy().tolist()]))
    return 0


def show(args: argparse.Namespace) -> int:
    """`prlhf runs show`. Exit code 2 where none of the records can be read."""
    from prlhf_kit.runs import records as run_records
    from prlhf_kit.runs.parameters import RunError

    records, errors = {}, {}
    for stage, folder in run_records.stages(args.run_dir).items():
        try:
            records[stage] = run_records.read(folder)
        except RunError as error:
            errors[stage] = str(error)
    if not records:
        raise RunError("; ".join(errors.values()))
    if args.json:
        print(json.dumps(records, indent=1))
    else:
        print("\n\n".join(_shown(record, run_records.seconds(record)) for record in records.values()))
    for message in errors.values():
        print(f"prlhf: {message}", file=sys.stderr)
    return 0


def _shown(record: dict[str, Any], seconds: float) -> str:
    commit = (record["git"]["commit"] or "none")[:7] + (" with uncommitted changes" if record["git"]["dirty"] else "")
    peak = record.get("peak_memory_bytes")
    head = [f"began {record['started'][:19].replace('T', ' ')} UTC", f"took {_time(seconds)}"] if seconds else []
    head += [f"{peak / 2**30:.1f} GiB"] if peak else []
    parts = {
        "parameters": [[name, json.dumps(value)] for name, value in record["parameters"].items()],
        "metrics": [[name, "none" if v is None else f"{v:g}"] for name, v in record["metrics"].items()],
        "artefacts": [[name, entry["kind"], entry["caption"]] for name, entry in record["artifacts"].items()],
        "data and models": [
            [name, " ".join(str(value) for value in entry.values() if value)]
            for name, entry in record.get("provenance", {}).items()
        ],
        "versions": [[", ".join(f"{name} {version}" for name, version in record["versions"].items())]],
    }
    lines = [f"{record['stage']}: " + ", ".join([record["status"], *head, f"commit {commit}"])]
    for title, rows in parts.items():
        if rows:
            lines += [f"  {title}", _columns(rows, indent=4)]
    if "error" in record:
        lines += ["  error", *("    " + line for line in record["error"].splitlines())]
    return "\n".join(lines)


def diff(args: argparse.Namespace) -> int:
    """`prlhf runs diff`: 0 the same, 1 different."""
    from prlhf_kit.runs import records as run_records

    rows = run_records.differences(args.run_a, args.run_b)
    if args.json:
        print(json.dumps(rows, indent=1))
    elif not rows:
        print("the same: " + ", ".join(run_records.stages(args.run_a)))
    for stage in dict.fromkeys(row["stage"] for row in rows if not args.json):
        print(stage)
        print(_columns([_difference(row) for row in rows if row["stage"] == stage], indent=2))
    return int(bool(rows))


def _difference(row: dict[str, Any]) -> list[str]:
    a, b = (json.dumps(row[side]) if side in row else "(absent)" for side in "ab")
    change = f"  ({row['difference']:+g})" if "difference" in row else ""
    return [row["section"], row["name"], f"{a} -> {b}{change}"]


def gc(args: argparse.Namespace) -> int:
    """`prlhf runs gc`. Exit code 74 where something could not be deleted."""
    from prlhf_kit.runs import cleaning

    freed = failed = locks = 0
    for one in cleaning.clean(args.folder, args.older_than, args.delete):
        if one.why == cleaning.FREE_LOCK:  # many, and empty
            locks += 1
            continue
        failed += one.failed
        freed += 0 if one.left or one.failed else one.size
        verb = "left" if one.left or one.failed else "deleted" if args.delete else "would delete"
        size = "" if one.left else f" ({_size(one.size)})"
        print(f"{verb} {one.path}{size}: {one.why}", file=sys.stderr if one.failed else sys.stdout)
    what = _size(freed) + (f" and {locks} lock files that nobody holds" if locks else "")
    print(f"{what}: freed" if args.delete else f"{what} can go; --delete does it")
    return 74 if failed else 0


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _columns(rows: list[list[str]], indent: int = 0) -> str:
    """Rows of texts in columns; the last one is as wide as it likes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(" " * indent + line.rstrip() for line in lines)
