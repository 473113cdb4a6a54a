"""The runner: what it records, and each of papermill's traps."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from tiny_notebooks import wait_for

from prlhf_kit import cli
from prlhf_kit.files import write_json
from prlhf_kit.runs import notebook as runner, parameters, report, stage as record_module
from prlhf_kit.runs.stage import StageError, begin, read_record
from runs.conftest import BODY, FINISH, command


def test_a_run_its_record_and_when_it_is_skipped(make_notebook, tmp_path):
    notebook, run = make_notebook(FINISH), tmp_path / "run"
    record = runner.run_notebook(notebook, run, {"user": "00123", "n": "7"})
    assert record["status"] == "completed"
    assert record == read_record(run / "nb")
    assert record["parameters"] == {
        "run_dir": str(run),
        "user": "00123",
        "n": 7,
        "rate": 0.5,
        "on": True,
        "limit": None,
    }
    assert record["metrics"] == {"twice": 14.0}
    assert set(record["artifacts"]) == {"log.txt"}
    assert record["versions"]["trl"]
    assert record["peak_memory_bytes"] > 1e6
    assert {"commit", "dirty"} == set(record["git"])
    assert (run / "nb" / "log.txt").read_text() == "001237"
    assert "00123" in (run / "nb" / "notebook.html").read_text()

    assert runner.run_notebook(notebook, run, {"user": "00123", "n": 7})["skipped"]
    (run / "nb" / "log.txt").unlink()  # an artefact that is gone is made again
    assert "skipped" not in runner.run_notebook(notebook, run, {"user": "00123", "n": 7})
    changed = runner.run_notebook(notebook, run, {"user": "bob"})
    assert (changed["status"], changed["metrics"]) == ("completed", {"twice": 6.0})
    assert (run / "nb" / "log.txt").read_text() == "bob3"
    assert (run / ".previous" / "nb" / "log.txt").read_text() == "001237"  # nothing computed is lost


def test_a_small_number_in_a_dict_stays_a_number(make_notebook, tmp_path):
    """YAML reads JSON's 5e-06 as a text."""
    notebook = make_notebook("stage.finish({'twice': 2 * limit['learning_rate']})")
    record = runner.run_notebook(notebook, tmp_path / "run", {"limit": {"learning_rate": 5e-6}})
    assert record["metrics"] == {"twice": 1e-5}, record


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("raise ValueError('too cold')", r"cell \d raised ValueError: too cold"),
        ("import sys; sys.exit(0)", "SystemExit|closing cell"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "kernel"),
        (None, r"without its closing cell `stage.finish"),
        ("stage.finish({'x': float('nan')})", "metric 'x' is nan"),
    ],
    ids=["error", "sys.exit", "dead kernel", "no closing cell", "nan metric"],
)
def test_what_papermill_would_call_a_success(make_notebook, tmp_path, cell, message):
    cells = [] if cell is None else [cell] if "finish" in cell else [cell, FINISH]
    record = runner.run_notebook(make_notebook(*cells), tmp_path / "run")
    assert record["status"] == "failed"
    assert re.search(message, record["error"])
    assert read_record(tmp_path / "run" / "nb")["status"] == "failed"


def test_parameters_are_refused_before_anything_runs(make_notebook, tmp_path):
    notebook, run = make_notebook(FINISH), tmp_path / "run"
    for given, message in {
        ("usr", "x"): r"no parameter 'usr'. Did you mean 'user'",
        ("n", "3.5"): "'n' is '3.5', expected int",
        ("n", True): "'n' is True, expected int",
        ("on", "1"): "'on' is '1', expected bool",
        ("rate", "fast"): "'rate' is 'fast', expected float",
        ("user", 7): "'user' is 7, expected str",
    }.items():
        with pytest.raises(parameters.RunError, match=message):
            runner.run_notebook(notebook, run, dict([given]))
    with pytest.raises(parameters.RunError, match="no cell tagged 'parameters'"):
        runner.run_notebook(make_notebook(FINISH, name="untagged", tags=()), run)
    with pytest.raises(parameters.RunError, match="there is no notebook"):
        runner.run_notebook(tmp_path / "none.ipynb", run)
    with pytest.raises(parameters.RunError, match="expected a plain Python value"):
        runner.run_notebook(make_notebook(FINISH, name="computed", parameters="run_dir = str(1)"), run)
    assert not run.exists()
    assert parameters.typed("limit", "5", None) == 5
    assert parameters.typed("names", "['a']", ["b"]) == ["a"]


