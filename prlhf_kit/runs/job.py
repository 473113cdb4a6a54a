"""One stage as an engine's job, here or on a cluster's node: `python -m prlhf_kit.runs.job PLAN STAGE ATTEMPT GPUS`."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from prlhf_kit.runs.execute import killed_with_parent
from prlhf_kit.runs.notebook import run_notebook
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.stage import read_record


def main(plan_file: str, name: str, attempt: str, gpus: str) -> int:
    """Run the stage `name` of a plan (`engine.py`); the exit code is 0 if it completed.

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
