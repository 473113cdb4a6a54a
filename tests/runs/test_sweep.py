"""Sweeps: which runs they make, what they refuse, and what is left when runs fail, are killed or meet each other."""

import json
import os
import shutil
import signal
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import yaml
from tiny_notebooks import wait_for, write_notebook

from prlhf_kit import cli
from prlhf_kit.files import write_json
from prlhf_kit.runs import carry_over, grid, jobs, outcomes, sweep
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.stage import begin, read_record


def command(*arguments):
    return [sys.executable, "-m", "prlhf_kit.cli", "sweep", *map(str, arguments)]


def test_every_combination_is_a_run_with_a_readable_name(tmp_path):
    notebook = write_notebook(tmp_path, "nb")
    runs = grid.combinations([notebook], ["rate=0.1,1", "names=[],['a','b']"], seeds=2, fixed={"user": "00123"})
    assert len(runs) == len({run.name for run in runs}) == 8
    assert runs[0].parameters == {"rate": 0.1, "names": [], "seed": 0, "user": "00123"}
    assert runs[0].arguments == {"user": "00123", "rate": "0.1", "names": "[]", "seed": "0"}
    assert runs[0].name.startswith("rate=0.1,names=")
    assert "user" not in runs[0].name  # which does not tell it apart
    assert runs[-1].parameters == {"rate": 1.0, "names": ["a", "b"], "seed": 1, "user": "00123"}
    plain = grid.combinations([notebook], ["rate=0.1,1e-5", "user=a,00123"], [{"n": 1}, {"n": 2, "seed": 7}])
    assert [run.name for run in plain][:2] == ["n=1,rate=0.1,user=a", "n=1,rate=0.1,user=00123"]
    assert plain[-1].name == "n=2,seed=7,rate=1e-05,user=00123"
    assert [run.name for run in grid.combinations([notebook], seeds=2)] == ["seed=0", "seed=1"]


def test_values_are_parted_at_commas_outside_brackets_and_quotes(tmp_path):
    def values(text):
        name = text.split("=")[0]
        return [run.parameters[name] for run in grid.combinations([write_notebook(tmp_path, "nb")], [text])]

    assert values("limit='a,b',c, 3,\"it's, so\"") == ["a,b", "c", 3, "it's, so"]
    assert values("limit=it's,so") == ["it's", "so"]
    assert values('user=a, b," c, d"') == ["a", "b", " c, d"]
    assert values("names=['a]',\"b,\"],[]") == [["a]", "b,"], []]