def test_stages_depend_on_the_contents_of_folders(make_notebook, tmp_path):
    body = BODY.replace('"log.txt", "data"', '"out", "model"') + '(stage.dir / "out").mkdir()\n'
    body += '(stage.dir / "out" / "weights.txt").write_text(str(n))\n'
    first, run, here = make_notebook(FINISH, name="first", body=body), tmp_path / "run", tmp_path / "here"
    second = make_notebook(FINISH, name="second", needs=["first"])
    here.mkdir()
    (here / "data.txt").write_text("a")
    options = {"user": str(here)}  # a parameter that names a local folder, such as a dataset or a model
    runner.run_notebook(first, run)
    runner.run_notebook(second, run, options)
    runner.run_notebook(first, run, force=True)  # the same artefacts again
    assert runner.run_notebook(second, run, options)["skipped"]
    runner.run_notebook(first, run, {"n": 5})
    assert "second" in report.write_index(run).read_text().split("Not of one piece:")[1].split("failed, or is older")[0]
    assert "skipped" not in runner.run_notebook(second, run, options)
    assert "Not of one piece" not in report.write_index(run).read_text()
    (here / "data.txt").write_text("b, and longer")
    assert "skipped" not in runner.run_notebook(second, run, options)


def test_defaults_are_read_as_python_reads_them(make_notebook):
    notebook = make_notebook(
        parameters='w = 1  # weight (w=0 is the base)\nc: str = "#fff"  # colour\nd = [1, {"a": None}]'
    )
    assert parameters.defaults(notebook) == {"w": 1, "c": "#fff", "d": [1, {"a": None}]}
    for bad in ("(1, 2)", "{1, 2}", "{1: 2}", "print"):
        with pytest.raises(parameters.RunError, match=r"parameter 'x' .* expected a plain"):
            parameters.defaults(make_notebook(parameters=f"x = {bad}"))


def test_papermill_killed_while_it_writes(make_notebook, tmp_path, monkeypatch):
    def killed(notebook, out, parameters):
        out.write_text('{"cells": [')
        return -9, "Killed"

    monkeypatch.setattr(runner, "_execute", killed)
    record = runner.run_notebook(make_notebook(FINISH), tmp_path / "run")
    assert record["status"] == "failed"
    assert "exit code -9" in record["error"]


def test_a_kernel_without_a_port_is_tried_again(make_notebook, tmp_path, monkeypatch):
    execute, calls = runner._execute, []

    def unlucky(notebook, out, parameters):
        calls.append(out)
        return execute(notebook, out, parameters) if len(calls) == 2 else (1, f"RuntimeError: {runner.NO_PORT}")

    monkeypatch.setattr(runner, "_execute", unlucky)
    assert runner.run_notebook(make_notebook(FINISH), tmp_path / "run")["status"] == "completed"
    assert len(calls) == 2


def test_interrupt_and_kill_leave_a_record_and_the_next_run_goes_on(make_notebook, tmp_path):
    slow = "import time\nif not (stage.dir / 'go').exists():\n    (stage.dir / 'here').touch(); time.sleep(60)"
    notebook, stage = make_notebook(slow, FINISH), tmp_path / "r" / "nb"
    line = command(notebook, "--out", tmp_path, "--run", "r")
    for sign in (signal.SIGINT, signal.SIGTERM):
        background = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *line]  # as `&` in a script: SIGINT is turned off
        child = subprocess.Popen(background, stderr=subprocess.PIPE, text=True)
        wait_for((stage / "here").exists)
        child.send_signal(sign)
        _, err = child.communicate(timeout=60)
        assert child.returncode == 130
        assert "the same command resumes" in err
        assert read_record(stage)["status"] == "interrupted"
        (stage / "here").unlink()

    child = subprocess.Popen(line, stderr=subprocess.DEVNULL)
    wait_for((stage / "here").exists)
    child.kill()
    child.wait()
    assert read_record(stage)["status"] == "running"  # it could not say more
    (stage / "go").touch()
    assert subprocess.run(line, capture_output=True, check=False).returncode == 0
    assert read_record(stage)["status"] == "completed"
    assert (stage / "log.txt").read_text() == "ann3" * 4  # the folder was kept: long work can resume in it


