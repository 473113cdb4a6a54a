"""`prlhf pipeline`: notebooks with their parameters and what they need, from a short YAML file."""

from __future__ import annotations

import argparse
import dataclasses
import graphlib
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prlhf_kit.runs.jobs import Job, Workers, check_places, command, count
from prlhf_kit.runs.outcomes import Before, before, exit_code, in_one_line, outcome, table


@dataclass(frozen=True)
class Step:
    """A notebook, its parameters as `prlhf run -p` takes them, and the stages of the pipeline that it needs."""

    notebook: Path
    parameters: dict[str, str]
    needs: frozenset[str]
    only_here: frozenset[str]  # those that the notebook's own metadata does not name


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    p = commands.add_parser(
        "pipeline",
        help="run the notebooks of a YAML file, each after what it needs",
        description="Run the notebooks of a YAML file into one run's folder, each after those that it needs. What is "
        "completed and unchanged is skipped; one that fails stops only those that need it. Exit code 1: not all "
        "completed; 74: not all was copied.",
        epilog="examples:\n"
        "  prlhf pipeline configs/pipeline.yaml --run demo\n"
        "  prlhf pipeline configs/pipeline.yaml --run seed1 -p seed 1 --workers 2\n"
        "the file, whose notebooks are looked for from its own folder (what a notebook's metadata says that it needs,\n"
        "or uses where it is there, holds as well):\n"
        "  stages:\n"
        "    - notebook: ../notebooks/01_data_preparation.ipynb\n"
        "      parameters: {pairs_kept: {train: 80}}\n"
        "    - notebook: ../notebooks/03_pdpo_training.ipynb\n"
        "      needs: [01_data_preparation]",
    )
    p.add_argument("file", type=Path, metavar="FILE", help="the YAML file")
    p.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set it in all stages that have it, whatever the file says",
    )
    p.add_argument("--run", metavar="NAME", help="name of the run's folder (default: the file's)")
    p.add_argument(
        "--out",
        type=Path,
        default=Path("papermill_runs"),
        metavar="DIR",
        help="where runs are kept (default: %(default)s)",
    )
    p.add_argument("--copy-to", metavar="URL", help="executed notebooks go there too, see `prlhf run`")
    p.add_argument("--workers", type=count, default=1, metavar="N", help="stages at once (default: 1)")
    p.set_defaults(action=pipeline)


def read(file: Path, given: Sequence[tuple[str, str]] = ()) -> dict[str, Step]:
    """The stages of a pipeline by name, which is their notebook's stem, each after what it needs.

    Args:
        given: parameters for all stages that have them, in place of the file's.

    Raises:
        RunError: the file, a notebook, a parameter or a need is wrong, or stages need each other in a circle.
    """
    import yaml

    from prlhf_kit.runs import grid
    from prlhf_kit.runs.parameters import RunError, defaults, needs_of, uses_of

    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"the pipeline {file} can't be read: {error}") from error
    entries = content.get("stages") if isinstance(content, dict) and content.keys() == {"stages"} else None
    if not isinstance(entries, list) or not entries:
        raise RunError(f"{file} holds no list of stages. Expected:\nstages:\n- notebook: my.ipynb")
    stages: dict[str, Step] = {}
    known = {}
    names = {Path(str(entry["notebook"])).stem for entry in entries if isinstance(entry, dict) and "notebook" in entry}
    for number, entry in enumerate(entries, 1):
        wrong = f"stage {number} of {file}"
        if not isinstance(entry, dict) or "notebook" not in entry or entry.keys() - {"notebook", "parameters", "needs"}:
            raise RunError(f"{wrong} is {entry!r}, expected notebook, and perhaps parameters and needs.")
        parameters, needs = entry.get("parameters") or {}, entry.get("needs") or []
        if not isinstance(parameters, dict) or not isinstance(needs, list):
            raise RunError(f"{wrong}: expected parameters as a mapping and needs as a list, found {entry!r}.")
        notebook = file.parent / str(entry["notebook"])
        if notebook.stem in stages:
            raise RunError(f"{wrong}: a stage {notebook.stem} stands in it already, and a run has one folder for each.")
        known[notebook] = defaults(notebook)
        texts = {
            str(name): grid.checked(str(name), value, {notebook: known[notebook]})[1]
            for name, value in parameters.items()
        }
        own = frozenset(needs_of(notebook)) | (frozenset(uses_of(notebook)) & names)
        stages[notebook.stem] = Step(
            notebook, texts, own | frozenset(map(str, needs)), frozenset(map(str, needs)) - own
        )
    for name, value in grid.once(given).items():
        grid.checked(name, value, {path: values for path, values in known.items() if name in values} or known)
        for stage in stages.values():
            if name in known[stage.notebook]:
                stage.parameters[name] = grid.checked(name, value, {stage.notebook: known[stage.notebook]})[1]
    for name, stage in stages.items():
        if unknown := sorted(stage.needs - stages.keys()):
            raise RunError(
                f"{file}: {name} needs {unknown[0]!r}, which is no stage of it. It has: {', '.join(stages)}."
            )
    try:
        order = list(graphlib.TopologicalSorter({name: stage.needs for name, stage in stages.items()}).static_order())
    except graphlib.CycleError as error:
        raise RunError(f"{file}: stages need each other in a circle: {' <- '.join(error.args[1])}.") from None
    return {name: stages[name] for name in order}


