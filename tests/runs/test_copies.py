"""Copies of executed notebooks in other stores (`prlhf run --copy-to`), by fsspec."""

import json
from types import SimpleNamespace

import httpx2 as httpx
import pytest

from prlhf_kit import cli
from prlhf_kit.runs.stage import read_record
from runs.conftest import FINISH


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


def test_every_stage_is_copied_and_a_failed_copy_does_not_lose_the_run(make_notebook, tmp_path, store, capsys):
    notebooks = [str(make_notebook(FINISH, name="good")), str(make_notebook("1 / 0", FINISH, name="bad"))]
    place = "127.0.0.1/store"
    line = ["run", *notebooks, "--out", str(tmp_path), "--run", "r", "--copy-to"]
    store.status = 503
    assert cli.main([*line[:2], *line[3:], f"http://me:hunter2@{place}?sig=abc"]) == 74
    out, err = capsys.readouterr()
    assert f"http://{place}/r/good/notebook.ipynb was not written: HTTPStatusError: " in err
    assert "the same command copies it" in err
    assert not any(secret in out + err for secret in ("hunter2", "abc"))
    assert read_record(tmp_path / "r" / "good")["status"] == "completed"
    assert (tmp_path / "r" / "index.html").exists()

    store.status = 200
    for url in (f"http://{place}?sig=abc", str(tmp_path / "new" / "folder")):
        assert cli.main([*line, url]) == 1  # the one that is skipped is copied, and the one that fails
        assert "copied to " + url.partition("?")[0] + "/r/good/notebook.ipynb" in capsys.readouterr().out
    for stage in ("good", "bad"):
        executed = (tmp_path / "r" / stage / "notebook.ipynb").read_text()
        assert (tmp_path / "new" / "folder" / "r" / stage / "notebook.ipynb").read_text() == executed
        kept = store.kept[f"http://{place}/r/{stage}/notebook.ipynb?sig=abc"]
        assert len(kept["cells"]) == len(json.loads(executed)["cells"])


def test_stores_that_cannot_be_written_are_refused_before_anything_runs(make_notebook, tmp_path, capsys):
    (tmp_path / "file").touch()
    line = ["run", str(make_notebook(FINISH)), "--out", str(tmp_path), "--run", "r", "--copy-to"]
    for url, message in (
        ("nowhere://host/x?sig=abc", "--copy-to nowhere://host/x: Protocol not known: nowhere"),
        (str(tmp_path / "file"), "is a file; expected a folder"),
    ):
        assert cli.main([*line, url]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert "abc" not in err
    assert not (tmp_path / "r").exists()
