"""Sweeps on a real Slurm cluster of one node (cluster.py), and what becomes of them when things go wrong."""

import argparse
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cluster
import nbformat
import pytest

from prlhf_kit.runs import slurm
from prlhf_kit.runs.jobs import Job
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.stage import read_record

CELLS = [
    'run_dir = "x"\nn = 0\nhow = "fine"',
    """import os, time
from prlhf_kit.runs.stage import begin
stage = begin("nb", run_dir, globals())
began = stage.dir / "began"
with began.open("a") as f:
    f.write(f"{time.time()}\\n")
first = len(began.read_text().split()) == 1""",
    """if how == "slow" or (how == "slow at first" and first):
    time.sleep(600)
if how == "bad":
    1 / 0
if how == "big":
    big = bytearray(os.urandom(1)) * 3_000_000_000
if how == "fill":
    with (stage.dir / "filling").open("wb", buffering=0) as f:
        while True:
            f.write(bytes(4096))
time.sleep(2)
(stage.dir / "ended").write_text(f"{time.time()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")""",
    'stage.finish({"n": n})',
]


OPTIONS = {"partition": None, "time": 5, "gpus": 0, "memory": None, "cpus": 1, "slots": 2, "max_requeues": 3}


@pytest.fixture(scope="module")
def cluster_conf(tmp_path_factory):
    if reason := cluster.missing():
        pytest.skip(reason)
    with cluster.cluster(tmp_path_factory.mktemp("slurm")) as conf, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        yield conf


@pytest.fixture
def start(cluster_conf, tmp_path):
    """`start(name, option, ...)` starts `prlhf sweep` of the notebook above into tmp_path/name."""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nb.cells[0].metadata["tags"] = ["parameters"]
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, tmp_path / "nb.ipynb")
    started = []

    def start(name, *words, out=tmp_path):
        line = [sys.executable, "-m", "prlhf_kit.cli", "sweep", str(tmp_path / "nb.ipynb"), "--out", str(out)]
        line += ["--run", name, "--executor", "slurm", "--time", "5", *words]
        child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()
    slurm_says("scancel", "--user=root")
    wait_for(lambda: not slurm_says("squeue", "--noheader"))


