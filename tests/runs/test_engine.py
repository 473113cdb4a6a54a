"""Sweeps and pipelines on this machine: what is left when stages fail, are stopped or killed, and go on."""

import csv
import os
import signal
import subprocess
import sys
import threading

import nbformat
import pytest
from tiny_notebooks import starts, wait_for, write_notebook

from prlhf_kit import cli
from prlhf_kit.runs import engine
from prlhf_kit.runs.notebook import run_notebook
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.stage import read_record

SMALL = 'run_dir = "x"\nn = 0\n'
FAILS = """mended = Path({!r}, "mended").exists()
(stage.dir / "gpu.txt").write_text(str(os.environ.get("CUDA_VISIBLE_DEVICES")))
end = time.monotonic() + 60
while len(list(Path({!r}).glob("s/n~*/b/gpu.txt"))) < 2:
    assert time.monotonic() < end, "no other stage ran at the same time"
    time.sleep(0.1)
if not mended and n == 2:
    raise ValueError("too cold")
if not mended and n == 3:
    os.kill(json.loads((stage.dir / "run.json").read_text())["pid"], signal.SIGKILL)"""
WAITS = "while not Path({!r}, 'go').exists(): time.sleep(0.1)"


def rows(folder):
    with (folder / "summary.csv").open() as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def test_a_sweep_whose_stages_fail_and_the_same_command_again(tmp_path, capsys, monkeypatch):
    """Two workers with two pretended GPUs; the first stage is shared."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    (tmp_path / "pandas.py").write_text("raise ValueError('not this one')")
    monkeypatch.chdir(tmp_path)
    notebooks = [
        write_notebook(tmp_path, "a", parameters='run_dir = "x"\n', finish="stage.finish()"),
        write_notebook(tmp_path, "b", FAILS.format(str(tmp_path), str(tmp_path)), needs=["a"], parameters=SMALL),
        write_notebook(tmp_path, "c", needs=["b"], parameters='run_dir = "x"\n', finish='stage.finish({"one": 1})'),
    ]
    line = ["sweep", "--grid", "n=2,3", "--out", str(tmp_path), "--run", "s"]
    assert cli.main([*line, *map(str, notebooks), "--copy-to", str(tmp_path / "copies")]) == 1
    out = capsys.readouterr().out
    assert "0 of 2 runs completed" in out
    found = rows(tmp_path / "s")
    assert {name: row["status"] for name, row in found.items()} == {"n~2": "failed", "n~3": "died"}
    assert found["n~2"]["message"] == "ValueError: too cold"
    executed = nbformat.read(tmp_path / "s" / "n~2" / "b" / "notebook.ipynb", as_version=4)
    assert "too cold" in executed.cells[int(found["n~2"]["cell"])].source
    assert "needs b" in out
    assert starts(tmp_path / "s" / ".shared" / "all" / "a") == 1
    places = [tmp_path / "s" / f"n~{n}" for n in (2, 3)]
    assert all((place / "a" / "run.json").is_file() for place in places)
    assert {(place / "b" / "gpu.txt").read_text() for place in places} == {"GPU-a", "GPU-b"}
    assert {path.parent.name for path in (tmp_path / "copies").rglob("notebook.ipynb")} == {"a"}  # what completed

    (tmp_path / "mended").touch()
    line += map(str, notebooks[:2])
    assert cli.main(line) == 0
    assert rows(tmp_path / "s")["n~3"]["b.twice"] == "6.0"
    assert [starts(place / "b") for place in places] == [2, 2]  # in the folders that they had
    assert starts(tmp_path / "s" / ".shared" / "all" / "a") == 1
    capsys.readouterr()
    monkeypatch.setattr(engine, "_run", lambda *_: pytest.fail("started an engine for nothing"))
    assert cli.main(line) == 0
    assert capsys.readouterr().out.count("unchanged") == 3
    line[line.index("s")] = "t"
    assert cli.main([*line, "--dry-run"]) == 0
    assert not (tmp_path / "t").exists()


def test_a_pipeline_runs_again_what_is_made_from_what_changed(tmp_path, capsys):
    leaves = "stage.artifact('a.txt', 'data', 'A text').write_text(str(n))"
    a = write_notebook(tmp_path, "a", leaves, parameters=SMALL)
    b = write_notebook(tmp_path, "b", needs=["a"], parameters=SMALL)
    line = ["pipeline", str(tmp_path / "p.yaml"), "--out", str(tmp_path), "--run", "{n}=1"]
    for notebook in (a, b):
        assert run_notebook(notebook, tmp_path / "{n}=1")["status"] == "completed"
    for n, status in {0: "unchanged", 5: "completed"}.items():
        text = f"stages: [{{notebook: b.ipynb}}, {{notebook: a.ipynb, parameters: {{n: {n}}}}}]"
        (tmp_path / "p.yaml").write_text(text)
        assert cli.main(line) == 0
        assert capsys.readouterr().out.split("\n\n")[1].count(status) == 2
    assert (tmp_path / "{n}=1" / "index.html").is_file()


def test_stopped_then_killed_in_the_middle_and_the_same_command_resumes(tmp_path):
    notebook = write_notebook(tmp_path, "nb", WAITS.format(str(tmp_path)), parameters=SMALL)
    line = [sys.executable, "-m", "prlhf_kit.cli", "sweep", notebook, "--grid", "n=1", "--out", tmp_path, "--run", "s"]
    line = list(map(str, line))
    stage = tmp_path / "s" / "n~1" / "nb"
    for attempt, sign in enumerate((signal.SIGTERM, signal.SIGKILL), 1):
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            wait_for(lambda attempt=attempt: starts(stage) == attempt)
            with pytest.raises(RunError, match="another prlhf works in"):
                engine.execute([], tmp_path / "s", "local")
            child.send_signal(sign)
            _, err = child.communicate(timeout=90)
        if sign == signal.SIGTERM:
            assert (child.returncode, rows(tmp_path / "s")["n~1"]["status"]) == (130, "interrupted")
            assert "the same command resumes" in err
    wait_for(lambda: read_record(stage)["status"] == "interrupted")  # with its engine, so that no orphan goes on
    (tmp_path / "go").touch()
    assert subprocess.run(line, capture_output=True, check=False).returncode == 0
    assert starts(stage) == 3


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("nowhere", "expected local, slurm, or a folder"),
        ("slurm", "no sbatch on this machine's PATH.*--profile local"),
        ("unknown", "snakemake_executor_plugin_abacus is not installed"),
    ],
)
def test_profiles_that_are_refused(profile, message, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "config.yaml").write_text("executor: abacus")
    with pytest.raises(RunError, match=message):
        engine.check_profile(profile)


def test_each_job_holds_devices_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    held = []

    def hold():
        with engine._devices(["0", "1", "2"], 1):
            held.append(os.environ["CUDA_VISIBLE_DEVICES"])

    with engine._devices(["0", "1", "2"], 1), engine._devices(["0", "1", "2"], 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"
        (waits := threading.Thread(target=hold)).start()
        waits.join(1.5)
        assert waits.is_alive()
    waits.join(10)
    assert held == ["0"]
    with engine._devices([], 1):  # none is counted here, or a cluster has handed them out
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
