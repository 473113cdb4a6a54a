"""`prlhf sweep`, `pipeline`, `report`, `results` and `runs list`: many runs, and what there is of them. What takes long
to import is imported when a command is called: `prlhf --help` reads this file."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from prlhf_kit.files import write_text
from prlhf_kit.runs import engine, plans
from prlhf_kit.runs.notebook import check_store
from prlhf_kit.runs.parameters import RunError, defaults, find_notebook
from prlhf_kit.runs.records import RUNS, existing, place_of, row, runs_in
from prlhf_kit.runs.stage import RECORD, read_record

NOTEBOOK_HELP = "an .ipynb file, or the number or name of one in notebooks/ or of the kit; several run in turn"


def add_parsers(add: Callable[..., Any]) -> None:
    """Register the commands by `add` (`cli.Parser.commands`)."""
    p = add(
        "sweep",
        "runs.commands.sweep",
        "Run notebooks for every combination of parameters. Here or on a cluster, by Snakemake (pip install "
        "'prlhf_kit[scale]', docs/scale.md). A stage that is the same in several runs is run once. One that fails "
        "stops only what needs it; the same command resumes.",
        "prlhf sweep notebooks/03_pdpo_training.ipynb --from demo --grid beta=0.1,0.5 --seeds 3 --run beta\n"
        "prlhf sweep notebooks/01_data_preparation.ipynb notebooks/03_pdpo_training.ipynb \\\n"
        "    --grid user_model=individual,cluster --grid 'controls=[],[\"dpo\"]' --workers 2 --dry-run\n"
        "prlhf sweep notebooks/03_pdpo_training.ipynb --from demo --list runs.yaml --profile slurm\n"
        "runs.yaml is a list of parameters that are set together:\n"
        "- {user_model: individual, alpha: 1.0}\n"
        "- {user_model: cluster, alpha: 0.5}",
    )
    p.add_argument("notebooks", nargs="+", type=find_notebook, metavar="NOTEBOOK", help=NOTEBOOK_HELP)
    p.add_argument("--grid", action="append", default=[], metavar="NAME=VALUE,...", help="values of a parameter")
    p.add_argument("--seeds", type=count, metavar="N", help="each combination with seed 0 .. N-1")
    p.add_argument("--list", type=Path, metavar="FILE", help="YAML list of combinations, each with the whole grid")
    p.add_argument("--from", dest="source", metavar="RUN", help="finished run (name or folder) that they start from")
    _add_engine(p, "sweep")

    p = add(
        "pipeline",
        "runs.commands.pipeline",
        "Run the notebooks of a YAML file, each after what it needs. All go into one run's folder, by Snakemake, as "
        "`prlhf sweep` does. What is completed and unchanged is skipped.",
        "prlhf pipeline configs/study.yaml --run study\n"
        "prlhf pipeline configs/study.yaml --run seed1 -p seed 1 --workers 2\n"
        "the file, whose notebooks are looked for from its own folder:\n"
        "stages:\n"
        "  - notebook: ../notebooks/01_data_preparation.ipynb\n"
        "    parameters: {pairs_kept: {train: 80}}\n"
        "  - notebook: ../notebooks/03_pdpo_training.ipynb",
    )
    p.add_argument("file", type=Path, metavar="FILE", help="the YAML file")
    _add_engine(p, "")

    p = add(
        "report",
        "runs.commands.report",
        "Write one HTML page with all runs' numbers side by side. It opens from disk, with no server and no network.",
        "prlhf report papermill_runs\nprlhf report papermill_runs/seed0 papermill_runs/seed1 --out seeds.html",
    )
    p.add_argument("dirs", nargs="+", type=Path, metavar="RUN", help="a run, its name, or a folder of runs")
    p.add_argument("--out", type=Path, metavar="FILE", help="the page (default: leaderboard.html where the runs are)")

    p = add(
        "results",
        "runs.commands.results",
        "Write the tables of a page, docs/results.md, from the records of runs. Its prose, and the tables of runs that "
        "are not there, stay. A comment before each table says what it shows (docs/runs.md).",
        "prlhf results\nprlhf results study-0 study-1 --out notes.md",
    )
    _add_runs(p)
    p.add_argument(
        "--out", type=Path, default=Path("docs/results.md"), metavar="FILE", help="the page (default: %(default)s)"
    )

    runs = add("runs", "", "List runs by their records (docs/runs.md).", "prlhf runs list")
    p = runs.commands()(
        "list",
        "runs.commands.list_runs",
        "One row a run. What became of its stages, when it began, its time, commit (+: with uncommitted changes), "
        "model and data. died: it says running, but its process is gone.",
        "prlhf runs list\nprlhf runs list papermill_runs /other/runs",
    )
    _add_runs(p)


def _add_runs(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "dirs", nargs="*", type=Path, default=[RUNS], metavar="RUN", help=f"runs, or folders of runs (default: {RUNS})"
    )


def add_run(p: argparse.ArgumentParser, name: str) -> None:
    """What decides a run: parameters, and where it is kept. `name`: its default, "" for that of a file."""
    told, pair = name or "the file's name", ("NAME", "VALUE")
    p.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=pair, help="set a parameter")
    p.add_argument("--run", default=name, metavar="NAME", help=f"its name, or its folder (default: {told})")
    p.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help="where runs are kept (default: %(default)s)")
    p.add_argument("--copy-to", metavar="URL", help="notebooks go there too: s3://, gs://, abfs://, http(s)://")


def _add_engine(p: argparse.ArgumentParser, name: str) -> None:
    add_run(p, name)
    p.add_argument("--dry-run", action="store_true", help="show what would be run and stop")
    p.add_argument(
        "--profile", default="local", metavar="NAME", help="local, slurm, or a folder with Snakemake's config.yaml"
    )
    p.add_argument("--workers", type=count, metavar="N", help="stages at once, here (default: as many as GPUs, or 1)")


def count(text: str) -> int:
    """A whole number from 1 up."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def folder_of(run: str, args: argparse.Namespace) -> Path:
    """A run's folder. Raises `RunError` where it can't be there, or its notebooks not be copied to `--copy-to`."""
    if args.copy_to:
        check_store(args.copy_to)
    return place_of(run, args.out)


