"""The runner: what it records, when it runs a stage again, and copies of executed notebooks in other stores."""

import json
import re
import subprocess
from types import SimpleNamespace

import httpx2 as httpx
import pytest
from tiny_notebooks import PARAMETERS, starts, write_notebook

from prlhf_kit import cli
from prlhf_kit.files import write_json
from prlhf_kit.runs import commands, notebook as runner, report
from prlhf_kit.runs.stage import StageError, begin, left_by, read_record
from runs.conftest import RECORD


def test_a_run_its_record_and_when_it_is_skipped(tmp_path):
    notebook, run = write_notebook(tmp_path, "nb"), tmp_path / "run"
    given = {"user": "00123", "n": 7, "limit": {"learning_rate": 5e-6}}  # which YAML would read as a text
    record = runner.run_notebook(notebook, run, given | {"n": "7"})
    assert record["status"] == "completed"
    assert record == read_record(run / "nb")
    others = {"run_dir": str(run), "rate": 0.5, "on": True, "names": ["a"], "seed": 0}
    assert record["parameters"] == others | given
    assert record["metrics"] == {"twice": 14.0}
    assert set(record["artifacts"]) == {"log.txt"}
    assert record["versions"]["trl"]
    assert record["peak_memory_bytes"] > 1e6
    assert {"commit", "dirty"} == set(record["git"])
    assert (run / "nb" / "log.txt").read_text() == "00123 7\n"
    assert "00123" in (run / "nb" / "notebook.html").read_text()

    assert runner.run_notebook(notebook, run, given)["skipped"]
    (run / "nb" / "log.txt").unlink()  # an artefact that is gone is made again
    assert "skipped" not in runner.run_notebook(notebook, run, given)


def test_stages_depend_on_the_contents_of_folders(tmp_path):
    """Of folders that parameters name: test_parameters.py."""
    run, second = tmp_path / "run", write_notebook(tmp_path, "second", uses=["earlier"])  # where it is there

    def earlier(text):
        stage = begin("earlier", run, {})
        model = stage.artifact("out", "model", "A model")
        model.mkdir(exist_ok=True)
        (model / "weights.txt").write_text(text)
        stage.finish()

    assert runner.plan(second, run).inputs == {"earlier": {}}
    earlier("a")
    runner.run_notebook(second, run)
    earlier("a")  # the same artefacts again
    assert runner.plan(second, run).done
    earlier("b")
    assert "second failed, or is older" in report.write_index(run).read_text()
    assert "skipped" not in runner.run_notebook(second, run)
    assert "or is older" not in report.write_index(run).read_text()


def test_what_was_changed_after_its_stage_completed_is_not_used(tmp_path, capsys):
    leaves = 'out = stage.artifact("out", "model", "A model")\nout.mkdir()\n(out / "users.json").write_text("ab")'
    notebook, run = write_notebook(tmp_path, "nb", leaves), tmp_path / "run"
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


def test_only_a_completed_stage_takes_a_completed_ones_place(tmp_path, capsys):
    notebook, run = write_notebook(tmp_path, "nb", "if n == 4: raise ValueError"), tmp_path / "run"
    for n in (3, 4, 5):
        runner.run_notebook(notebook, run, {"n": n})
    places = {".previous/nb": "ann 3\n", ".previous/nb.unfinished": "ann 4\n", "nb": "ann 5\n"}
    assert {place: (run / place / "log.txt").read_text() for place in places} == places
    assert f"the completed stage is replaced, and kept in {run}/.previous/nb\n" in capsys.readouterr().out


@pytest.fixture
def line(tmp_path):
    """The end of a command line: a run in `tmp_path`/r."""
    return ["--out", str(tmp_path), "--run", "r"]


def test_command_line(tmp_path, line, capsys):
    good = str(write_notebook(tmp_path, "good", 'stage.note("4 of 16 pairs kept")'))
    bad = str(write_notebook(tmp_path, "bad", "1 / 0"))
    assert cli.main(["run", good, *line, "-p", "run_dir", "3"]) == 2
    assert "set with --run and --out" in capsys.readouterr().err
    for how in (r"\d+ s", "unchanged, skipped"):
        assert cli.main(["run", good, bad, *line, "-p", "n", "4"]) == 1
        out, err = capsys.readouterr()
        assert re.search(rf"good completed \({how}\)\n  4 of 16 pairs kept", out)
        assert "ZeroDivisionError" in err
    page = (tmp_path / "r" / "index.html").read_text()
    assert "ZeroDivisionError" in page
    assert page.index("good/notebook.html") > page.index("bad/notebook.html")
    assert cli.main(["figures", str(tmp_path / "r")]) == 2
    assert "holds no stage that draws figures" in capsys.readouterr().err


