"""What `prlhf run`, `prlhf figures` and `prlhf report` do; `cli.py` holds their options."""

from __future__ import annotations

import argparse
import sys

import pandas as pd

from prlhf_kit import context_figures, evaluation_figures, leaderboard, report, reward_figures, runs, steering_figures
from prlhf_kit import figures as general_figures
from prlhf_kit.jobs import check_places
from prlhf_kit.record import RECORD, read_record

FIGURES = (
    general_figures.FIGURES
    | reward_figures.FIGURES
    | steering_figures.FIGURES
    | evaluation_figures.FIGURES
    | context_figures.FIGURES
)


def run(args: argparse.Namespace) -> int:
    """`prlhf run`: every notebook in turn, then the run's index page."""
    check_places(args.out, args.copy_to)
    run_dir = args.out / args.run
    given = dict(args.parameter or [])
    known = {notebook: runs.defaults(notebook) for notebook in args.notebooks}
    everything = {name: value for values in known.values() for name, value in values.items()}
    for name in given:
        if name not in everything or name == "run_dir":
            hint = " The run's folder is set with --run and --out." if name == "run_dir" else ""
            raise runs.RunError(
                str(runs.unknown_parameter(name, everything, " / ".join(map(str, args.notebooks)))) + hint
            )
    plans = {n: {k: v for k, v in given.items() if k in known[n]} for n in args.notebooks}
    for notebook, parameters in plans.items():  # all of them are checked before any of them runs
        runs.resolve(notebook, parameters)
    if args.copy_to:
        from prlhf_kit import copies
    whole = True
    for notebook, parameters in plans.items():
        print(f"{notebook.stem} ...", flush=True)
        record = runs.run_notebook(notebook, run_dir, parameters, args.force)
        if args.copy_to:  # of failed and of skipped stages too: the same command again copies what is missing
            try:
                print(f"{notebook.stem} copied to {copies.copy_notebook(run_dir / notebook.stem, args.copy_to)}")
            except copies.CopyError as refused:
                print(f"prlhf: {refused}", file=sys.stderr)
                whole = False
        if record["status"] != "completed":
            report.write_index(run_dir)
            error = record["error"] if args.debug else record["error"].splitlines()[0]
            where = run_dir / notebook.stem
            hint = "" if args.debug else " (--debug shows the traceback)"
            print(f"prlhf: {notebook.stem} failed: {error}; see {where / RECORD}{hint}", file=sys.stderr)
            return 1
        how = "unchanged, skipped" if record.get("skipped") else f"{record['seconds']:.0f} s"
        print(f"{notebook.stem} completed ({how})", flush=True)
    page = report.write_index(run_dir)
    for caption, table in report.tables(run_dir, "headline"):
        print(f"\n{caption}\n{table.to_string(index=False)}")
    print(f"\nreport: {page.resolve()}")
    if not whole:
        print(f"prlhf: {run_dir} is whole, but not all of it was copied; the same command copies it", file=sys.stderr)
        return 74
    return 0


def figures(args: argparse.Namespace) -> int:
    """`prlhf figures`: re-make a run's figures from its tables, without a model."""
    if not any(read_record(args.run_dir / stage) for stage in {stage for stage, _, _ in FIGURES.values()}):
        raise runs.RunError(f"{args.run_dir} holds no stage of a run. Give the folder of one, papermill_runs/demo say.")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, (stage, table, draw) in FIGURES.items():
        path = args.run_dir / stage / f"{table}.parquet"
        if not path.is_file():
            status = (read_record(args.run_dir / stage) or {}).get("status", "was not run")
            if status == "completed":
                status = f"made no table {table!r} from this data"
            print(f"{name}: left out, {stage} {status}")
            continue
        general_figures.save(draw(pd.read_parquet(path)), args.out / f"{name}.png")
        print(args.out / f"{name}.png")
    return 0


def compare(args: argparse.Namespace) -> int:
    """`prlhf report`: all runs' numbers side by side on one page."""
    print(f"report: {leaderboard.write_page(args.dirs, args.out)}")
    return 0