def tell_edits(notebooks: Iterable[Path], given: Iterable[str]) -> None:
    """Say which defaults differ from the committed notebooks': JupyterLab saves by itself what was tried there."""
    for notebook in notebooks:
        command = ["git", "show", f"HEAD:./{notebook.name}"]
        try:
            committed = subprocess.run(command, cwd=notebook.parent, capture_output=True, check=True).stdout
            now, then = defaults(notebook), defaults(notebook, committed)
        except (OSError, subprocess.CalledProcessError, RunError):  # no git, no checkout, or not committed
            continue
        names = [name for name in now if name in then and name not in given and now[name] != then[name]]
        if names:
            found = ", ".join(f"{name} {now[name]!r} (committed: {then[name]!r})" for name in names)
            said = f"{notebook.stem}: parameters differ from the committed notebook: {found}."
            print(f"{said} `git checkout {notebook}` restores it.", file=sys.stderr)


def sweep(args: argparse.Namespace) -> int:
    """`prlhf sweep`: 0 if all runs completed, 74 if `--copy-to` then lacks some of them, else 1."""
    import pandas as pd

    rows, same = plans.combinations(args.notebooks, args.grid, args.list, args.seeds, plans.once(args.parameter))
    folder = folder_of(args.run, args).resolve()
    if any(path.is_file() for path in folder.glob(f"*/{RECORD}")):
        raise RunError(f"{folder} is a run, not a sweep. Choose another name with --run.")
    source = existing(args.source, args.out).resolve() if args.source else None
    tell_edits(args.notebooks, {*same, *(name for row in rows for name in row)})
    runs, links = plans.plan_sweep(args.notebooks, rows, same, folder, source)
    nodes = list({node.name: node for made in runs.values() for node in made}.values())  # each after what it needs
    if args.dry_run:
        return _execute(nodes, folder, args)
    engine.check_profile(args.profile)
    for place, target in links.items():
        plans.link(place, target)
    try:
        return _execute(nodes, folder, args)
    finally:  # a row a run: parameters, status, where and how it failed, metrics of what completed
        lines: list[dict[str, Any]] = []
        for row, (name, made) in zip(rows, runs.items(), strict=True):
            stopped = next((node for node in made if node.status not in plans.DONE), None)
            line = {"run": name, **row, **same, "status": stopped.status if stopped else "completed"}
            line["seconds"] = sum(node.seconds or 0 for node in made)
            line |= {key: stopped and getattr(stopped, key) for key in ("stage", "cell", "message")}
            for node in made:
                record = read_record(node.stage_dir) if node.status in plans.DONE else None
                line |= {f"{node.stage}.{key}": value for key, value in (record or {"metrics": {}})["metrics"].items()}
            lines.append(line)
        pd.DataFrame(lines, dtype=object).to_csv(folder / "summary.csv", index=False)
        done = sum(line["status"] == "completed" for line in lines)
        runs_done = f"{done} of {len(runs)} run{'s' * (len(runs) != 1)} completed"
        print(f"{runs_done}; metrics: {folder}/summary.csv; a page: prlhf report {folder}")


