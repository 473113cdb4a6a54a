"""`prlhf sweep`: notebooks run for every combination of parameters, each run in a process and a folder of its own."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prlhf_kit.runs.jobs import Job, check_places, command, count, gpus, local
from prlhf_kit.runs.outcomes import before, exit_code, in_one_line, outcome, table

Outcomes = Generator[tuple[Job, int | str], None, None]
SWEEP = "sweep.json"
SUMMARY = "summary.csv"
UNKNOWN = ("not started", "busy elsewhere")  # statuses that don't replace what another sweep wrote of a run


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    p = commands.add_parser(
        "sweep",
        help="run notebooks for every combination of parameters",
        description="Run notebooks for every combination of parameters, here or on a Slurm cluster. Each run is a "
        "process with a folder of its own; one that fails stops no other. The same command skips what is completed "
        "and resumes what was stopped. Exit code 1: not all runs completed; 74: not all was copied.",
        epilog="examples:\n"
        "  prlhf sweep notebooks/03_pdpo_training.ipynb --from demo --grid beta=0.1,0.5 --seeds 3 --run beta\n"
        "  prlhf sweep notebooks/01_data_preparation.ipynb notebooks/03_pdpo_training.ipynb \\\n"
        "      --grid user_model=individual,cluster --grid 'controls=[],[\"dpo\"]' --workers 2 --dry-run\n"
        "  prlhf sweep notebooks/03_pdpo_training.ipynb --from demo --list runs.yaml --executor slurm --gpus 1\n"
        "runs.yaml is a list of parameters that are set together:\n"
        "  - {user_model: individual, alpha: 1.0}\n"
        "  - {user_model: cluster, alpha: 0.5}",
    )
    p.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK", help="an .ipynb file; several run in turn")
    p.add_argument("--grid", action="append", default=[], metavar="NAME=VALUE,...", help="values of a parameter")
    p.add_argument("--seeds", type=count, metavar="N", help="each combination with seed 0 .. N-1")
    p.add_argument("--list", type=Path, metavar="FILE", help="YAML list of combinations, each with the whole grid")
    p.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set it in all runs"
    )
    p.add_argument("--from", dest="source", metavar="RUN", help="finished run whose stages the notebooks need")
    p.add_argument("--run", default="sweep", metavar="NAME", help="name of the sweep's folder (default: sweep)")
    p.add_argument(
        "--out", type=Path, default=Path("papermill_runs"), metavar="DIR", help="where it goes (default: %(default)s)"
    )
    p.add_argument("--copy-to", metavar="URL", help="executed notebooks go there too, see `prlhf run`")
    p.add_argument("--dry-run", action="store_true", help="show the runs and stop")
    p.add_argument("--executor", choices=["local", "slurm"], default="local", help="where to run (default: local)")
    p.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="local: runs at once, one GPU each; 1: with all GPUs (default: as many as GPUs, or 1)",
    )
    from prlhf_kit.runs import slurm

    others = {action.dest for action in p._actions}
    slurm.add_options(p)
    defaults = {action.dest: action.default for action in p._actions if action.dest not in others}
    p.set_defaults(action=sweep, slurm_defaults=defaults)


def sweep(args: argparse.Namespace) -> int:
    """Run the sweep. Returns 0 if all runs completed, 74 if `--copy-to` then lacks some of them, else 1.

    Raises:
        RunError: a parameter, an option or a stage that a notebook needs is wrong or missing; nothing was started.
        KeyboardInterrupt: after the runs were stopped and the summary was written.
    """
    from tqdm import tqdm

    from prlhf_kit.runs import carry_over, grid
    from prlhf_kit.runs.parameters import RunError

    check_places(args.out, args.copy_to)
    rows = grid.read_list(args.list) if args.list else []
    runs = grid.combinations(args.notebooks, args.grid, rows, args.seeds, grid.once(args.parameter))
    stages = [path.stem for path in args.notebooks]
    folder = (args.out / args.run).resolve()
    source = carry_over.find(args.source, args.out, folder) if args.source else None
    needed = carry_over.needed(args.notebooks, source)
    if any((path / "run.json").is_file() for path in folder.glob("*")):
        raise RunError(f"{folder} is a run, not a sweep. Choose another name with --run.")
    execute = _executor(args, folder)
    places = [(run, folder / run.name) for run in runs]
    jobs = [
        Job(run.name, path, command(args.notebooks, path, run.arguments, args.copy_to), path / "log.txt")
        for run, path in places
    ]
    if args.dry_run:
        print(_plan(runs))
        return 0
    if source:
        carry_over.take(source, needed, folder, jobs, stages)

    result: dict[str, dict[str, Any]] = {}
    about = {run.name: {"parameters": run.parameters, "stages": stages} for run in runs}
    earlier = {job.name: before(job, stages) for job in jobs}
    print(f"{len(jobs)} runs in {folder}", flush=True)
    try:
        todo = jobs
        for last in (False, True):  # what another process was running is looked at once more, at the end
            busy = []
            with tqdm(total=len(todo), unit="run", disable=None) as bar, contextlib.closing(execute(todo)) as ended:
                for job, code in ended:
                    row = result[job.name] = outcome(job, code, earlier[job.name])
                    if row["status"] == "busy elsewhere" and not last:
                        busy.append(job)
                        earlier[job.name] = before(job, stages)
                    bar.update()
                    tqdm.write(in_one_line(job.name, row), file=sys.stdout)
                    sys.stdout.flush()
                    _save(folder, {name: about[name] | row for name, row in result.items()})
            if not (todo := busy):
                break
    finally:
        for job in jobs:
            result.setdefault(job.name, outcome(job, None, earlier[job.name]))
        result = {job.name: result[job.name] for job in jobs}
        _save(folder, {name: about[name] | row for name, row in result.items()}, last=True)
        print(f"\n{table(result, 'run')}\n")
    done = sum(row["status"] == "completed" for row in result.values())
    print(f"{done} of {len(jobs)} completed; metrics: {folder / SUMMARY}; all side by side: `prlhf report {folder}`")
    return exit_code(result.values())


def _plan(runs: Sequence[Any]) -> str:
    import pandas as pd

    shown = [{"run": run.name} | {name: str(value) for name, value in run.parameters.items()} for run in runs]
    return pd.DataFrame(shown).to_string(index=False, na_rep="")


def _executor(args: argparse.Namespace, folder: Path) -> Callable[[Sequence[Job]], Outcomes]:
    """`local` or Slurm's `submit`, as a function of the jobs, with its options checked."""
    from prlhf_kit.runs import slurm
    from prlhf_kit.runs.parameters import RunError

    if args.executor == "slurm":
        if args.workers:
            raise RunError("--workers is for --executor local; with slurm, --slots says how many runs go on at once.")
        options = {} if args.dry_run else slurm.options(args)  # which asks Slurm

        def submit(jobs: Sequence[Job]) -> Outcomes:
            yield from slurm.submit(jobs, options, folder / ".slurm")

        return submit
    if given := [name for name, value in args.slurm_defaults.items() if getattr(args, name) != value]:
        raise RunError(f"--{given[0].replace('_', '-')} is for Slurm; add --executor slurm, or leave it out.")
    workers = args.workers or max(1, len(gpus()))
    return lambda jobs: local(jobs, workers)


