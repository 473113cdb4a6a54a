"""Processes that run notebooks: started here a few at once, and stopped together.

Nothing heavy is imported at the top: `prlhf --help` reads this file.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL = 0.1  # seconds between looks at the children
PATIENCE = 60  # seconds for children to end: `prlhf run` gives a notebook 2 x 20 s and then writes its record


@dataclass(frozen=True)
class Job:
    """One process of a sweep or a pipeline."""

    name: str  # the run's name within the sweep
    run_dir: Path  # its folder
    command: list[str]  # the process to run
    log: Path  # where its output goes


def check_places(out: Path, copy_to: str | None) -> None:
    """Raises `RunError` where runs are to be kept in a store, or their notebooks copied to where they can't be."""
    from prlhf_kit.runs.parameters import RunError

    if ":/" in str(out):  # pathlib has made one slash of two
        raise RunError(
            f"--out {out} is an address, expected a local folder. `--copy-to URL` sends the executed notebooks to a "
            "store as well."
        )
    if copy_to:
        from prlhf_kit.runs.copies import check_store

        check_store(copy_to)


def command(
    notebooks: Sequence[Path], run_dir: Path, parameters: Mapping[str, str], copy_to: str | None = None
) -> list[str]:
    """The command that runs `notebooks` in turn in `run_dir`; unchanged stages are skipped, stopped ones resume."""
    # -P: else a file pandas.py, say, in the current folder would come before the package
    line = [sys.executable, "-P", "-m", "prlhf_kit.cli", "run", *(str(path.resolve()) for path in notebooks)]
    line += ["--out", str(run_dir.parent), "--run", run_dir.name]
    line += ["--copy-to", copy_to] if copy_to else []
    return line + [word for name, text in parameters.items() for word in ("-p", name, text)]


def gpus() -> list[str]:
    """GPUs that processes may be given: those of CUDA_VISIBLE_DEVICES where it is set, else all of the machine's."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for each in visible.split(",") if (name := each.strip()) and name != "-1"]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


class Workers:
    """At most so many processes at once. Leaving the `with` block ends those that still run.

    Of several workers each has one GPU (in turn where there are fewer GPUs), and its share of the cores as
    OMP_NUM_THREADS unless that is set: also where fewer jobs are left, since with two GPUs the same run would train
    with twice the batch size. A single worker has the whole machine.
    """

    def __init__(self, workers: int) -> None:
        self.running: dict[subprocess.Popen, tuple[Job, int]] = {}
        self.slots = list(range(workers))[::-1]
        self._not_started: deque[tuple[Job, str]] = deque()
        self._gpus = gpus() if workers > 1 else []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._threads = max(1, cores // workers) if workers > 1 else None

    def start(self, job: Job) -> None:
        """Start `job`. There must be a free slot. A job that can't be started is reported by `wait`."""
        env = dict(os.environ)
        if self._threads:
            env.setdefault("OMP_NUM_THREADS", str(self._threads))
        slot = self.slots.pop()
        if self._gpus:
            env["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        try:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with job.log.open("a") as log:  # appended: another sweep may be writing into it
                child = subprocess.Popen(
                    job.command,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=interrupted_with_parent,
                )
        except (OSError, ValueError) as error:  # ValueError: a parameter with a null character
            self.slots.append(slot)
            self._not_started.append((job, f"could not be started: {error}"))
        else:
            self.running[child] = job, slot

    def wait(self) -> tuple[Job, int | str]:
        """The next job that ends, and its exit code or what happened to it. At least one must have been started."""
        while True:
            if self._not_started:
                return self._not_started.popleft()
            for child, (job, slot) in self.running.items():
                if (code := child.poll()) is not None:
                    del self.running[child]
                    self.slots.append(slot)
                    return job, code if code >= 0 else _killed(-code)
            time.sleep(POLL)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to wait for."""
        return not self.running and not self._not_started

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.running:
            child.terminate()  # `prlhf run` ends its notebook and writes its record
        end = time.monotonic() + PATIENCE
        try:
            for child in self.running:
                child.wait(max(0.0, end - time.monotonic()))
        except (KeyboardInterrupt, subprocess.TimeoutExpired):  # Ctrl-C once more: now
            for child in self.running:
                child.kill()  # its notebook's process dies with it
                child.wait()


def _killed(number: int) -> str:
    names = {each.value: each.name for each in signal.Signals}  # most real-time signals have none
    return f"killed by signal {number}" + (f" ({names[number]})" if number in names else "")


def interrupted_with_parent() -> None:
    """In the child: hear SIGTERM when the parent is gone, however it ended, so that no orphan goes on (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def local(jobs: Sequence[Job], workers: int) -> Generator[tuple[Job, int | str], None, None]:
    """Run `jobs` on this machine, `workers` at once; each job as it ends, with its exit code or what happened to it."""
    waiting = deque(jobs)
    with Workers(workers) as pool:
        while waiting or not pool.idle:
            while waiting and pool.slots:
                pool.start(waiting.popleft())
            yield pool.wait()


def count(text: str) -> int:
    """A whole number from 1 up, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
