"""Sweeps on a real Slurm cluster of one node (cluster.py), and what becomes of them when things go wrong."""

import csv
import os
import signal
import subprocess
import sys

import cluster
import pytest
import yaml
from tiny_notebooks import starts, wait_for, write_notebook

from prlhf_kit.runs import engine
from prlhf_kit.runs.stage import read_record

HOWS = {  # what becomes of the stage 03
    "fine": "completed",
    "bad": "failed",
    "endless": "interrupted",  # cancelled by hand
    "late": "completed",  # tried again after its time limit, in the folder that it had
}
BODY = """if how == "late" and (stage.dir / "log.txt").read_text().count("\\n") == 1 or how == "endless":
    time.sleep(600)
if how == "bad":
    1 / 0
(stage.dir / "gpu.txt").write_text(str(os.environ.get("CUDA_VISIBLE_DEVICES")))"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Asks the cluster something, by Slurm's own commands."""
    if reason := cluster.missing():
        pytest.skip(reason)
    with cluster.cluster(tmp_path_factory.mktemp("slurm")) as conf, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        patch.setenv("PATH", str(conf.parent / "bin"), prepend=os.pathsep)
        yield lambda *words: subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two notebooks, and the kit's profile for a small node."""
    folder = tmp_path_factory.mktemp("sweeps")
    write_notebook(folder, "01", parameters='run_dir = "x"\n', finish="stage.finish()")
    parameters = 'run_dir = "x"\nn = 0\nhow = "fine"\n'
    write_notebook(folder, "03", BODY, needs=["01"], parameters=parameters)
    settings = yaml.safe_load((engine.HERE / "profiles" / "slurm" / "config.yaml").read_text())
    settings["retries"] = 1  # the stage that a time limit cut short needs one
    settings["default-resources"] = ["gpu=1", "runtime=9", "mem_mb=2000", "cpus_per_task=1"]
    late = "1 if 'late' in wildcards.run and attempt == 1 else 9"  # minutes
    settings["set-resources"] = {"01": {"gpu": 0}, "03": {"runtime": late, "gpu": "int('fine' in wildcards.run)"}}
    settings["slurm-init-seconds-before-status-checks"] = 3
    (folder / "profile").mkdir()
    (folder / "profile" / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def start(slurm, folder):
    """`start(run, option, ...)` sweeps 01 and 03 into `folder`/run."""
    line = [sys.executable, "-m", "prlhf_kit.cli", "sweep", folder / "01.ipynb", folder / "03.ipynb", "--out", folder]
    started = []

    def start(run, *words):
        command = [*map(str, line), "--profile", str(folder / "profile"), "--run", run, *words]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture(scope="module")
def swept(start):
    """A sweep with one run for each of HOWS, at work while the other test goes on: a time limit is a minute."""
    return start("s", "--grid", f"how={','.join(HOWS)}")


def jobs(slurm, run, *options):
    """Numbers of a run's jobs that Slurm has."""
    lines = slurm("squeue", "--noheader", "--format=%i %k", *options).splitlines()
    return sorted(int(line.split()[0]) for line in lines if f"wildcards_{run}" in line)


def test_a_controller_that_is_killed_started_again_and_stopped(swept, start, slurm, folder):
    """Its job goes on; that of the second one waits for it, and nothing runs twice. Ctrl-C cancels."""
    stage = folder / "t" / "n~0" / "03"
    options = ("--grid", "n=0", "-p", "how", "endless")
    first = start("t", *options)
    wait_for(lambda: starts(stage), 240)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = start("t", *options)
    wait_for(lambda: len(jobs(slurm, "n~0", "--states=running")) == 2, 240)
    assert read_record(stage)["status"] == "running"
    assert starts(stage) == 1
    slurm("scancel", str(jobs(slurm, "n~0")[0]))
    wait_for(lambda: starts(stage) == 2, 120)
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=100)
    assert second.returncode == 130
    wait_for(lambda: not jobs(slurm, "n~0"))
    assert read_record(stage)["status"] == "interrupted"


def test_a_shared_stage_a_cell_that_fails_a_cancelled_job_and_a_time_limit(swept, start, slurm, folder):
    places = {how: folder / "s" / f"how~{how}" / "03" for how in HOWS}
    wait_for(lambda: starts(places["endless"]), 240)
    [job] = jobs(slurm, "how~endless")
    slurm("scancel", str(job))
    out, _ = swept.communicate(timeout=400)
    assert swept.returncode == 1, out
    with (folder / "s" / "summary.csv").open() as file:
        found = {row["how"]: row for row in csv.DictReader(file)}
    assert {how: row["status"] for how, row in found.items()} == HOWS
    assert "SLURM-job" in found["endless"]["message"]
    assert found["bad"]["message"] == "ZeroDivisionError: division by zero"
    assert found["bad"]["cell"]
    assert {how: starts(place) for how, place in places.items()} == {how: 1 + (how == "late") for how in HOWS}
    assert starts(folder / "s" / ".shared" / "all" / "01") == 1
    assert (places["fine"] / "gpu.txt").read_text() in ("0", "1")
