"""Many stages: which of them are to run, sent to Snakemake, watched, and told with the cell that failed. Those
that are unchanged (`notebook.plan`) are not sent. Each call works in a new folder, so there is no lock to clear.

A job of Snakemake, here or on a cluster's node, is `python -m prlhf_kit.runs.engine PLAN STAGE ATTEMPT GPUS`.
"""

import contextlib
import datetime
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prlhf_kit.files import write_json
from prlhf_kit.runs.execute import end, killed_with_parent
from prlhf_kit.runs.notebook import copy_notebook, run_notebook
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.plans import DONE, Node, look, read_yaml
from prlhf_kit.runs.stage import read_record

HERE = Path(__file__).parent
WORK = ".engine"  # what Snakemake and Slurm write
PATIENCE = 60  # seconds to stop: a notebook has twice 20


def check_profile(profile: str) -> dict[str, Any]:
    """The settings of a profile, with its `folder`. Raises `RunError` where there is none, or what it needs is not
    installed."""
    folder = HERE / "profiles" / profile if (HERE / "profiles" / profile).is_dir() else Path(profile)
    if not (folder / "config.yaml").is_file():
        raise RunError(f"--profile {profile}: expected local, slurm, or a folder with Snakemake's config.yaml.")
    settings = {"executor": "local"} | (read_yaml(folder / "config.yaml") or {})
    executor = settings["executor"]
    for module in ["snakemake"] + [f"snakemake_executor_plugin_{executor.replace('-', '_')}"] * (executor != "local"):
        if importlib.util.find_spec(module) is None:
            raise RunError(f"{module} is not installed, which sends the runs: pip install 'prlhf_kit[scale]'.")
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise RunError("there is no sbatch on this machine's PATH: use the cluster's login node, or --profile local.")
    return settings | {"folder": folder.resolve()}


