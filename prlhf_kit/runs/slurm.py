"""Runs as jobs of a Slurm cluster, through submitit: one job array for a sweep, watched until its last run has ended.

Each job is a child process `prlhf run ...`, which skips completed stages and resumes training from its checkpoints. So
a job may begin as often as it likes: after its time limit it goes back into the queue by itself (submitit's doing, from
the signal that Slurm sends ahead of the limit), after a pre-emption and a node's failure too. Works with and without
Slurm's accounting (`sacct`). Nothing heavy is imported at the top: `prlhf --help` reads this file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prlhf_kit.runs.slurm_job import Work, accounted, queue

if TYPE_CHECKING:
    from submitit import SlurmJob

    from prlhf_kit.runs.jobs import Job


JOBS = "jobs.json"  # run folder -> its latest job
PATIENCE = 15  # seconds that a result file may take to be seen through a network file system
ENDED = {  # how a job may end without a word of its own; all other states but these, COMPLETED and FAILED go on
    "CANCELLED": "cancelled",
    "TIMEOUT": "time limit",
    "OUT_OF_MEMORY": "out of memory",
    "NODE_FAIL": "node failed",
    "BOOT_FAIL": "node failed",
    "PREEMPTED": "pre-empted",
    "DEADLINE": "deadline passed",
    "REVOKED": "revoked",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What each job of the array asks Slurm for."""
    group = parser.add_argument_group("Slurm", "what each run asks for, with --executor slurm")
    group.add_argument("--partition", metavar="NAME", help="see `sinfo` (default: the cluster's own)")
    group.add_argument("--time", type=int, default=240, metavar="MINUTES", help="limit of a job (default: %(default)s)")
    group.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs (default: %(default)s)")
    group.add_argument("--memory", metavar="SIZE", help="such as 16GB (default: the cluster's own)")
    group.add_argument("--cpus", type=int, default=1, metavar="N", help="processors (default: %(default)s)")
    group.add_argument("--slots", type=int, default=16, metavar="N", help="jobs at a time (default: %(default)s)")
    group.add_argument(
        "--max-requeues",
        type=int,
        default=3,
        metavar="N",
        help="how often a run that reached its time limit goes back into the queue to resume (default: %(default)s)",
    )


def options(args: argparse.Namespace) -> dict[str, Any]:
    """`submit`'s options from the command line.

    Raises:
        RunError: a value can't be, there is no Slurm here, or it has no such partition or a shorter limit there.
            Nothing was submitted.
    """
    from prlhf_kit.runs.parameters import RunError

    for name, least in {"time": 1, "gpus": 0, "cpus": 1, "slots": 1, "max_requeues": 0}.items():
        if (value := getattr(args, name)) < least:
            raise RunError(f"--{name.replace('_', '-')} is {value}, expected a whole number from {least} up.")
    if args.memory is not None and not re.fullmatch(r"[1-9]\d*[MGT]B?", args.memory):
        raise RunError(f"--memory is {args.memory!r}, expected a whole number and its unit, such as 16GB or 800MB.")
    absent = [tool for tool in ("sbatch", "srun", "squeue", "sinfo") if shutil.which(tool) is None]
    if absent:
        raise RunError(
            f"there is no {absent[0]} on this machine's PATH. Start the sweep on the cluster's login node, or use "
            "--executor local."
        )
    answer = subprocess.run(
        ["sinfo", "--all", "--noheader", "--format=%P|%l"], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise RunError(f"Slurm does not answer: {answer.stderr.strip()}. Try `sinfo`, or use --executor local.")
    limits = dict(line.split("|") for line in answer.stdout.split())  # the default partition's name ends with *
    chosen = args.partition.split(",") if args.partition else [name[:-1] for name in limits if name.endswith("*")]
    limits = {name.removesuffix("*"): limit for name, limit in limits.items()}
    for name in chosen:
        if name not in limits:
            raise RunError(f"Slurm has no partition {name!r}; it has: {', '.join(sorted(limits))}.")
    if chosen and all(_minutes(limits[name]) < args.time for name in chosen):  # Slurm would let it wait for ever
        longest = max(chosen, key=lambda name: _minutes(limits[name]))
        raise RunError(
            f"--time is {args.time} minutes, but partition {longest} allows {_minutes(limits[longest]):.0f}. Ask for "
            "less: a run that reaches its limit goes back into the queue and resumes, see --max-requeues."
        )
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise RunError("submitit is not installed, which talks to Slurm: pip install 'prlhf_kit[slurm]'.") from None
    return {
        "partition": args.partition,
        "time": args.time,
        "gpus": args.gpus,
        "memory": args.memory,
        "cpus": args.cpus,
        "slots": args.slots,
        "max_requeues": args.max_requeues,
    }


def _minutes(limit: str) -> float:
    """Minutes of Slurm's [days-]hours:minutes:seconds or minutes:seconds; infinite where it says something else."""
    if not (found := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)):
        return math.inf
    days, hours, minutes, seconds = (int(text or 0) for text in found.groups())
    return (days * 24 + hours) * 60 + minutes + seconds / 60


