"""Notebooks by number and name, their parameters, and what of these decides whether a stage is run again."""

import re
from pathlib import Path

import nbformat
import pytest
from tiny_notebooks import write_notebook

from prlhf_kit import cli
from prlhf_kit.runs import notebook as runner, parameters


def test_defaults_are_read_as_python_reads_them(tmp_path):
    cell = 'w = 1  # weight (w=0 is the base)\nc: str = "#fff"  # colour\nd = [1, {"a": None}]'
    notebook = write_notebook(tmp_path, "nb", parameters=cell)
    assert parameters.defaults(notebook) == {"w": 1, "c": "#fff", "d": [1, {"a": None}]}
    for bad in ("(1, 2)", "{1, 2}", "{1: 2}", "print", "str(1)"):
        with pytest.raises(parameters.RunError, match=r"parameter 'x' .* expected text, a finite number"):
            parameters.defaults(write_notebook(tmp_path, "nb", parameters=f"x = {bad}"))
    with pytest.raises(parameters.RunError, match=r"is no plain Python: .*put magics"):
        parameters.defaults(write_notebook(tmp_path, "nb", parameters="%matplotlib inline\nx = 1"))
    for content in (b"user,prompt\n1,2\n", b'{"cells": 3}', b"\xff"):
        with pytest.raises(parameters.RunError, match="is no Jupyter notebook"):
            parameters.defaults(notebook, content)


def test_values_are_refused_before_anything_runs(tmp_path):
    notebook, run = write_notebook(tmp_path, "nb"), tmp_path / "run"
    for name, given, message in (
        ("usr", "x", r"no parameter 'usr'. Did you mean 'user'"),
        ("n", True, "'n' is True, expected int"),
        ("on", "1", "'on' is '1', expected bool"),
        ("user", 7, "'user' is 7, expected str"),
    ):
        with pytest.raises(parameters.RunError, match=message):
            runner.run_notebook(notebook, run, {name: given})
    with pytest.raises(parameters.RunError, match="no cell tagged 'parameters'"):
        runner.run_notebook(write_notebook(tmp_path, "untagged", tags=()), run)
    with pytest.raises(parameters.RunError, match="there is no notebook"):
        runner.run_notebook(tmp_path / "none.ipynb", run)
    assert not run.exists()
    assert parameters.typed("limit", "5", None) == 5
    assert parameters.typed("names", "['a']", ["b"]) == ["a"]


def test_files_that_parameters_name_however_deep_decide_the_key(tmp_path):
    notebook = write_notebook(tmp_path, "nb")
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "answers.json"
    for value in (
        "deep/answers.json",
        ["--config_file", "deep/answers.json"],
        {"path": [{"a": str(file)}]},
        {"path": "deep"},
    ):
        file.write_text("a")
        before = runner._key(notebook, {"outside": value}, {})
        assert runner._key(notebook, {"outside": value}, {}) == before
        file.write_text("longer")
        assert runner._key(notebook, {"outside": value}, {}) != before, value
        file.unlink()


def test_texts_that_are_no_paths_and_folders_around_the_notebook(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "home" / "me").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: pytest.fail(f"looked through {self}"))
    for text in ("x" * 300, "a/" * 5000, "null\0", "", ".", "..", "/", "~", str(tmp_path), "../home", "../home/me"):
        assert runner._states(tmp_path / "here", text) == [], text


def test_what_notebooks_of_the_project_use_is_in_their_metadata():
    folder = Path(runner.__file__).parents[2] / "notebooks"
    for path in folder.glob("*.ipynb"):
        code = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        read = set(re.findall(r'"(\d\d_[a-z_]+)"', code)) - {path.stem}
        assert read <= set(parameters.earlier(path)), path.name


def test_a_notebook_is_found_here_before_the_package_and_copies_overwrite_nothing(tmp_path, monkeypatch, capsys):
    """That a wheel carries them: tests/test_packaging.py."""
    monkeypatch.chdir(tmp_path)
    for given in ("02b", "02b_feature_heads", "02b_feature_heads.ipynb"):
        found = parameters.find_notebook(given)
        assert found == parameters.PACKAGE / "notebooks" / "02b_feature_heads.ipynb"
    for code in (0, 2):
        assert cli.main(["notebooks", "mine"]) == code
    out, err = capsys.readouterr()
    assert (out, err.split(",")[0]) == ("mine/notebooks\nmine/configs\n", "prlhf: mine/notebooks exists")
    monkeypatch.chdir("mine")
    assert str(parameters.find_notebook("02b")) == "notebooks/02b_feature_heads.ipynb"
    assert str(parameters.find_notebook("other/02b.ipynb")) == "other/02b.ipynb"  # a path is taken as it is
    with pytest.raises(parameters.RunError, match=r"no notebook 17\. Expected .* 01_data_preparation, 02_"):
        parameters.find_notebook("17")