def slurm_says(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def wait_for(condition, seconds=240):  # all else that the machine does slows the runs
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def ended(child, code, seconds=400):
    """What a sweep wrote to stdout and stderr, after it ended with this exit code."""
    out, err = child.communicate(timeout=seconds)
    assert child.returncode == code, out + err
    assert "Traceback" not in err
    return out, err


def rows(folder):
    """Runs of a sweep, by their parameters' values."""
    found = json.loads((folder / "sweep.json").read_text())["runs"].values()
    return {" ".join(str(v) for v in row["parameters"].values()): row for row in found}


def places(folder):
    """Stage folder and Slurm job of each run, in the order of submission, once they are submitted."""
    wait_for((folder / ".slurm" / "jobs.json").exists)
    jobs = json.loads((folder / ".slurm" / "jobs.json").read_text())
    return [(Path(run) / "nb", entry["id"]) for run, entry in jobs.items()]


def times_begun(stage):
    return len((stage / "began").read_text().split()) if (stage / "began").exists() else 0


def worker_of(job):
    """Process id of a job's worker, the one that submitit started on the node."""
    array, task = job.split("_")
    wanted = {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={task}".encode()}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            of_job = wanted <= set((process / "environ").read_bytes().split(b"\0"))
            if of_job and words[0].decode() == sys.executable and b"submitit.core._submit" in words:
                return int(process.name)
    raise AssertionError(f"job {job} has no worker")


def test_six_runs_over_two_slots(start, tmp_path):
    sweep = start("s", "--grid", "n=0,1,2,3,4,5", "--slots", "2", "--time", "7", "--gpus", "1", "--memory", "3GB",
                  "--cpus", "2", "--partition", "patient", "--max-requeues", "1")  # fmt: skip
    wait_for((tmp_path / "s" / ".slurm" / "jobs.json").exists)
    asked = slurm_says("scontrol", "--oneliner", "show", "job").splitlines()[-1]
    for what in ("TimeLimit=00:07:00", "mem=3G", "NumCPUs=2", "gres:gpu:1", "Partition=patient", "Requeue=1"):
        assert what in asked
    out, err = ended(sweep, 0)
    assert "6 of 6 completed" in out
    stages = [stage for stage, _ in places(tmp_path / "s")]
    assert len(stages) == 6
    assert {read_record(stage)["metrics"]["n"] for stage in stages} == set(range(6))
    texts = [(stage / "ended").read_text().split() for stage in stages]
    spans = [(float((stage / "began").read_text()), float(text[0])) for stage, text in zip(stages, texts, strict=True)]
    assert max(sum(a <= moment < b for a, b in spans) for moment, _ in spans) == 2
    assert max(map(int, re.findall(r"(\d+) running", err))) == 2  # as Slurm told it
    assert {gpu for _, gpu in texts} == {"0", "1"}  # each slot a GPU of its own


def test_what_ends_one_run_does_not_end_the_others_and_the_same_command_resumes(start, tmp_path):
    paused = [{"n": n, "how": "slow at first"} for n in (1, 2)]
    more = [{"n": 3, "how": how} for how in ("fine", "bad", "big")]
    (tmp_path / "list.yaml").write_text(json.dumps(paused + more))
    sweep = start("s", "--list", str(tmp_path / "list.yaml"), "--memory", "2GB")
    (cancelled, job), (killed, worker) = places(tmp_path / "s")[:2]
    wait_for(lambda: times_begun(cancelled) and times_begun(killed))
    slurm_says("scancel", job)
    os.kill(worker_of(worker), signal.SIGKILL)
    out, _ = ended(sweep, 1)
    assert "1 of 5 completed" in out
    found = rows(tmp_path / "s")
    assert found["1 slow at first"]["status"] == "interrupted"  # `prlhf run` had time to say so
    assert "cancelled" in found["1 slow at first"]["message"]
    assert found["2 slow at first"]["status"] in ("interrupted", "died")
    assert "killed by signal 9" in found["2 slow at first"]["message"]
    assert found["3 fine"]["status"] == "completed"
    assert (found["3 bad"]["status"], found["3 bad"]["message"]) == ("failed", "ZeroDivisionError: division by zero")
    assert "out of memory" in found["3 big"]["message"]

    (tmp_path / "list.yaml").write_text(json.dumps([*paused, more[0]]))
    assert "3 of 3 completed" in ended(start("s", "--list", str(tmp_path / "list.yaml"), "--memory", "2GB"), 0)[0]
    assert [times_begun(stage) for stage, _ in places(tmp_path / "s")[:3]] == [2, 2, 1]  # in the folders they had


def test_at_its_time_limit_a_run_is_requeued_and_resumes_or_is_reported(start, tmp_path):
    again = start("again", "--grid", "how=slow at first", "--time", "5", "--max-requeues", "1")
    never = start("never", "--grid", "how=slow", "--time", "5", "--max-requeues", "0")
    ((stage, job),), ((other, no_more),) = places(tmp_path / "again"), places(tmp_path / "never")
    wait_for(lambda: times_begun(stage) and times_begun(other))
    for limited in (job, no_more):  # a minute is Slurm's shortest limit; it looks twice a minute
        slurm_says("scontrol", "update", f"JobId={limited}", "TimeLimit=1")
    _, err = ended(again, 0)
    assert "pending (BeginTime)" in err
    assert times_begun(stage) == 2
    assert "interrupted; the same command resumes" in (stage.parent / "log.txt").read_text()
    ended(never, 1)
    (row,) = rows(tmp_path / "never").values()
    assert row["status"] == "interrupted"
    assert "time limit" in row["message"]


@pytest.fixture
def watch(cluster_conf, tmp_path):
    """`watch(script, ...)` submits shell scripts, each in a folder of its own; a future of how they ended."""
    with ThreadPoolExecutor() as pool:

        def watch(*scripts, **options):
            jobs = []
            for number, script in enumerate(scripts):
                folder = tmp_path / f"{options['partition']}-{number}"
                folder.mkdir()
                jobs.append(Job(folder.name, folder, ["sh", "-c", f"cd {folder}; {script}"], folder / "log.txt"))
            submitted = slurm.submit(jobs, OPTIONS | options, tmp_path / options["partition"])
            return jobs, pool.submit(lambda: {job.name: how for job, how in submitted})

        yield watch
        slurm_says("scancel", "--user=root")


SLOW_AT_FIRST = (
    "echo >> began; trap 'sleep 1; exit 130' TERM; [ $(wc -l < began) = 1 ] && { sleep 600 & wait; }; exit 0"
)


def test_preempted_runs_and_those_of_a_failed_node_are_requeued(watch):
    """Also where pre-emption has a grace time: Slurm alone would not start a job again that ends within it."""
    (plain, other), first = watch(SLOW_AT_FIRST, "exit 7", partition="main")
    (patient,), second = watch(SLOW_AT_FIRST, partition="patient")
    wait_for(lambda: (plain.run_dir / "began").exists() and (patient.run_dir / "began").exists())
    slurm_says("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert first.result(240) == {plain.name: 0, other.name: 7}
    assert second.result(240) == {patient.name: 0}

    (job,), outcome = watch(SLOW_AT_FIRST, partition="main,patient")
    wait_for((job.run_dir / "began").exists)
    node = slurm_says("sinfo", "--noheader", "--format=%n").split()[0]
    slurm_says("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    time.sleep(2)
    slurm_says("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert outcome.result(240) == {job.name: 0}
    for each in (plain, patient, job):
        assert len((each.run_dir / "began").read_text()) == 2


def test_a_step_that_is_killed_and_a_command_that_kills_itself_or_is_not_there(watch):
    jobs, outcome = watch("echo >> began; sleep 600", "kill -9 $$", "exec /nowhere", partition="main")
    wait_for((jobs[0].run_dir / "began").exists)
    task = json.loads((jobs[0].run_dir.parent / "main" / "jobs.json").read_text())[str(jobs[0].run_dir)]["id"]
    slurm_says("scancel", "--signal=KILL", "--full", task)
    cancelled = "cancelled"  # what Slurm calls it
    assert outcome.result(240) == {"main-0": cancelled, "main-1": "killed by signal 9", "main-2": 127}


def test_two_sweeps_at_once_into_one_folder_and_one_that_is_left_alone(start, tmp_path):
    left, other = start("s", "--grid", "n=0,1"), start("s", "--grid", "n=0,1")
    stages = [stage for stage, _ in places(tmp_path / "s")]
    wait_for(lambda: any(map(times_begun, stages)))
    left.send_signal(signal.SIGINT)
    _, err = ended(left, 130)
    assert "stay in Slurm's queue" in err
    back = start("s", "--grid", "n=0,1")
    for sweep in (other, back):
        assert "2 of 2 completed" in ended(sweep, 0)[0]
    assert list(map(times_begun, stages)) == [1, 1]  # no run was run twice


def test_full_disk(start, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small], check=True)
    try:
        words = ["--grid", "how=fine,fill,late", "--slots", "1"]
        out, _ = ended(start("s", *words, out=small), 1)
        fine, fill, _ = (stage for stage, _ in places(small / "s"))
        assert read_record(fine)["status"] == "completed"
        assert "1 of 3 completed" in out
        assert out.count("full") >= 2
        subprocess.run(["mount", "-o", "remount,size=60m", small], check=True)
        (fill / "filling").unlink()
        again = [word.replace("fill,", "") for word in words]
        assert "2 of 2 completed" in ended(start("s", *again, out=small), 0)[0]
        assert times_begun(fine) == 1  # what was finished is not run again
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"time": 0}, "--time is 0, expected a whole number from 1 up"),
        ({"gpus": -1}, "--gpus is -1"),
        ({"max_requeues": -1}, "--max-requeues is -1"),
        ({"memory": "16"}, "--memory is '16', expected a whole number and its unit, such as 16GB"),
        ({"memory": ""}, "--memory is ''"),
        ({}, "there is no sbatch on this machine's PATH.*--executor local"),
    ],
)
def test_options_are_refused_up_front(given, message, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match=message):
        slurm.options(argparse.Namespace(**OPTIONS | given))