def test_command_line(make_notebook, tmp_path, capsys):
    good, bad = make_notebook(FINISH, name="good"), make_notebook("1 / 0", FINISH, name="bad")
    where = ["--out", str(tmp_path), "--run", "r"]
    assert cli.main(["run", str(good), *where, "-p", "m", "3"]) == 2
    assert "no parameter 'm'" in capsys.readouterr().err
    assert cli.main(["run", str(good), *where, "-p", "run_dir", "/"]) == 2
    capsys.readouterr()
    assert cli.main(["run", str(good), str(bad), *where, "-p", "n", "4"]) == 1
    captured = capsys.readouterr()
    assert "good completed" in captured.out
    assert "ZeroDivisionError" in captured.err
    page = (tmp_path / "r" / "index.html").read_text()
    assert "ZeroDivisionError" in page
    assert page.index("good/notebook.html") > page.index("bad/notebook.html")
    with pytest.raises(SystemExit):
        cli.main(["run"])
    assert cli.main(["figures", str(tmp_path / "r")]) == 2


def test_index_page_escapes_text_and_shows_the_headline(tmp_path):
    import pandas as pd

    stage = begin("05_evaluation", tmp_path / "r", {"run_dir": "r", "seed": 1, "module": pd, "_x": 2})
    assert stage.parameters == {"run_dir": "r", "seed": 1}
    stage.table(
        pd.DataFrame({"answer": ["<script>alert(1)</script>", "- one\n- two"]}), "t", "The headline", kind="headline"
    )
    with pytest.raises(StageError, match="notebook 01_data_preparation"):
        stage.input("01_data_preparation", "data")
    stage.artifact("ghost", "data", "Never written")
    with pytest.raises(StageError, match="announced but not written"):
        stage.finish()
    del stage.artifacts["ghost"]
    stage.finish({"a": 1})
    page = report.write_index(tmp_path / "r").read_text()
    assert "The headline" in page
    assert "<script>" not in page
    assert "- one<br>- two" in page
    assert read_record(tmp_path / "r" / "05_evaluation")["status"] == "completed"


def test_two_kernels_do_not_work_in_one_folder_but_one_may_begin_again(tmp_path):
    first = begin("nb", tmp_path, {"n": 1})
    again = begin("nb", tmp_path, {"n": 1, "later": 2})  # the cell run once more in JupyterLab
    assert again.parameters == {"n": 1}
    other = (
        "import sys, prlhf_kit.runs.stage as r; r.PATIENCE = 0.1\n"
        "try: r.begin('nb', sys.argv[1], {})\nexcept r.StageError as e: print(e)"
    )
    line = [sys.executable, "-c", other, str(tmp_path)]
    assert "another process is working" in subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert first.dir == again.dir
    again.finish()
    assert not subprocess.run(line, capture_output=True, text=True, check=True).stdout


def test_in_jupyterlab_old_results_stand_only_for_the_same_inputs(tmp_path):
    def work(name, content, **parameters):
        record_module._names.clear()  # as a new kernel
        stage = begin(name, tmp_path, parameters)
        file = stage.artifact("model.txt", "model", "A model")
        if not file.exists():
            file.write_text(content)
        stage.finish()
        return file.read_text()

    assert work("a", "one", n=1) == "one"
    assert work("b", "from one", k=1) == "from one"
    assert work("b", "not made", k=1) == "from one"  # nothing changed: what is there stands
    assert work("b", "other k", k=2) == "other k"
    assert work("a", "two", n=2) == "two"
    assert work("b", "from two", k=2) == "from two"
    assert (tmp_path / ".previous" / "b" / "model.txt").read_text() == "other k"
    assert read_record(tmp_path / "b")["status"] == "completed"


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]
