"""What a Slurm job does on its node, and what Slurm says of jobs.

Imports little: it stays in memory for as long as the run lasts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from prlhf_kit.runs.jobs import interrupted_with_parent

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission


STOPPING = 45  # seconds that an interrupted `prlhf run` may take: it gives its notebook twice 20


@dataclass
class Work:
    """A command as a child process, its output in `log`. Submitit pickles it, and calls it on the node."""

    command: list[str]
    log: Path

    def __call__(self) -> int:
        """Exit code of the command; -N where signal N killed it."""
        signal.signal(signal.SIGTERM, self._terminated)  # submitit's handler does nothing
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as sink:  # appended: another sweep may be writing into it
            self._child = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, preexec_fn=_prepare
            )
        # not Popen.wait, whose lock a signal handler that waits for the same child could never get
        os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        code = self._child.wait()
        if code in (-signal.SIGTERM, 128 + signal.SIGINT):
            time.sleep(1)  # SIGTERM reaches the whole process tree, and us perhaps a moment later
        return code

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit before it requeues the job: the run is interrupted, so that its record says so."""
        from submitit.core.utils import DelayedSubmission

        self._interrupt()
        return DelayedSubmission(Work(self.command, self.log))

    def _interrupt(self) -> None:
        if (child := getattr(self, "_child", None)) is None:
            return
        sign, end = signal.SIGTERM, time.monotonic() + STOPPING
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it had ended before
            os.kill(child.pid, sign)
            while not os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                if time.monotonic() > end:
                    os.kill(child.pid, signal.SIGKILL)
                time.sleep(0.2)

    def _terminated(self, signum: int, frame: FrameType | None) -> None:
        """SIGTERM: Slurm has cancelled or requeued the job; or, while the job counts as running, is about to take its
        place for another one, and does not requeue by itself a job that ends before the grace time does."""
        from submitit.core.job_environment import JobEnvironment

        self._interrupt()
        job = JobEnvironment().job_id
        state = (queue([job]) or {}).get(job, ("unknown to Slurm",))[0]
        print(f"SIGTERM; the job is {state}", flush=True)
        if state == "RUNNING":
            signal.raise_signal(_limit_signal())  # submitit requeues it
        sys.exit(128 + signum)  # with no result file: this was not the command's end


def _prepare() -> None:
    """In the child. Slurm signals a job's whole process tree, but the signal ahead of the limit is for `Work` only: it
    would kill a child, and all that the child starts, which have never heard of it. What is ignored stays so there."""
    interrupted_with_parent()
    signal.signal(_limit_signal(), signal.SIG_IGN)


def _limit_signal() -> signal.Signals:
    from submitit.core.job_environment import JobEnvironment

    return signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]


def queue(jobs: Sequence[str]) -> dict[str, tuple[str, str, str]] | None:
    """State, wait status and reason of each job, such as "12_3", that is in the queue or left it minutes ago.

    None where Slurm does not answer: its controller may be restarted at any time, and keeps the jobs.
    """
    if not jobs:
        return {}
    command = [
        "squeue",
        "--array",
        "--noheader",
        "--states=all",
        f"--jobs={','.join(jobs)}",
        "--Format=JobArrayID:|,State:|,exit_code:|,Reason:|",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # a node without the tools
        return None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    rows = (line.split("|") for line in answer.stdout.splitlines())
    return {name: (state, status, reason) for name, state, status, reason, _ in rows}


def accounted(name: str) -> tuple[str, str, str]:
    """As `queue`, of a job that Slurm has forgotten, from its accounting; empty texts where there is none."""
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=State,ExitCode", f"--jobs={name}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    if not answer:
        return "", "", ""
    state, code = answer[0].split("|")
    exit_code, sign = map(int, code.split(":"))
    return state.split()[0], str(exit_code << 8 | sign), ""  # "CANCELLED by 1000"
