"""What decides whether a stage is run again: stages that it uses, files that its parameters name."""

import re
from pathlib import Path

import nbformat
import pytest

from prlhf_kit.runs import notebook as runner, parameters
from runs.conftest import FINISH


def test_stages_depend_on_what_they_use_where_it_is_there(make_notebook, tmp_path):
    run = tmp_path / "run"
    first, second = make_notebook(FINISH, name="first"), make_notebook(FINISH, name="second", uses=["first"])
    assert runner.run_notebook(second, run)["inputs"] == {"first": {}}
    assert runner.run_notebook(second, run)["skipped"]
    left = runner.run_notebook(first, run)["artifacts"]["log.txt"]["sha256"]
    again = runner.run_notebook(second, run)
    assert "skipped" not in again
    assert again["inputs"] == {"first": {"log.txt": left}}
    assert runner.run_notebook(second, run)["skipped"]


def _key(notebook, **parameters):
    return runner._key(notebook, parameters, {})


def test_files_that_parameters_name_however_deep_decide_the_key(make_notebook, tmp_path):
    notebook = make_notebook(FINISH)
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "answers.json"
    for value in (
        str(file),
        "deep/answers.json",
        {"Llama 8B": str(file)},
        ["--config_file", "deep/answers.json"],
        {"path": [{"a": str(file)}]},
        {"path": "deep"},
    ):
        file.write_text("a")
        before = _key(notebook, outside=value)
        assert _key(notebook, outside=value) == before
        file.write_text("longer")
        assert _key(notebook, outside=value) != before, value
        file.unlink()


def test_texts_that_are_no_paths_and_folders_around_the_notebook(make_notebook, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "home" / "me").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    notebook = make_notebook(FINISH).rename(tmp_path / "here" / "nb.ipynb")
    texts = ["x" * 300, "a/" * 5000, "null\0", "", ".", "..", "/", "./", "~", str(tmp_path), "../home", "../home/me"]
    _key(notebook, prompts=texts)
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: pytest.fail(f"looked through {self}"))
    for text in texts:
        assert runner._state(notebook.parent, text) == [], text


def test_what_notebooks_of_the_project_use_is_in_their_metadata():
    folder = Path(runner.__file__).parents[2] / "notebooks"
    for path in folder.glob("*.ipynb"):
        code = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        read = set(re.findall(r'"(\d\d_[a-z_]+)"', code)) - {path.stem}
        assert read <= {*parameters.needs_of(path), *parameters.uses_of(path)}, path.name