def submit(jobs: Sequence[Job], options: Mapping[str, Any], folder: Path) -> Iterator[tuple[Job, int | str]]:
    """Submit `jobs` as one array and yield each as it ends, with its exit code or what happened to it instead.

    A job that an earlier call submitted for the same run and command, and that is still in the queue, is not submitted
    again but watched. Ctrl-C leaves the jobs in the queue and says how to come back and how to cancel them.

    Args:
        options: as from `options`.
        folder: on a file system that the nodes see too; submitit's scripts, logs and results go into it.

    Yields:
        A job, and its exit code or text such as "cancelled", "time limit", "killed by signal 9", "node failed".

    Raises:
        RunError: Slurm refused the array.
    """
    waiting = _submit(jobs, options, folder)
    arrays = sorted({name.split("_")[0] for name in waiting}, key=int)
    start, told = time.monotonic(), ""
    gone: dict[str, float] = {}  # when a job was first seen to have left the queue with no result
    try:
        while waiting:
            states = queue(arrays)
            if states is not None:
                for name, (job, task) in list(waiting.items()):
                    outcome = _outcome(task, states.get(name), gone)
                    if outcome is not None:
                        del waiting[name]
                        yield job, outcome
            line = _line(arrays, waiting, states)
            if line != told:
                print(line, file=sys.stderr, flush=True)
            told = line
            if waiting:
                time.sleep(min(30.0, max(1.0, (time.monotonic() - start) / 20)))
    except (KeyboardInterrupt, GeneratorExit):
        if waiting:
            print(
                f"\n{len(waiting)} jobs stay in Slurm's queue. The same command watches them again; "
                f"`squeue --jobs={','.join(arrays)}` shows them, `scancel {' '.join(arrays)}` ends them.",
                file=sys.stderr,
            )
        raise