def _place(row: Mapping[str, Any]) -> int:
    """How many of a run's stages come before the one that did not complete."""
    return row["stages"].index(row["stage"]) if row["stage"] else 0


def _save(folder: Path, rows: Mapping[str, Mapping[str, Any]], last: bool = False) -> None:
    """Write `sweep.json`, and at the end the summary with all metrics, if the disk has room.

    Runs that another sweep put into this folder stay in both, and so does what it says of a run that it works on.
    """
    import pandas as pd
    from filelock import FileLock

    from prlhf_kit.files import now, write_json, write_text
    from prlhf_kit.runs.stage import read_record

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".sweep.lock"):
            try:
                before = json.loads((folder / SWEEP).read_text())["runs"]
            except (OSError, ValueError, KeyError):
                before = {}
            own = {name: row for name, row in rows.items() if row["status"] not in UNKNOWN or name not in before}
            every = {name: row for name, row in sorted((before | own).items()) if (folder / name).is_dir()}
            write_json(folder / SWEEP, {"schema": 1, "written": now(), "runs": every})
            if not last:
                return
            lines = []
            for name, row in every.items():
                # of a stage from which on it failed, an earlier attempt's numbers may be there
                done = row["stages"] if row["status"] == "completed" else row["stages"][: _place(row)]
                records = {stage: read_record(folder / name / stage) for stage in done}
                metrics = {f"{s}.{k}": v for s, r in records.items() if r for k, v in r["metrics"].items()}
                state = {key: row[key] for key in ("status", "seconds", "stage", "cell", "message")}
                lines.append({"run": name, **row["parameters"], **state, **metrics})
            write_text(folder / SUMMARY, pd.DataFrame(lines).to_csv(index=False))
    except OSError as error:
        if last:
            print(f"prlhf: the summary could not be written into {folder}: {error}", file=sys.stderr)
