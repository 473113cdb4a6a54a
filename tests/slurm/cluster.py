"""A real Slurm cluster of one node on this machine, in a folder of its own, for as long as the `with` block lasts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import string
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tiny_notebooks import wait_for

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")


def missing() -> str:
    """Why there can be no cluster here; empty if there can."""
    absent = [tool for tool in TOOLS if shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin") is None]
    if absent:
        return f"no {', '.join(absent)} on this machine (Debian: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "Slurm's daemons are started as root here"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Path]:
    """Start munged, slurmctld and slurmd with all they write in `folder`; yields slurm.conf's path, for SLURM_CONF.
    `folder`/bin comes first on the PATH. Daemons' logs are `*.out`."""
    host = socket.gethostname().split(".")[0]
    control_port, node_port = _free_ports(2)
    template = string.Template(Path(__file__).with_name("slurm.conf").read_text())
    conf = folder / "slurm.conf"
    conf.write_text(template.substitute(host=host, folder=folder, control_port=control_port, node_port=node_port))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")  # Slurm's GPUs are any device files
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    munge = [f"--{name}={folder / file}" for name, file in {
        "key-file": key.name, "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log",
        "seed-file": "munge.seed",
    }.items()]  # fmt: skip
    (folder / "bin").mkdir()  # Snakemake's executor takes SLURM_CONF from srun; a real cluster's stands in /etc
    (folder / "bin" / "srun").write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun")} "$@"\n')
    (folder / "bin" / "srun").chmod(0o755)
    env = os.environ | {"SLURM_CONF": str(conf), "PATH": os.environ["PATH"] + ":/usr/sbin"}
    with contextlib.ExitStack() as stack:
        for command in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D", "-i"], ["slurmd", "-D"]):
            stack.enter_context(_daemon(command, env, folder / f"{command[0]}.out"))
            wait_for(lambda: command[0] != "munged" or (folder / "munge.socket").exists())  # noqa: B023
        wait_for(lambda: _answer(["sinfo", "--noheader", "--format=%T"], env) == {"idle"})
        stack.callback(_clear, env)
        yield conf


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def _daemon(command: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("w") as sink:
        child = subprocess.Popen(
            command, env=env, stdout=sink, stderr=sink, start_new_session=True,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGTERM),  # PR_SET_PDEATHSIG: no daemon stays behind
        )  # fmt: skip
    try:
        yield
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _answer(command: list[str], env: dict[str, str]) -> set[str]:
    return set(subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout.split())


def _clear(env: dict[str, str]) -> None:
    """End every job, so that no step outlives the daemons."""
    for sign in ((), ("--full", "--signal=KILL")):
        subprocess.run(["scancel", "--user=root", *sign], env=env, check=False, capture_output=True)
        end = time.monotonic() + 10
        while _answer(["squeue", "--noheader"], env) and time.monotonic() < end:
            time.sleep(0.2)