@pytest.mark.parametrize("texts", [["../../etc", "a/b", "a b"], ["x" * 300, "x" * 299 + "y"], ["é", "ü"], ["A", "a"]])
def test_names_are_files_names_and_differ(tmp_path, texts):
    runs = grid.combinations([write_notebook(tmp_path, "nb")], rows=[{"user": text} for text in texts])
    names = [run.name for run in runs]
    assert len({name.casefold() for name in names}) == len(texts)
    assert all(len(name) <= grid.LONGEST and "/" not in name and name.isascii() for name in names)
    again = grid.combinations([write_notebook(tmp_path, "nb")], rows=[{"user": text} for text in reversed(texts)])
    assert [run.name for run in again] == names[::-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--grid raet=1", "no parameter 'raet'. Did you mean 'rate'"),
        ("--grid n=1,2.5", "'n' is '2.5', expected int"),
        ("--grid names=1,2", "'names' is '1', expected list"),
        ("--grid rate=0.1,0.10", "stands twice"),
        ("--grid rate", "has no values"),
        ("--grid rate=1,", "'rate' is '', expected float"),
        ("--grid rate=1 --grid rate=2", "given twice"),
        ("--grid rate=1 -p rate 2", "set twice"),
        ("--grid seed=5 --seeds 2", "leave one out"),
        ("--list LIST --grid n=1", "'n' is set twice"),
        ("--list EMPTY", "expected a list of mappings"),
        ("--list nowhere.yaml", "can't be read"),
        ("--list DATES", "can't be datetime.date"),
        ("--grid run_dir=a,b", "set with --run and --out"),
        ("--grid user=-x", "can't begin with '-'"),
        ("--grid limit=1e999", "'limit' can't be inf"),
        ("--grid limit={1:2}", "'limit' can't be {1: 2}"),
        ("--seeds 1 --copy-to ftp://host/x", "papermill writes to no ftp:// store"),
        ("", "nothing to sweep over"),
        ("--grid n=1 -p user x -p user y", "'user' is given twice by -p"),
        ("--seeds 1 --partition gpu", "--partition is for Slurm"),
        ("--seeds 1 --executor slurm --workers 2", "--workers is for"),
        ("--seeds 1 --from nowhere", "no such folder"),
        ("--seeds 1 --from RUN", "no notebook needs a stage"),
        ("--seeds 1 --run a-run", "is a run, not a sweep"),
    ],
)
def test_refused_before_anything_starts(tmp_path, capsys, options, message):
    notebook = write_notebook(tmp_path, "nb")
    (tmp_path / "out" / "a-run" / "01").mkdir(parents=True)
    write_json(tmp_path / "out" / "a-run" / "01" / "run.json", {"status": "completed"})
    for name, text in {"LIST": "[{n: 1}]", "EMPTY": "[]", "DATES": "[{limit: 2020-01-01}]"}.items():
        (tmp_path / name).write_text(text)
        options = options.replace(name, str(tmp_path / name))
    options = options.replace("RUN", "a-run")
    assert cli.main(["sweep", str(notebook), "--out", str(tmp_path / "out"), *options.split()]) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["a-run"]


@pytest.mark.parametrize("which", [["run", "nb.ipynb"], ["sweep", "nb.ipynb", "--seeds", "1"], ["pipeline", "p.yaml"]])
def test_runs_are_kept_in_no_store(tmp_path, monkeypatch, capsys, which):
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path, "nb")
    (tmp_path / "p.yaml").write_text("stages: [{notebook: nb.ipynb}]")
    assert cli.main([*which, "--out", "s3://bucket/x"]) == 2
    assert "--out s3:/bucket/x is an address, expected a local folder" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["nb.ipynb", "p.yaml"]


def test_refused_for_what_the_notebooks_are(tmp_path):
    first, second = write_notebook(tmp_path, "first"), write_notebook(tmp_path, "second", needs=["first"])
    with pytest.raises(RunError, match=r"second.ipynb needs the stage first\. Put its notebook before"):
        carry_over.needed([second], None)
    with pytest.raises(RunError, match="stands after it"):
        carry_over.needed([second, first], None)
    with pytest.raises(RunError, match="same name"):
        carry_over.needed([first, first], None)
    assert carry_over.needed([first, second], None) == []
    text = write_notebook(tmp_path, "text", parameters='run_dir = ""\nn = "3"')
    with pytest.raises(RunError, match=r"'n' can't be 4 in text.ipynb|'n' is"):
        grid.combinations([first, text], ["n=4,5"])
    with pytest.raises(RunError, match=r"no parameter 'seed' in text\.ipynb"):
        grid.combinations([text], seeds=2)