def _submit(jobs: Sequence[Job], options: Mapping[str, Any], folder: Path) -> dict[str, tuple[Job, SlurmJob]]:
    """Slurm's id of each job, such as 12_3 -> the job, and submitit's view of it."""
    from filelock import FileLock
    from submitit import SlurmExecutor, SlurmJob
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from prlhf_kit.files import write_json
    from prlhf_kit.runs.parameters import RunError

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".submit.lock"):  # of two sweeps at once, the second watches the first one's jobs
        known = json.loads((folder / JOBS).read_text()) if (folder / JOBS).exists() else {}
        states = queue(sorted({entry["id"].split("_")[0] for entry in known.values()}))
        if states is None:  # the runs of an earlier call may be in the queue
            raise RunError("Slurm does not answer, so nothing was submitted. Try again when `squeue` works.")
        waiting: dict[str, tuple[Job, SlurmJob]] = {}
        new = []
        for job in jobs:
            entry = known.get(str(job.run_dir), {"id": "", "command": []})
            if not _goes_on(states.get(entry["id"], ("",))[0]):
                new.append(job)
            elif entry["command"][1:] == job.command[1:]:  # whichever Python
                waiting[entry["id"]] = job, SlurmJob(entry["folder"], entry["id"])
            else:
                raise RunError(
                    f"{job.name} is in Slurm's queue as job {entry['id']} with other parameters. Wait for it, "
                    f"`scancel {entry['id']}`, or choose another name with --run."
                )
        if waiting:
            print(f"{len(waiting)} runs are in Slurm's queue already, and keep what they asked for", file=sys.stderr)
        if not new:
            return waiting
        place = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=folder)).resolve()
        executor = SlurmExecutor(place, max_num_timeout=options["max_requeues"])
        given = {"partition": options["partition"], "gpus_per_node": options["gpus"], "mem": options["memory"]}
        executor.update_parameters(
            job_name="prlhf",
            time=options["time"],
            cpus_per_task=options["cpus"],
            array_parallelism=options["slots"],
            signal_delay_s=min(90, 30 * options["time"]),  # Slurm may send it a minute earlier than that
            srun_args=[f"--cpus-per-task={options['cpus']}"],  # since 22.05, srun takes it over from sbatch no more
            additional_parameters={"requeue": True},
            **{name: value for name, value in given.items() if value},
        )
        try:
            submitted = executor.submit_array([Work(job.command, job.log) for job in new])
        except (FailedJobError, FailedSubmissionError) as error:
            raise RunError(f"Slurm refused the sweep: {str(error).strip()}. Change what it asks for.") from None
        for job, task in zip(new, submitted, strict=True):
            waiting[task.job_id] = job, SlurmJob(place, task.job_id)
            known[str(job.run_dir)] = {"id": task.job_id, "folder": str(place), "command": job.command}
        try:
            write_json(folder / JOBS, known)
        except OSError as error:
            ids = " ".join(sorted({name.split("_")[0] for name in waiting}))
            print(
                f"the jobs {ids} are in Slurm's queue, but that could not be noted ({error}): another call would "
                "submit them again. Cancel them before that.",
                file=sys.stderr,
            )
    return waiting


def _goes_on(state: str) -> bool:
    return state not in {*ENDED, "COMPLETED", "FAILED", ""}


def _outcome(task: SlurmJob, found: tuple[str, str, str] | None, gone: dict[str, float]) -> int | str | None:
    """How a job ended; None while it goes on, or while its result may be on its way."""
    result = _result(task)
    if result == 0:
        return 0
    state, status, _ = found or accounted(task.job_id)
    if _goes_on(state):
        return None
    if state in ENDED:
        return ENDED[state]
    code = os.waitstatus_to_exitcode(int(status or 0)) if result is None else result
    if isinstance(code, int) and (code < 0 or code > 128):  # as the kernel tells it, or as a shell does
        if "exceeded memory limit" in (task.stderr() or ""):  # of a cluster without cgroups
            return ENDED["OUT_OF_MEMORY"]
        return f"killed by signal {-code if code < 0 else code - 128}"
    if result is not None:
        return result
    if time.monotonic() - gone.setdefault(task.job_id, time.monotonic()) < PATIENCE:
        return None
    return f"ended without a result ({state.lower() or 'no longer known to Slurm'}), see {task.paths.stderr}"


def _result(task: SlurmJob) -> int | str | None:
    """What the job left: the command's exit code, or why it has none; None where it left nothing (yet)."""
    from submitit.core.utils import pickle_load

    with contextlib.suppress(OSError):
        os.listdir(task.paths.folder)  # makes a network file system look again
    if not task.paths.result_pickle.exists():
        return None
    kind, result = pickle_load(task.paths.result_pickle)
    if kind == "success":
        return result
    return ENDED["TIMEOUT"] if "timed-out too many times" in result else result.strip().splitlines()[-1]


def _line(arrays: Sequence[str], waiting: Iterable[str], states: Mapping[str, tuple[str, str, str]] | None) -> str:
    """Where the sweep stands, such as "Slurm job 12: 3 pending (Resources), 2 running"."""
    title = f"Slurm job {', '.join(arrays)}: "
    if states is None:
        return title + "Slurm does not answer; asking again"
    found = [states.get(name, ("ENDED", "", "")) for name in waiting]
    counts = Counter(state.lower() + f" ({reason})" * (state == "PENDING") for state, _, reason in found)
    return title + (", ".join(f"{n} {how}" for how, n in sorted(counts.items())) or "all ended")
