"""The runner: what it records, and each of papermill's traps."""

import re
import subprocess

import pytest

from prlhf_kit import cli
from prlhf_kit.runs import notebook as runner, parameters, report
from prlhf_kit.runs.stage import StageError, begin, left_by, read_record
from runs.conftest import BODY, FINISH, PARAMETERS


def test_a_run_its_record_and_when_it_is_skipped(make_notebook, tmp_path):
    notebook, run = make_notebook(FINISH), tmp_path / "run"
    given = {"user": "00123", "n": 7, "limit": {"learning_rate": 5e-6}}  # which YAML would read as a text
    record = runner.run_notebook(notebook, run, given | {"n": "7"})
    assert record["status"] == "completed"
    assert record == read_record(run / "nb")
    assert record["parameters"] == {"run_dir": str(run), "rate": 0.5, "on": True} | given
    assert record["metrics"] == {"twice": 14.0}
    assert set(record["artifacts"]) == {"log.txt"}
    assert record["versions"]["trl"]
    assert record["peak_memory_bytes"] > 1e6
    assert {"commit", "dirty"} == set(record["git"])
    assert (run / "nb" / "log.txt").read_text() == "001237"
    assert "00123" in (run / "nb" / "notebook.html").read_text()

    assert runner.run_notebook(notebook, run, given)["skipped"]
    (run / "nb" / "log.txt").unlink()  # an artefact that is gone is made again
    assert "skipped" not in runner.run_notebook(notebook, run, given)
    changed = runner.run_notebook(notebook, run, {"user": "bob"})
    assert (changed["status"], changed["metrics"]) == ("completed", {"twice": 6.0})
    assert (run / "nb" / "log.txt").read_text() == "bob3"
    assert (run / ".previous" / "nb" / "log.txt").read_text() == "001237"  # nothing computed is lost


def test_stages_depend_on_the_contents_of_folders(make_notebook, tmp_path):
    run, here = tmp_path / "run", tmp_path / "here"
    here.mkdir()
    (here / "data.txt").write_text("a")
    second = make_notebook(FINISH, name="second", uses=["earlier"])  # where it is there
    options = {"user": str(here)}  # a parameter that names a local folder, such as a dataset or a model

    def earlier(text):
        stage = begin("earlier", run, {})
        model = stage.artifact("out", "model", "A model")
        model.mkdir(exist_ok=True)
        (model / "weights.txt").write_text(text)
        stage.finish()

    assert runner.plan(second, run, options).inputs == {"earlier": {}}
    earlier("a")
    runner.run_notebook(second, run, options)
    earlier("a")  # the same artefacts again
    assert runner.plan(second, run, options).done
    earlier("b")
    assert "second failed, or is older" in report.write_index(run).read_text()
    assert "skipped" not in runner.run_notebook(second, run, options)
    assert "or is older" not in report.write_index(run).read_text()
    (here / "data.txt").write_text("b, and longer")
    assert not runner.plan(second, run, options).done


def test_what_was_changed_after_its_stage_completed_is_not_used(make_notebook, tmp_path, capsys):
    body = BODY.replace('"log.txt", "data"', '"out", "model"') + '(stage.dir / "out").mkdir(exist_ok=True)\n'
    body += 'if not (stage.dir / "out" / "users.json").exists(): (stage.dir / "out" / "users.json").write_text("ab")\n'
    notebook, run = make_notebook(FINISH, body=body), tmp_path / "run"
    assert runner.run_notebook(notebook, run)["status"] == "completed"
    users = left_by("nb", run, "out") / "users.json"
    users.touch()  # the same content at another time
    assert runner.plan(notebook, run).done
    users.write_text("ba")
    with pytest.raises(StageError, match="out was changed since notebook nb left it"):
        left_by("nb", run, "out")
    assert "skipped" not in runner.run_notebook(notebook, run)
    assert users.read_text() == "ab"
    assert (run / ".previous" / "nb" / "out" / "users.json").read_text() == "ba"
    assert "nb is run again: out was changed" in capsys.readouterr().out


def test_only_a_completed_stage_takes_a_completed_ones_place(make_notebook, tmp_path, capsys):
    notebook, run = make_notebook("if n == 4: raise ValueError", FINISH), tmp_path / "run"
    for n in (3, 4, 5):
        runner.run_notebook(notebook, run, {"n": n})
    places = {".previous/nb": "ann3", ".previous/nb.unfinished": "ann4", "nb": "ann5"}
    assert {place: (run / place / "log.txt").read_text() for place in places} == places
    assert f"the completed stage is replaced, and kept in {run}/.previous/nb\n" in capsys.readouterr().out


def test_command_line(make_notebook, tmp_path, capsys):
    good = make_notebook('stage.note("4 of 16 pairs kept")', FINISH, name="good")
    bad = make_notebook("1 / 0", FINISH, name="bad")
    where = ["--out", str(tmp_path), "--run", "r"]
    assert cli.main(["run", str(good), *where, "-p", "run_dir", "3"]) == 2
    assert "set with --run and --out" in capsys.readouterr().err
    for how in (r"\d+ s", "unchanged, skipped"):
        assert cli.main(["run", str(good), str(bad), *where, "-p", "n", "4"]) == 1
        out, err = capsys.readouterr()
        assert re.search(rf"good completed \({how}\)\n  4 of 16 pairs kept", out)
        assert "ZeroDivisionError" in err
    page = (tmp_path / "r" / "index.html").read_text()
    assert "ZeroDivisionError" in page
    assert page.index("good/notebook.html") > page.index("bad/notebook.html")
    assert cli.main(["figures", str(tmp_path / "r")]) == 2
    assert "holds no stage that draws figures" in capsys.readouterr().err


def test_parameters_are_listed_and_read_from_a_file(make_notebook, tmp_path, capsys):
    line, file = ["run", str(make_notebook(FINISH)), "--out", str(tmp_path), "--run", "r"], tmp_path / "p.yaml"
    assert cli.main([*line, "--help-notebook"]) == 0
    assert PARAMETERS.strip() in capsys.readouterr().out
    file.write_text("n: 4\nrate: 5e-1\n")
    assert cli.main([*line, "-f", str(file), "-p", "n", "5"]) == 0
    found = read_record(tmp_path / "r" / "nb")["parameters"]
    assert (found["n"], found["rate"]) == (5, 0.5)
    file.write_text("- n")
    assert cli.main([*line, "-f", str(file)]) == 2
    assert "holds no mapping of parameters" in capsys.readouterr().err


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


def test_defaults_that_differ_from_the_committed_notebook_are_named(make_notebook, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "execute", lambda *_: (1, "not run"))
    notebook = make_notebook(FINISH)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init"], ["add", notebook], ["commit", "-m", "a"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    assert parameters.edited(notebook) == {}
    make_notebook(FINISH, parameters=PARAMETERS.replace("n = 3", "n = 4").replace("0.5", "0.4"))
    line = ["run", str(notebook), "--out", str(tmp_path), "--run", "r", "-p", "n", "5"]
    assert cli.main(line) == 1
    assert "nb: parameters differ from the committed notebook: rate 0.4 (committed: 0.5)" in capsys.readouterr().err
