"""The command line: a thin door to `runs`, `report`, `leaderboard`, `figures` and `data`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import pandas as pd

from prlhf_kit import evaluation_figures, leaderboard, report, reward_figures, runs, steering_figures
from prlhf_kit import figures as general_figures
from prlhf_kit.record import StageError, read_record

RUNS = Path("papermill_runs")
FIGURES = (
    general_figures.FIGURES | reward_figures.FIGURES | steering_figures.FIGURES | evaluation_figures.FIGURES
)  # fmt: skip
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def run(args: argparse.Namespace) -> int:
    """`prlhf run`: every notebook in turn, then the run's index page."""
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
    for notebook, parameters in plans.items():
        print(f"{notebook.stem} ...", flush=True)
        record = runs.run_notebook(notebook, run_dir, parameters, args.force)
        if record["status"] != "completed":
            report.write_index(run_dir)
            print(
                f"{notebook.stem} FAILED: {record['error']}\nrecord: {run_dir / notebook.stem / 'run.json'}",
                file=sys.stderr,
            )
            return EXIT_FAILED
        how = "unchanged, skipped" if record.get("skipped") else f"{record['seconds']:.0f} s"
        print(f"{notebook.stem} completed ({how})", flush=True)
    page = report.write_index(run_dir)
    for caption, table in report.tables(run_dir, "headline"):
        print(f"\n{caption}\n{table.to_string(index=False)}")
    print(f"\nreport: {page.resolve()}")
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


def data(args: argparse.Namespace) -> int:
    """`prlhf data list|prepare|check`."""
    from prlhf_kit.data import SchemaError, commands  # here, since datasets and transformers take seconds to import
    from prlhf_kit.models import ModelError

    try:
        return getattr(commands, args.command)(args)
    except (SchemaError, ModelError) as error:
        print(f"prlhf: {error}", file=sys.stderr)
        return EXIT_USAGE


class _Option(argparse.Action):
    """`-o NAME VALUE`, with the value read as a Python literal."""

    def __call__(self, _parser, namespace, values, option_string=None):
        given = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*given, (values[0], runs.typed(values[0], values[1], None))])


def parser() -> argparse.ArgumentParser:
    """All subcommands and their options."""
    top = argparse.ArgumentParser(prog="prlhf", description="Personalized RLHF in notebooks, run headlessly.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser(
        "run",
        help="execute notebooks through papermill",
        description="Execute notebooks one after the other; unchanged completed stages are skipped.",
        epilog="example: prlhf run notebooks/03_pdpo_training.ipynb --run mine -p alpha 0.7 -p seed 1",
    )
    p.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    p.add_argument("-p", "--parameter", nargs=2, action="append", metavar=("NAME", "VALUE"), help="set a parameter")
    p.add_argument("--run", default="run", metavar="NAME", help="name of the run's folder (default: run)")
    p.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help=f"where runs are kept (default: {RUNS})")
    p.add_argument("--force", action="store_true", help="run again, from the start, even if nothing changed")
    p.set_defaults(action=run)

    p = commands.add_parser(
        "figures",
        help="re-make a run's figures from its tables",
        epilog="example: prlhf figures papermill_runs/demo --out figures",
    )
    p.add_argument("run_dir", type=Path)
    p.add_argument("--out", type=Path, default=Path("figures"))
    p.set_defaults(action=figures)

    p = commands.add_parser(
        "report",
        help="one page with all runs' numbers side by side",
        description="Write one HTML page that compares runs. It opens from disk, with no server and no network.",
        epilog="example: prlhf report papermill_runs",
    )
    p.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="a run, or a folder of runs")
    p.add_argument(
        "--out", type=Path, metavar="FILE", help=f"the page (default: {leaderboard.NAME} where DIR's runs are)"
    )
    p.set_defaults(action=compare)
    _data_parser(commands.add_parser("data", help="list, check and prepare datasets"))
    return top


def _data_parser(top: argparse.ArgumentParser) -> None:
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    p = commands.add_parser("list", help="every dataset, where it comes from, its options")
    p.add_argument("--markdown", action="store_true", help="the table of the docs")
    p.set_defaults(action=data, command="list_datasets")
    for name, text in (
        ("prepare", "load, check and write a dataset as parquet, with a data card"),
        ("check", "load and check a dataset, and compare its counts with the papers'"),
    ):
        p = commands.add_parser(
            name,
            help=text,
            epilog=f"example: prlhf data {name} tldr --path summarize_from_feedback -o mode synthetic -o top 40"
            + (" --out data/tldr" if name == "prepare" else ""),
        )
        p.add_argument("name", help="one of `prlhf data list`")
        p.add_argument("--path", type=Path, help="local file or folder in the dataset's own schema (default: the hub)")
        p.add_argument("-o", "--option", nargs=2, action=_Option, metavar=("NAME", "VALUE"), help="of the dataset")
        p.add_argument("--rule", nargs=2, action="append", metavar=("CHECK", "RULE"), help="refuse, drop or shorten")
        p.add_argument("--model", default="smollm2-135m-instruct", help="whose tokenizer counts (default: %(default)s)")
        p.add_argument("--max-prompt-tokens", type=int, help="longest prompt")
        p.add_argument("--max-tokens", type=int, help="longest prompt and response together")
        p.add_argument("--min-pairs", type=int, default=1, help="training pairs that a user needs (default: 1)")
        if name == "prepare":
            p.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder")
            p.add_argument("--force", action="store_true", help="replace the folder")
        p.set_defaults(action=data, command=name)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `prlhf`. Exit codes: 0 done, 1 a notebook failed, 2 wrong usage, 130 interrupted."""
    args = parser().parse_args(argv)
    # a batch system's SIGTERM is treated like Ctrl-C, so that the record says what happened; and SIGINT is heard even
    # where a script started us with `&`, for which shells turn it off
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.default_int_handler)
    try:
        return args.action(args)
    except (runs.RunError, StageError) as error:
        print(f"prlhf: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("prlhf: interrupted; the same command resumes", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