def pipeline(args: argparse.Namespace) -> int:
    """Run the pipeline. Returns 0 if all its stages are completed, 74 if `--copy-to` then lacks some of them, else 1.

    Raises:
        RunError: the pipeline is wrong; nothing was started.
        KeyboardInterrupt: after the stages were stopped and the summary was shown.
    """
    from tqdm import tqdm

    from prlhf_kit.runs.report import write_index

    check_places(args.out, args.copy_to)
    stages = read(args.file, args.parameter)
    run_dir = (args.out / (args.run or args.file.stem)).resolve()
    jobs = {
        name: Job(
            name, run_dir, command([stage.notebook], run_dir, stage.parameters, args.copy_to), run_dir / f"{name}.log"
        )
        for name, stage in stages.items()
    }
    print(f"{len(jobs)} stages in {run_dir}", flush=True)
    rows: dict[str, dict[str, Any]] = {}
    earlier = {name: before(job, [name]) for name, job in jobs.items()}
    try:
        with tqdm(total=len(jobs), unit="stage", disable=None) as bar:
            for name, row in _run(stages, jobs, args.workers, earlier):
                rows[name] = row
                bar.update()
                tqdm.write(in_one_line(name, row), file=sys.stdout)
                sys.stdout.flush()
    finally:
        rows = {name: rows.get(name) or outcome(job, None, earlier[name]) for name, job in jobs.items()}
        print(f"\n{table(rows, 'stage')}\n")
        try:
            print(f"report: {write_index(run_dir)}")
        except OSError as error:
            print(f"prlhf: the report of {run_dir} could not be written: {error}", file=sys.stderr)
    return exit_code(rows.values())


def _run(
    stages: Mapping[str, Step], jobs: Mapping[str, Job], workers: int, earlier: Mapping[str, Before]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run each stage when those that it needs are done; each as it ends, or as it turns out that it can't be run."""
    from prlhf_kit.runs.stage import read_record

    sorter = graphlib.TopologicalSorter({name: stage.needs for name, stage in stages.items()})
    sorter.prepare()
    ready: deque[str] = deque()
    done: set[str] = set()
    with Workers(workers) as pool:
        while sorter.is_active():
            ready.extend(sorter.get_ready())
            while ready and pool.slots:
                name = ready.popleft()
                if missing := sorted(stages[name].needs - done):
                    nothing = dict.fromkeys(("seconds", "stage", "cell"))
                    yield name, {"status": "not run", **nothing, "message": f"needs {', '.join(missing)}"}
                    sorter.done(name)
                    continue
                force = ["--force"] if _older(jobs[name].run_dir, name, stages[name].only_here) else []
                pool.start(dataclasses.replace(jobs[name], command=jobs[name].command + force))
            if not pool.idle:
                job, code = pool.wait()
                row = outcome(job, code, earlier[job.name])
                if row["status"] == "completed":
                    done.add(job.name)
                    if read_record(job.run_dir / job.name) == earlier[job.name].records[job.name]:
                        row["status"] = "unchanged"
                yield job.name, row
                sorter.done(job.name)


def _older(run_dir: Path, name: str, needs: Iterable[str]) -> bool:
    """Whether a stage began before one of `needs` ended. Only for needs that the notebook's metadata does not name:
    of the others, `prlhf run` sees itself whether their artefacts changed."""
    from prlhf_kit.runs.stage import read_record

    began = (read_record(run_dir / name) or {}).get("started", "9")
    return any((read_record(run_dir / need) or {}).get("ended", "") > began for need in needs)