def gpus() -> list[str]:
    """GPUs that jobs may be given: those of CUDA_VISIBLE_DEVICES where it is set, else all that nvidia-smi names."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        visible = ",".join(subprocess.run(command, capture_output=True, text=True, check=False).stdout.split())
    return [name for each in (visible or "").split(",") if (name := each.strip()) and name != "-1"]


def execute(
    nodes: Sequence[Node], folder: Path, profile: str, workers: int | None = None, copy_to: str | None = None
) -> None:
    """Run those of `nodes`, which are in order, that are not done, and fill in what became of each; one that fails
    stops only what needs it. `workers` stages run at once on this machine, as many as GPUs or 1 where that is None.
    Raises `RunError` where another process works in `folder`."""
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            todo = look(nodes)
            for node in nodes:
                if node.status == "unchanged":
                    _copy(node, copy_to)
            if todo:
                _run(todo, work, profile, workers, copy_to)
    except Timeout:
        raise RunError(f"another prlhf works in {folder}. Wait for it, or choose another name with --run.") from None


def _run(todo: Sequence[Node], work: Path, profile: str, workers: int | None, copy_to: str | None) -> None:
    settings = check_profile(profile)
    for old in work.glob("run-*"):
        shutil.rmtree(old, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix="run-", dir=work))
    here = settings["executor"] == "local"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = gpus() if here else []
    workers = workers or max(1, len(devices))
    threads = max(1, cores // workers) if here else 1
    devices = devices if workers > 1 else []  # a single worker has the whole machine
    names = {node.name: node.job for node in todo}
    jobs = {
        node.job: {
            "notebook": str(node.notebook.resolve()),
            "run_dir": str(node.run_dir),
            "parameters": node.parameters,
            "after": [names[name] for name in node.after if name in names],
            "log": str(node.log),
        }
        for node in todo
    }
    own_threads = os.environ.get("OMP_NUM_THREADS")
    write_json(place / "plan.json", {"nodes": jobs, "threads": threads, "own_threads": own_threads, "gpus": devices})
    command = [sys.executable, "-P", "-m", "snakemake", "--nolock", "--nocolor", "--config", "plan=plan.json"]
    command += ["--snakefile", str(HERE / "Snakefile"), "--directory", str(place), "--profile", str(settings["folder"])]
    command += ["--cores", str(workers * threads)] if here else []
    command += ["--resources", f"gpu={len(devices)}"] if devices else []
    before, logged = {}, {}
    for node in todo:
        node.run_dir.mkdir(parents=True, exist_ok=True)
        before[node.name] = read_record(node.stage_dir)
        logged[node.name] = node.log.stat().st_size if node.log.exists() else -1
    log = place / "snakemake.log"

    def tell(node: Node, reason: str | None = None) -> None:
        """What became of a node: its record says, else the engine, else its log."""
        record = read_record(node.stage_dir) or {}
        new = bool(record) and record != before[node.name]
        if (place / f"{node.job}.done").exists():
            node.end("completed" if new else "unchanged", record)
            _copy(node, copy_to)
        elif new:
            node.end(record["status"], record, reason or (_last(node.log) if record["status"] == "died" else None))
        elif reason or (node.log.exists() and node.log.stat().st_size > logged[node.name]):
            node.status, node.message = "failed", reason or _last(node.log)
        took = f" ({node.seconds:.0f} s)" if node.status == "completed" and node.seconds is not None else ""
        where = f", cell {node.cell}" if node.cell is not None else ""
        message = f": {node.message}" if node.message else ""
        print(f"{node.run} {node.stage} {node.status}{took}{where}{message}", flush=True)
        for note in record.get("notes", []) if node.status in DONE else []:
            print(f"  {note}", flush=True)

    with log.open("w") as sink:
        child = subprocess.Popen(
            command,
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            preexec_fn=killed_with_parent,
        )
        waiting = {node.name: node for node in todo}
        try:
            while child.poll() is None:
                time.sleep(0.2)
                for node in [node for node in waiting.values() if (place / f"{node.job}.done").exists()]:
                    tell(waiting.pop(node.name))
        except BaseException:  # Ctrl-C: jobs end their notebooks, and Slurm's are cancelled
            end(child, PATIENCE)
            raise
        finally:
            blocks = re.findall(
                r"\n    message: (.*)\n(?:    .*\n)*?    output: (\S+)\.done", log.read_text(errors="replace")
            )
            reasons = {name: reason for reason, name in blocks if reason != "None"}
            for node in waiting.values():
                missing = [other.stage for other in todo if other.name in node.after and other.status not in DONE]
                if missing:
                    node.message = f"needs {', '.join(missing)}"
                else:
                    tell(node, reasons.get(node.job))
    if child.returncode and all(node.status == "not run" for node in todo):
        raise RunError(f"Snakemake could not begin: {_last(log)} See {log}.")


def _copy(node: Node, copy_to: str | None) -> None:
    if copy_to:
        copied, said = copy_notebook(node.stage_dir, copy_to)
        node.message = node.message if copied else f"not copied: {said}"


def _last(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("prlhf: ") if lines else "it said nothing"


def main(plan_file: str, name: str, attempt: str, gpus: str) -> int:
    """Run the stage `name` of a plan; the exit code is 0 if it completed.

    While another process runs it, perhaps one of an engine that was killed, it waits, and then finds it unchanged.
    """
    killed_with_parent(signal.SIGTERM)  # Snakemake
    plan = json.loads(Path(plan_file).read_text())
    node = plan["nodes"][name]
    run_dir, notebook = Path(node["run_dir"]), Path(node["notebook"])
    limit = Path(plan_file).with_name(f"{name.replace('/', '-')}.limit")  # there, where a time limit cut it short
    status = (read_record(run_dir / notebook.stem) or {}).get("status")
    if int(attempt) > 1 and status != "completed" and not limit.exists():
        return 1  # a cell raised, it was cancelled, or out of memory
    limit.unlink(missing_ok=True)
    end = math.inf  # when Slurm will end this job
    if job := os.environ.get("SLURM_JOB_ID"):
        with contextlib.suppress(OSError, ValueError):
            command = ["squeue", "--noheader", "--format=%e", f"--jobs={job}"]
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
            end = datetime.datetime.fromisoformat(said).timestamp()

    def stop(*_: object) -> None:
        if time.time() > end - 30:
            limit.touch()
        raise KeyboardInterrupt  # the record says so, and a retry resumes

    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, stop)
    if threads := plan["own_threads"] or os.environ.get("SLURM_CPUS_PER_TASK"):
        os.environ["OMP_NUM_THREADS"] = threads  # in place of Snakemake's
    try:
        with _devices(plan["gpus"], int(gpus)):
            record = run_notebook(notebook, run_dir, node["parameters"], wait=True)
        from prlhf_kit.runs.report import write_index

        write_index(run_dir)
    except RunError as error:
        print(f"prlhf: {error}", flush=True)
        return 2
    except KeyboardInterrupt:
        print("prlhf: interrupted; the same command resumes", flush=True)
        return 130
    return int(record["status"] != "completed")


@contextlib.contextmanager
def _devices(gpus: Sequence[str], count: int) -> Iterator[None]:
    """Hold `count` of this machine's `gpus` for this process alone; engines count GPUs, but hand out none."""
    while gpus and count:
        with contextlib.ExitStack() as held:
            mine: list[str] = []
            for gpu in gpus:
                lock = FileLock(Path(tempfile.gettempdir(), f"prlhf-gpu-{os.getuid()}-{gpu}.lock"), timeout=0)
                if len(mine) < count:
                    with contextlib.suppress(Timeout):
                        held.enter_context(lock)
                        mine.append(gpu)
            if len(mine) == min(count, len(gpus)):
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
                yield
                return
        time.sleep(1)
    yield


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
