"""The runner: what it records, and each of papermill's traps."""

import re
import subprocess

import pytest

from prlhf_kit import cli
from prlhf_kit.runs import notebook as runner, parameters, report
from prlhf_kit.runs.stage import read_record
from runs.conftest import BODY, FINISH, PARAMETERS


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


def test_what_was_changed_after_its_stage_completed_is_not_used(make_notebook, tmp_path, capsys):
    body = BODY.replace('"log.txt", "data"', '"out", "model"') + '(stage.dir / "out").mkdir(exist_ok=True)\n'
    body += 'if not (stage.dir / "out" / "users.json").exists(): (stage.dir / "out" / "users.json").write_text("ab")\n'
    first, run = make_notebook(FINISH, name="first", body=body), tmp_path / "run"
    second = make_notebook('stage.input("first", "out")', FINISH, name="second", needs=["first"])
    users = run / "first" / "out" / "users.json"
    for notebook in (first, second):
        assert runner.run_notebook(notebook, run)["status"] == "completed"
    users.touch()  # the same content at another time
    assert runner.run_notebook(second, run)["skipped"]
    users.write_text("ba")
    assert "out was changed since notebook first left it" in runner.run_notebook(second, run)["error"]
    assert "Not of one piece" in report.write_index(run).read_text()
    assert "skipped" not in runner.run_notebook(first, run)
    assert users.read_text() == "ab"
    assert (run / ".previous" / "first" / "out" / "users.json").read_text() == "ba"
    assert "first is run again: out was changed" in capsys.readouterr().out
    assert runner.run_notebook(second, run)["status"] == "completed"


def test_only_a_completed_stage_takes_a_completed_ones_place(make_notebook, tmp_path, capsys):
    notebook, run = make_notebook("if n == 4: raise ValueError", FINISH), tmp_path / "run"
    for n in (3, 4, 5):
        runner.run_notebook(notebook, run, {"n": n})
    assert (run / ".previous" / "nb" / "log.txt").read_text() == "ann3"
    assert (run / ".previous" / "nb.unfinished" / "log.txt").read_text() == "ann4"
    assert (run / "nb" / "log.txt").read_text() == "ann5"
    out = capsys.readouterr().out
    assert f"the completed stage is replaced, and kept in {run}/.previous/nb\n" in out
    assert f"an attempt that did not complete is replaced, and kept in {run}/.previous/nb.unfinished\n" in out


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
    assert "holds no stage that draws figures" in capsys.readouterr().err


def test_what_a_stage_notes_stands_under_its_line(make_notebook, tmp_path, capsys):
    notebook = make_notebook('stage.note("4 of 16 pairs kept: 12 over-long prompts")', FINISH)
    for how in (r"\d+ s", "unchanged, skipped"):
        assert cli.main(["run", str(notebook), "--out", str(tmp_path), "--run", "r"]) == 0
        assert re.search(rf"nb completed \({how}\)\n  4 of 16 pairs kept: 12 over", capsys.readouterr().out)


def test_what_is_missing_is_known_before_a_kernel_starts(make_notebook, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "execute", lambda *_: pytest.fail("a kernel was started"))
    where = ["--out", str(tmp_path), "--run", "r"]
    notebook = make_notebook(FINISH, needs=["a"])
    assert cli.main(["run", str(notebook), *where]) == 2
    assert f"needs the stage a, which {tmp_path}/r has not. Run it first" in capsys.readouterr().err
    notebook = make_notebook(FINISH, parameters='run_dir = "x"\nmodel = "smollm2-135m-instruct"\nuser = ""\nn = 1\n')
    assert cli.main(["run", str(notebook), *where, "-p", "model", "smolm2-135m-instruct"]) == 2
    assert "Did you mean 'smollm2-135m-instruct'?" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_defaults_that_differ_from_the_committed_notebook_are_named(make_notebook, tmp_path, capsys):
    notebook = make_notebook(FINISH)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init"], ["add", notebook], ["commit", "-m", "a"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    assert parameters.edited(notebook) == {}
    make_notebook(FINISH, parameters=PARAMETERS.replace("n = 3", "n = 4").replace("0.5", "0.4"))
    line = ["run", str(notebook), "--out", str(tmp_path), "--run", "r", "-p", "n", "5"]
    assert cli.main(line) == 0
    assert "nb: parameters differ from the committed notebook: rate 0.4 (committed: 0.5)" in capsys.readouterr().err