def test_dry_run_shows_the_runs_and_starts_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm is needed to look at what it would run
    notebook = write_notebook(tmp_path, "nb")
    out, rows = ["--out", str(tmp_path / "out"), "--dry-run", "--executor", "slurm"], tmp_path / "rows.yaml"
    rows.write_text("- {user: x}\n- {n: 5}")
    assert cli.main(["sweep", str(notebook), "--grid", "rate=0.1,1e-5", "--seeds", "2", "--list", str(rows), *out]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == ["run", "user", "rate", "seed", "n"]
    assert shown[4] == ["user=x,rate=1e-05,seed=1", "x", "1e-05", "1"]
    assert len(shown) == 1 + 8
    assert not (tmp_path / "out").exists()


def job(tmp_path, name, code):
    return jobs.Job(name, tmp_path / name, [sys.executable, "-c", code], tmp_path / name / "log.txt")


def test_workers_share_gpus_and_cores(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = (
        "import os, time; time.sleep(1); print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ.get('OMP_NUM_THREADS'))"
    )
    several = [job(tmp_path, f"r{i}", code) for i in range(2)]
    assert sorted((each.name, result) for each, result in jobs.local(several, 2)) == [("r0", 0), ("r1", 0)]
    devices, threads = zip(*((each.log.read_text().split()) for each in several), strict=True)
    assert set(devices) == {"3", "GPU-5"}  # at the same time, so one each
    assert set(threads) == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
    for name, workers in (("last", 2), ("alone", 1)):
        assert [result for _, result in jobs.local([job(tmp_path, name, code)], workers)] == [0]
    assert (tmp_path / "last" / "log.txt").read_text().split() == ["3", threads[0]]  # as the other runs of its sweep
    assert (tmp_path / "alone" / "log.txt").read_text().split() == ["3,GPU-5", "None"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert jobs.gpus() == []


def test_a_process_that_is_killed_or_can_not_start(tmp_path):
    killed = job(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)")
    missing = jobs.Job("missing", tmp_path / "missing", ["/nonexistent/python"], tmp_path / "missing" / "log.txt")
    (tmp_path / "file").touch()
    no_folder = jobs.Job("no folder", tmp_path, killed.command, tmp_path / "file" / "log.txt")
    null = jobs.Job("null", tmp_path / "null", ["echo", "a\0b"], tmp_path / "null" / "log.txt")
    nameless = job(tmp_path, "nameless", "import os; os.kill(os.getpid(), 40)")
    after = job(tmp_path, "after", "print('fine')")
    several = [killed, missing, no_folder, null, nameless, after]
    results = {each.name: result for each, result in jobs.local(several, 1)}
    assert results["killed"] == "killed by signal 9 (SIGKILL)"
    assert results["nameless"] == "killed by signal 40"  # a real-time signal
    assert "could not be started" in results["null"]
    assert "could not be started" in results["missing"]
    assert "could not be started" in results["no folder"]
    assert results["after"] == 0


def test_an_outcome_is_what_the_records_say(tmp_path, monkeypatch):
    one = job(tmp_path, "r", "")
    one.run_dir.mkdir()
    one.log.write_text("earlier attempt\n")
    first = outcomes.before(one, ["a", "b"])

    def record(stage, status, **more):
        write_json(one.run_dir / stage / "run.json", {"status": status, "seconds": 2.0} | more)

    def log(text):
        with one.log.open("a") as f:
            f.write(text)

    def judged(result, earlier=first):
        row = outcomes.outcome(one, result, earlier)
        return tuple(row[key] for key in ("status", "stage", "cell", "message"))

    assert judged(None) == ("not started", None, None, None)
    assert judged(0)[:2] == ("failed", "a")  # it says it is done, but left nothing
    log("x\nOSError: [Errno 28] No space left on device\n\n")
    full = ("failed", "a", None, "exit code 74; OSError: [Errno 28] No space left on device")
    assert judged(74) == full
    monkeypatch.setattr(outcomes, "FULL", 2**80)
    assert "the disk of" in judged(74)[3]
    monkeypatch.undo()
    record("a", "completed")
    record("b", "failed", error="cell 7 raised ValueError: too cold\nline two")
    assert judged(1) == ("failed", "b", 7, "ValueError: too cold")
    assert judged(1, outcomes.before(one, ["a", "b"]))[2] is None  # an earlier attempt's: not why this one failed
    record("b", "failed", error="papermill ended with exit code -9 (killed?)\nlog")
    assert judged(1)[2:] == (None, "papermill ended with exit code -9 (killed?)")
    record("b", "running", pid=2**22 + 1, host=os.uname().nodename)
    assert judged("killed by signal 9")[:2] == ("died", "b")
    assert judged(None)[0] == "died"
    assert judged(None, outcomes.before(one, ["a", "b"]))[0] == "not started"  # it died long ago
    record("b", "running", pid=os.getpid(), host=os.uname().nodename)
    assert judged(None)[0] == "running"
    record("b", "running")  # by an early version, which wrote no process number
    assert judged(None)[0] == "running"
    record("b", "running", pid=1, host="a node of the cluster")
    watched = outcomes.before(one, ["a", "b"])  # a second call finds it in Slurm's queue
    assert judged(None, watched)[:2] == ("running", "b")  # and is left again
    assert judged("node failed", watched)[:2] == ("died", "b")
    record("b", "failed", error="cell 7 raised ValueError: too cold\nline two")
    assert judged(1, watched) == ("failed", "b", 7, "ValueError: too cold")
    record("b", "interrupted")
    assert judged("time limit")[:2] == ("interrupted", "b")
    log("prlhf: another process is running b in r.\n")
    assert judged(2)[0] == "busy elsewhere"
    log("report: what another sweep's process writes into the same log\n")
    assert judged(2)[0] == "busy elsewhere"
    record("b", "completed")
    assert judged(0) == ("completed", None, None, None)
    assert judged(74)[0] == "completed"  # the page after the last notebook could not be written; the work is there
    assert judged(None)[0] == "completed"  # while the sweep was being stopped
    skipped = outcomes.before(one, ["a", "b"])
    assert judged(None, skipped)[0] == "not started"
    log("prlhf: nb failed\nprlhf: another process is running b in r.\nreport: index.html\n")
    assert judged(1, skipped) == ("failed", None, None, "exit code 1; nb failed")  # not what another sweep's said
    log("prlhf: r is whole, but not all of it was copied\nreport: index.html\n")
    assert judged(74, skipped)[0] == "completed"
    assert outcomes.outcome(one, 0, first)["seconds"] == 4.0
    assert outcomes.exit_code([outcomes.outcome(one, code, skipped) for code in (0, 0)]) == 0
    assert outcomes.exit_code([outcomes.outcome(one, code, skipped) for code in (0, 74)]) == 74
    assert outcomes.exit_code([outcomes.outcome(one, code, skipped) for code in (1, 74)]) == 1


def finished_run(run_dir, name, text):
    stage = begin(name, run_dir, {"run_dir": str(run_dir)})
    stage.artifact("model.txt", "model", "A model").write_text(text)
    stage.finish()
    (stage.dir / "notebook.ipynb").touch()
    (stage.dir / "notebook.html").touch()


def test_a_sweep_starts_from_a_finished_runs_stages_and_takes_values_as_they_are(tmp_path, capsys):
    second = write_notebook(
        tmp_path,
        "second",
        'text = stage.input("first", "model.txt").read_text()',
        "assert text == 'one'",
        needs=["first"],
    )
    line = ["sweep", str(second), "--out", str(tmp_path), "--from", "demo", "--run", "s"]
    rows = [{"user": "a \"b\", 'c'", "rate": -1e-05, "names": ["-x", None], "limit": "five"}]
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump(rows))
    line += ["--list", str(tmp_path / "rows.yaml")]
    (tmp_path / "demo").mkdir()
    assert cli.main(line) == 2
    assert "stage first is missing" in capsys.readouterr().err
    finished_run(tmp_path / "demo", "first", "one")
    assert cli.main(line) == 0
    (run,) = (path.parent for path in (tmp_path / "s").glob("*/second"))
    given = read_record(run / "second")["parameters"]
    assert {name: given[name] for name in rows[0]} == rows[0]
    # what the source does later, in place too, does not reach the run; nor does a second call copy again
    (tmp_path / "demo" / "first" / "model.txt").write_text("spoilt")
    assert (run / "first" / "model.txt").read_text() == "one"
    assert os.path.samefile(run / "first" / "model.txt", tmp_path / "s" / carry_over.TAKEN / "first" / "model.txt")
    one = jobs.Job("r", run, [], run / "log.txt")
    carry_over.take(tmp_path / "demo", ["first"], tmp_path / "s", [one], ["second"])
    assert not list((tmp_path / "s").rglob(".previous"))
    finished_run(tmp_path / "again", "first", "two")
    with pytest.raises(RunError, match=r"began from another first .* --from \S+/s/\.from, or choose another name"):
        carry_over.take(tmp_path / "again", ["first"], tmp_path / "s", [one], ["second"])
    assert (run / "first" / "model.txt").read_text() == "one"
    (tmp_path / "demo" / "first" / "notebook.html").unlink()
    with pytest.raises(RunError, match="without its artefacts"):
        carry_over.take(tmp_path / "demo", ["first"], tmp_path / "s2", [one], ["second"])
    assert not (tmp_path / "s2").exists()
    shutil.rmtree(tmp_path / "demo")  # gone: the sweep has all that it needs
    assert carry_over.find("demo", tmp_path, tmp_path / "s") == tmp_path / "s" / carry_over.TAKEN
    shutil.rmtree(run / "first")
    carry_over.take(tmp_path / "s" / carry_over.TAKEN, ["first"], tmp_path / "s", [one], ["second"])
    assert (run / "first" / "model.txt").read_text() == "one"


def test_the_summary_has_no_numbers_of_an_earlier_attempt(tmp_path):
    for stage, value in {"first": 1.0, "second": 2.0}.items():
        write_json(tmp_path / "n=1" / stage / "run.json", {"status": "completed", "metrics": {"twice": value}})
    nothing = {"seconds": None, "cell": None, "message": None}

    def summary(status, stage):
        row = {"parameters": {"n": 1, "user": "x"}, "stages": ["first", "second"], "status": status, "stage": stage}
        sweep._save(tmp_path, {"n=1": row | nothing}, last=True)
        (found,) = pd.read_csv(tmp_path / "summary.csv").to_dict("records")
        assert (found["n"], found["user"]) == (1, "x")
        return {name: found[name] for name in found if name.endswith("twice")}

    assert summary("completed", None) == {"first.twice": 1.0, "second.twice": 2.0}
    assert summary("failed", "second") == {"first.twice": 1.0}
    assert summary("failed", "first") == {}
    assert summary("failed", None) == {}


def test_failures_and_a_killed_worker_stop_no_other_run(tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pandas.py").write_text("raise ValueError('not this one')")
    monkeypatch.chdir(tmp_path / "here")
    mended = tmp_path / "mended"
    cell = (
        f"if not Path({str(mended)!r}).exists():\n"
        "    if n == 1: raise OSError(28, 'No space left on device')\n"
        "    if n == 2: os.kill(json.loads((stage.dir / 'run.json').read_text())['pid'], signal.SIGKILL)"
    )
    notebook = write_notebook(tmp_path, "nb", cell)
    line = ["sweep", str(notebook), "--grid", "n=1,2,3", "--workers", "2", "--out", str(tmp_path), "--run", "s"]
    assert cli.main([*line, "--copy-to", str(tmp_path / "copies")]) == 1
    out = capsys.readouterr().out
    assert "1 of 3 completed" in out
    assert (tmp_path / "copies" / "n=3" / "nb" / "notebook.ipynb").is_file()
    runs = json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]
    assert {name: row["status"] for name, row in runs.items()} == {"n=1": "failed", "n=2": "died", "n=3": "completed"}
    assert runs["n=1"]["stage"] == "nb"
    executed = nbformat.read(tmp_path / "s" / "n=1" / "nb" / "notebook.ipynb", as_version=4)
    assert executed.cells[runs["n=1"]["cell"]].source == cell
    assert runs["n=1"]["message"] == "OSError: [Errno 28] No space left on device"
    assert "killed by signal 9 (SIGKILL)" in runs["n=2"]["message"]
    assert runs["n=1"]["message"] in out.split("run ")[-1]  # the table at the end
    assert (tmp_path / "s" / "n=3" / "index.html").is_file()

    mended.touch()
    line[line.index("n=1,2,3")] = "n=1,3"
    assert cli.main(line) == 0
    summary = pd.read_csv(tmp_path / "s" / "summary.csv")
    assert summary["status"].tolist() == ["completed", "died", "completed"]  # n=2 was not of this sweep, but is there
    assert summary["nb.twice"].fillna(0).tolist() == [2, 0, 6]
    assert summary["n"].tolist() == [1, 2, 3]
    assert [(tmp_path / "s" / f"n={n}" / "nb" / "starts.txt").read_text() for n in (1, 2, 3)] == ["xx", "x", "x"]


WAIT = "while not Path({!r}, f'go-{{n}}').exists(): time.sleep(0.1)"


def test_ctrl_c_or_a_kill_in_the_middle_and_the_same_command_resumes(tmp_path):
    notebook = write_notebook(tmp_path, "nb", WAIT.format(str(tmp_path)))
    line = command(notebook, "--grid", "n=1,2", "--out", tmp_path, "--run", "s")
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stage = tmp_path / "s" / "n=1" / "nb"
    wait_for((stage / "starts.txt").exists)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "the same command resumes" in err
    assert read_record(stage)["status"] == "interrupted"
    runs = json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]
    assert runs["n=1"]["status"] == "interrupted"
    assert "not started" in out
    assert not (tmp_path / "s" / "n=2").exists()
    line[line.index("n=1,2")] = "n=1"  # a second of the two would only take time
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        wait_for(lambda: (stage / "starts.txt").read_text() == "xx")
        assert read_record(stage)["status"] == "running"
        child.kill()
    wait_for(lambda: read_record(stage)["status"] == "interrupted")  # its run noticed, and so does not go on for ever
    (tmp_path / "go-1").touch()
    assert subprocess.run(line, capture_output=True, check=False).returncode == 0
    assert (stage / "starts.txt").read_text() == "xxx"  # the folder was kept, so that training could resume in it


def test_two_sweeps_at_once_into_one_folder(tmp_path):
    notebook = write_notebook(tmp_path, "nb", WAIT.format(str(tmp_path)))
    line = command(notebook, "--grid", "n=1,2", "--out", tmp_path, "--run", "s")
    first = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    wait_for((tmp_path / "s" / "n=1" / "nb" / "starts.txt").exists)
    second = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    wait_for((tmp_path / "s" / "n=2" / "nb" / "starts.txt").exists)  # it left n=1 to the first
    (tmp_path / "go-1").touch()
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "n=2 busy elsewhere" in out
    assert "1 of 2 completed" in out
    (tmp_path / "go-2").touch()
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert "n=1 busy elsewhere" in out  # and then found completed
    assert "2 of 2 completed" in out
    runs = json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]
    assert [row["status"] for row in runs.values()] == ["completed"] * 2
    assert [(tmp_path / "s" / f"n={n}" / "nb" / "starts.txt").read_text() for n in (1, 2)] == ["x", "x"]


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no small disk can be mounted here: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk(tmp_path, small_disk, capsys):
    cell = "stage.artifact('model.txt', 'model', 'A model').write_text('survives')\n"
    cell += "if n == 2: (stage.dir / 'filler').write_bytes(bytes(2**23))"
    notebook = write_notebook(tmp_path, "nb", cell)
    assert cli.main(["sweep", str(notebook), "--grid", "n=1,2", "--out", str(small_disk), "--run", "s"]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 completed" in out
    said = next(line for line in out.splitlines() if line.startswith("n=2"))
    assert "No space left" in said or "is full" in said
    assert read_record(small_disk / "s" / "n=1" / "nb")["status"] == "completed"
    assert (small_disk / "s" / "n=1" / "nb" / "model.txt").read_text() == "survives"
