"""Papermill in a process of its own: each of its traps, and how it is stopped."""

import json
import re
import signal
import subprocess
import sys

import pytest
from tiny_notebooks import FINISH, starts, wait_for, write_notebook

from prlhf_kit.runs import execute as execution, notebook as runner
from prlhf_kit.runs.stage import read_record


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("import os; os.write(2, b'\\xff'); raise ValueError('too cold')", r"cell \d raised ValueError: too cold"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"cell 3 did not end.*kernel died[^$]*SIGKILL"),
        (None, r"without its closing cell `stage.finish"),
        ("stage.finish({'x': float('nan')})", "metric 'x' is nan"),
    ],
    ids=["error", "dead kernel", "no closing cell", "nan metric"],
)
def test_what_papermill_would_call_a_success(tmp_path, cell, message):
    notebook = write_notebook(tmp_path, "nb", *filter(None, [cell]), finish=cell and FINISH)
    record = runner.run_notebook(notebook, tmp_path / "run")
    assert record["status"] == "failed"
    assert re.search(message, record["error"])
    assert read_record(tmp_path / "run" / "nb")["status"] == "failed"


def test_a_notebook_that_begins_as_another_is_told_so(tmp_path):
    renamed = write_notebook(tmp_path, "nb").rename(tmp_path / "mine.ipynb")
    record = runner.run_notebook(renamed, tmp_path / "run")
    assert (record["status"], read_record(tmp_path / "run" / "nb")["status"]) == ("failed", "completed")
    assert "another notebook's name in `begin`?" in record["error"]


def test_off_a_terminal_a_line_now_and_then_says_what_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(execution, "REPORT_EVERY", 0.5)
    bar = "<progress></progress> [40/80 00:10 < 00:12, 3.1 it/s]<table><td>38</td> <td>0.50</td><td>7</td></table>"
    shown = f"from IPython.display import HTML, display; display(HTML({bar!r}), HTML({bar!r}))"
    notebook = write_notebook(tmp_path, "nb", shown)
    assert runner.run_notebook(notebook, tmp_path / "run")["status"] == "completed"
    assert re.search(r"^nb 0 min: (starting|cell \d of 4)", capsys.readouterr().out, re.MULTILINE)
    assert execution._progress(tmp_path / "run" / "nb" / "notebook.ipynb").startswith("cell 4 of 5")
    written = json.loads((tmp_path / "run" / "nb" / "notebook.ipynb").read_text())
    (tmp_path / "half.ipynb").write_text(json.dumps(written | {"cells": written["cells"][:-1]}))
    assert execution._progress(tmp_path / "half.ipynb") == "cell 3 of 4, training 2, step 40/80, loss 0.50, 00:12 left"


def test_papermill_killed_while_it_writes(tmp_path):
    (tmp_path / "half.ipynb").write_text('{"cells": [')
    error = execution.error_of(tmp_path / "half.ipynb", -9, "Killed", finished=False)
    assert error.startswith("no cell ran, exit code -9")


def test_a_kernel_without_a_port_is_tried_again(tmp_path, monkeypatch):
    said = [(1, f"RuntimeError: {runner.NO_PORT}"), (1, "another")]
    monkeypatch.setattr(runner, "execute", lambda *_: said.pop(0))
    record = runner.run_notebook(write_notebook(tmp_path, "nb"), tmp_path / "run")
    assert record["error"].endswith("another")


def test_an_interrupt_leaves_a_record_and_the_next_run_goes_on(tmp_path):
    """A killed one: tests/test_notebooks.py."""
    slow = "if not (stage.dir / 'go').exists():\n    (stage.dir / 'here').touch(); time.sleep(60)"
    notebook, stage = write_notebook(tmp_path, "nb{", slow), tmp_path / "lr={0.1}" / "nb{"  # no papermill parameters
    line = [sys.executable, "-m", "prlhf_kit.cli", "run", str(notebook), "--out", str(tmp_path), "--run", "lr={0.1}"]
    background = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *line]  # as `&` in a script: SIGINT is turned off
    child = subprocess.Popen(background, stderr=subprocess.PIPE, text=True)
    wait_for((stage / "here").exists)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "the same command resumes" in err
    assert read_record(stage)["status"] == "interrupted"

    (stage / "go").touch()
    assert subprocess.run(line, capture_output=True, check=False).returncode == 0
    assert read_record(stage)["status"] == "completed"
    assert (stage / "notebook.ipynb").is_file()
    assert starts(stage) == 2  # the folder was kept: long work can resume in it