def test_parameters_are_listed_and_read_from_a_file(tmp_path, line, capsys):
    words, file = ["run", str(write_notebook(tmp_path, "nb")), *line], tmp_path / "p.yaml"
    assert cli.main([*words, "--help-notebook"]) == 0
    assert PARAMETERS.strip() in capsys.readouterr().out
    file.write_text("n: 4\nrate: 5e-1\n")
    assert cli.main([*words, "-f", str(file), "-p", "n", "5"]) == 0
    found = read_record(tmp_path / "r" / "nb")["parameters"]
    assert (found["n"], found["rate"]) == (5, 0.5)
    file.write_text("- n")
    assert cli.main([*words, "-f", str(file)]) == 2
    assert "holds no mapping of parameters" in capsys.readouterr().err


def test_what_is_missing_or_wrong_is_known_before_a_kernel_starts(tmp_path, line, capsys, monkeypatch):
    monkeypatch.setattr(runner, "execute", lambda *_: pytest.fail("a kernel was started"))
    (tmp_path / "file").touch()
    for notebook, words, message in (
        ({"needs": ["a"]}, (), f"needs the stage a of {tmp_path}/r completed, found: nothing. Run it first"),
        ({"parameters": 'model = "tiny-model"'}, ("-p", "model", "tini-model"), "Did you mean 'tiny-model'?"),
        ({}, ("--copy-to", "nowhere://host/x?sig=abc"), "--copy-to nowhere://host/x: Protocol not known: nowhere"),
        ({}, ("--copy-to", str(tmp_path / "file")), "is a file; expected a folder"),
        ({}, ("--out", "s3://bucket"), "is an address, expected a local folder"),
    ):
        assert cli.main(["run", str(write_notebook(tmp_path, "nb", **notebook)), *line, *words]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert "abc" not in err
    assert not (tmp_path / "r").exists()
    write_json(tmp_path / "r" / "a" / "run.json", RECORD | {"status": "failed"})
    assert cli.main(["run", str(write_notebook(tmp_path, "nb", needs=["a"])), *line]) == 2
    assert "completed, found: failed" in capsys.readouterr().err


def test_defaults_that_differ_from_the_committed_notebook_are_named(tmp_path, line, capsys, monkeypatch):
    monkeypatch.setattr(runner, "execute", lambda *_: (1, "not run"))
    notebook = write_notebook(tmp_path, "nb")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init"], ["add", notebook], ["commit", "-m", "a"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    commands.tell_edits([notebook], [])
    assert capsys.readouterr().err == ""
    write_notebook(tmp_path, "nb", parameters=PARAMETERS.replace("n = 3", "n = 4").replace("0.5", "0.4"))
    assert cli.main(["run", str(notebook), *line, "-p", "n", "5"]) == 1
    assert "nb: parameters differ from the committed notebook: rate 0.4 (committed: 0.5)" in capsys.readouterr().err


@pytest.fixture
def store(monkeypatch):
    """A store behind HTTP PUT: `status` is what it answers, `kept` is address -> body."""
    found = SimpleNamespace(status=200, kept={})

    def put(url, content, timeout):
        if found.status == 200:
            found.kept[url] = json.loads(content)
        return httpx.Response(found.status, request=httpx.Request("PUT", url))

    monkeypatch.setattr(httpx, "put", put)
    return found


def test_every_stage_is_copied_and_a_failed_copy_does_not_lose_the_run(tmp_path, line, store, capsys):
    good, bad = (str(write_notebook(tmp_path, name, *cells)) for name, *cells in (["good"], ["bad", "1 / 0"]))
    place = "127.0.0.1/store"
    store.status = 503
    assert cli.main(["run", good, *line, "--copy-to", f"http://me:hunter2@{place}?sig=abc"]) == 74
    out, err = capsys.readouterr()
    assert f"http://{place}/r/good/notebook.ipynb was not written: HTTPStatusError: " in err
    assert "the same command copies it" in err
    assert not any(secret in out + err for secret in ("hunter2", "abc"))
    assert read_record(tmp_path / "r" / "good")["status"] == "completed"
    assert (tmp_path / "r" / "index.html").exists()

    store.status = 200
    for url in (f"http://{place}?sig=abc", str(tmp_path / "new" / "folder")):
        assert cli.main(["run", good, bad, *line, "--copy-to", url]) == 1  # the skipped one is copied, and the failed
        assert "copied to " + url.partition("?")[0] + "/r/good/notebook.ipynb" in capsys.readouterr().out
    assert starts(tmp_path / "r" / "good") == 1
    for stage in ("good", "bad"):
        executed = (tmp_path / "r" / stage / "notebook.ipynb").read_text()
        assert (tmp_path / "new" / "folder" / "r" / stage / "notebook.ipynb").read_text() == executed
        kept = store.kept[f"http://{place}/r/{stage}/notebook.ipynb?sig=abc"]
        assert len(kept["cells"]) == len(json.loads(executed)["cells"])
