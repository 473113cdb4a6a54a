"""Sweeps on a real Slurm cluster of one node (cluster.py), and what becomes of them when things go wrong."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import cluster
import pytest
import yaml
from tiny_notebooks import wait_for, write_notebook

from prlhf_kit.runs import engine
from prlhf_kit.runs.stage import read_record

SLOW = """mended = Path({!r}, "mended").exists()
if how == "slow" and len((stage.dir / "starts.txt").read_text()) == 1:
    time.sleep(600)
if how == "bad" and not mended:
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
        subprocess.run(["scancel", "--user=root"], check=False)


@pytest.fixture
def start(slurm, tmp_path):
    """`start(option, ...)` sweeps 01 and 03 into tmp_path/s, with the kit's profile on a small node."""
    first = write_notebook(tmp_path, "01", parameters='run_dir = "x"\n', finish="stage.finish()")
    second = write_notebook(
        tmp_path, "03", SLOW.format(str(tmp_path)), needs=["01"], parameters='run_dir = "x"\nn = 0\nhow = "fine"\n'
    )
    settings = yaml.safe_load((engine.HERE / "profiles" / "slurm" / "config.yaml").read_text())
    settings["default-resources"] = ["gpu=1", "runtime=2", "mem_mb=2000", "cpus_per_task=1"]
    settings["set-resources"] = {"01": {"gpu": 0}}
    settings["slurm-init-seconds-before-status-checks"] = 3
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").write_text(yaml.safe_dump(settings))
    line = [sys.executable, "-m", "prlhf_kit.cli", "sweep", first, second, "--out", tmp_path, "--run", "s"]
    line += ["--profile", tmp_path / "profile"]
    started = []

    def start(*words):
        started.append(subprocess.Popen([*map(str, line), *words], stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.communicate()
    slurm("scancel", "--user=root")
    wait_for(lambda: not slurm("squeue", "--noheader"))


def rows(folder):
    with (folder / "summary.csv").open() as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def starts(stage):
    return len((stage / "starts.txt").read_text()) if (stage / "starts.txt").exists() else 0


def test_a_shared_stage_a_cell_that_fails_a_cancelled_job_and_a_time_limit(start, slurm, tmp_path):
    child = start("--grid", "n=0,1", "--grid", "how=fine,bad,slow")
    folder = tmp_path / "s"
    names = {(n, how): f"n~{n}_how~{how}" for n in (0, 1) for how in ("fine", "bad", "slow")}
    places = {key: folder / name / "03" for key, name in names.items()}
    wait_for(lambda: starts(places[0, "slow"]) and starts(places[1, "slow"]), 240)
    jobs = slurm("squeue", "--noheader", "--format=%i %k").splitlines()
    (job,) = (line.split()[0] for line in jobs if f"wildcards_{names[0, 'slow']}" in line)
    slurm("scancel", job)
    out, _ = child.communicate(timeout=400)
    assert child.returncode == 1, out
    found = rows(folder)
    assert {name: row["status"] for name, row in found.items()} == {
        names[0, "fine"]: "completed",
        names[1, "fine"]: "completed",
        names[0, "bad"]: "failed",
        names[1, "bad"]: "failed",
        names[0, "slow"]: "interrupted",
        names[1, "slow"]: "completed",  # tried again after its time limit, in the folder that it had
    }
    assert "SLURM-job" in found[names[0, "slow"]]["message"]
    assert found[names[0, "bad"]]["message"] == "ZeroDivisionError: division by zero"
    assert found[names[0, "bad"]]["cell"]
    assert starts(folder / ".shared" / "all" / "01") == 1
    assert {key: starts(place) for key, place in places.items()} == {key: 1 + (key == (1, "slow")) for key in places}
    assert (places[0, "fine"] / "gpu.txt").read_text() in ("0", "1")

    (tmp_path / "mended").touch()
    child = start("--grid", "n=0,1", "--grid", "how=fine,bad,slow")
    out, _ = child.communicate(timeout=400)
    assert child.returncode == 0, out
    assert starts(folder / ".shared" / "all" / "01") == 1
    assert [starts(places[0, how]) for how in ("fine", "bad", "slow")] == [1, 2, 2]


def test_a_controller_that_is_killed_and_started_again(start, slurm, tmp_path):
    """Its jobs go on; those of the second one wait for them, and nothing runs twice."""
    stage = tmp_path / "s" / "n~0" / "03"
    first = start("--grid", "n=0", "-p", "how", "slow")
    wait_for(lambda: starts(stage), 240)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = start("--grid", "n=0", "-p", "how", "slow")
    wait_for(lambda: len(slurm("squeue", "--noheader", "--states=running").splitlines()) == 2, 240)
    assert read_record(stage)["status"] == "running"
    assert starts(stage) == 1
    first_job = min(map(int, slurm("squeue", "--noheader", "--states=running", "--format=%i").split()))
    slurm("scancel", str(first_job))
    out, _ = second.communicate(timeout=400)
    assert second.returncode == 0, out
    assert starts(stage) == 2
    assert Path(tmp_path / "s" / "summary.csv").is_file()


def test_ctrl_c_cancels_the_jobs(start, slurm, tmp_path):
    stage = tmp_path / "s" / "n~0" / "03"
    child = start("--grid", "n=0", "-p", "how", "slow")
    wait_for(lambda: starts(stage), 240)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=100)
    assert child.returncode == 130
    wait_for(lambda: not slurm("squeue", "--noheader"))
    assert read_record(stage)["status"] == "interrupted"