def pipeline(args: argparse.Namespace) -> int:
    """`prlhf pipeline`: 0 if all its stages are completed, 74 if `--copy-to` then lacks some of them, else 1."""
    run_dir = folder_of(args.run or args.file.stem, args).resolve()
    nodes = plans.read_pipeline(args.file, run_dir, args.parameter)
    for node in nodes:
        tell_edits([node.notebook], node.parameters)
    if not args.dry_run:
        engine.check_profile(args.profile)
    return _execute(nodes, run_dir, args)


def _execute(nodes: Sequence[plans.Node], folder: Path, args: argparse.Namespace) -> int:
    """Run the nodes, and show what became of them; with --dry-run what is to be run."""
    if args.dry_run:
        plans.look(nodes)
        rows = []
        for node in nodes:
            parameters = ", ".join(f"{name} {value!r}" for name, value in node.parameters.items())
            rows.append([node.run, node.stage, node.status.replace("not run", "to run"), parameters])
        print(_in_columns(rows))
        return 0
    print(f"{len(nodes)} stages in {folder}", flush=True)
    try:
        engine.execute(nodes, folder, args.profile, args.workers, args.copy_to)
    finally:
        table = [[n.run, n.stage, n.status, n.seconds, n.cell, n.message] for n in nodes]
        print(f"\n{_in_columns([['run', 'stage', 'status', 'seconds', 'cell', 'message'], *table])}\n")
    if not all(node.status in plans.DONE for node in nodes):
        return 1
    return 74 if any(node.message for node in nodes) else 0  # what was not copied says so


def report(args: argparse.Namespace) -> int:
    """`prlhf report`."""
    from prlhf_kit.runs.report import write_page

    print(f"report: {write_page(args.dirs, args.out)}")
    return 0


def results(args: argparse.Namespace) -> int:
    """`prlhf results`."""
    from prlhf_kit.runs.results import FORM, fill

    if not args.out.is_file():
        raise RunError(f"{args.out} is not there. Expected a page with tables behind <!-- results: {FORM} -->.")
    text, kept = fill(args.out.read_text(encoding="utf-8"), runs_in(args.dirs))
    write_text(args.out, text)
    print("".join(f"no completed run {name}: its tables stay as they are\n" for name in dict.fromkeys(kept)), end="")
    print(f"results: {args.out}")
    return 0


def list_runs(args: argparse.Namespace) -> int:
    """`prlhf runs list`."""
    rows = [row(run) for run in runs_in(args.dirs)]
    print(_in_columns([["run", "stages", "started (UTC)", "time", "commit", "model", "data"], *rows]))
    return 0


def _in_columns(rows: Sequence[Sequence[Any]]) -> str:
    """Rows in columns; the last one is as wide as it likes."""
    texts = [["" if value is None else str(value) for value in row] for row in rows]
    widths = [*[max(map(len, column)) for column in zip(*texts, strict=True)][:-1], 0]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in texts)