def test_what_the_cluster_can_not_give_is_refused(start, cluster_conf, monkeypatch, tmp_path):
    with pytest.raises(RunError, match="no partition 'gpu'; it has: main, patient, urgent"):
        slurm.options(argparse.Namespace(**OPTIONS | {"partition": "gpu"}))
    with pytest.raises(RunError, match="--time is 61 minutes, but partition main allows 60"):
        slurm.options(argparse.Namespace(**OPTIONS | {"time": 61}))
    assert slurm.options(argparse.Namespace(**OPTIONS | {"time": 60, "partition": "main,patient"}))["time"] == 60
    _, err = ended(start("s", "--grid", "n=1,2", "--gpus", "3", "--time", "9"), 2)
    assert "Slurm refused the sweep" in err
    assert "Requested node configuration is not available" in err
    elsewhere = tmp_path / "elsewhere.conf"
    elsewhere.write_text(re.sub("SlurmctldPort=.*", "SlurmctldPort=1", cluster_conf.read_text()))
    monkeypatch.setenv("SLURM_CONF", str(elsewhere))
    with pytest.raises(RunError, match="Slurm does not answer"):
        slurm.options(argparse.Namespace(**OPTIONS))


def test_slurms_times():
    texts = {"1-12:00:00": 36 * 60, "2:30:00": 150, "30:00": 30, "0:30": 0.5, "infinite": math.inf}
    assert {text: slurm._minutes(text) for text in texts} == texts


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("CANCELLED by 1000|0:15", "cancelled"),
        ("TIMEOUT|0:0", "time limit"),
        ("OUT_OF_MEMORY|0:125", "out of memory"),
        ("NODE_FAIL|1:0", "node failed"),
        ("FAILED|137:0", "killed by signal 9"),
        ("FAILED|0:9", "killed by signal 9"),
        ("RUNNING|0:0", None),
    ],
)
def test_of_a_job_that_the_queue_has_forgotten_the_accounting_knows(line, expected, monkeypatch, tmp_path):
    """There is no accounting on the tests' cluster: `sacct` is played by its answer."""
    from submitit import SlurmJob

    sacct = tmp_path / "sacct"
    sacct.write_text(f"#!/bin/sh\necho '{line}'\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert slurm._outcome(SlurmJob(tmp_path, "12_3"), None, {}) == expected


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (None, "Slurm does not answer, so nothing was submitted"),
        (
            {"12_0": ("PENDING", "", "Resources")},
            "one is in Slurm's queue as job 12_0 with other parameters.*scancel 12_0",
        ),
    ],
)
def test_nothing_is_submitted_twice(states, message, monkeypatch, tmp_path):
    run = Job("one", tmp_path / "one", ["python", "-p", "n", "2"], tmp_path / "log.txt")
    earlier = {"id": "12_0", "folder": str(tmp_path), "command": ["python", "-p", "n", "1"]}
    (tmp_path / slurm.JOBS).write_text(json.dumps({str(run.run_dir): earlier}))
    monkeypatch.setattr(slurm, "queue", lambda jobs: states)
    with pytest.raises(RunError, match=message):
        next(slurm.submit([run], OPTIONS, tmp_path))
