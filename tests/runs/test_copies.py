"""Copies of executed notebooks in other stores (`prlhf run --copy-to`), by fsspec."""

import importlib.util
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from prlhf_kit import cli
from prlhf_kit.runs.stage import read_record
from runs.conftest import FINISH


@pytest.fixture
def server():
    """A store behind HTTP PUT; `status` is what it answers, `kept` is path -> body."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.server.status == 200:
                self.server.kept[self.path] = json.loads(body)
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.status, server.kept = 200, {}
        server.url = f"http://127.0.0.1:{server.server_port}/store"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_every_stage_is_copied_the_failed_one_too(make_notebook, tmp_path, server, capsys):
    good, bad = make_notebook(FINISH, name="good"), make_notebook("1 / 0", FINISH, name="bad")
    line = ["run", str(good), str(bad), "--out", str(tmp_path), "--run", "r", "--copy-to"]
    assert cli.main([*line, f"{server.url}/?sig=secret"]) == 1
    out, _ = capsys.readouterr()
    assert f"good copied to {server.url}/r/good/notebook.ipynb" in out
    assert "secret" not in out
    assert set(server.kept) == {f"/store/r/{stage}/notebook.ipynb?sig=secret" for stage in ("good", "bad")}
    for stage in ("good", "bad"):
        kept = server.kept[f"/store/r/{stage}/notebook.ipynb?sig=secret"]
        assert kept == json.loads((tmp_path / "r" / stage / "notebook.ipynb").read_text())
    assert any("ZeroDivisionError" in str(cell.get("outputs")) for cell in kept["cells"])

    assert cli.main([*line, str(tmp_path / "new" / "folder")]) == 1  # local; the stage that is skipped is copied too
    for stage in ("good", "bad"):
        copied = (tmp_path / "new" / "folder" / "r" / stage / "notebook.ipynb").read_text()
        assert copied == (tmp_path / "r" / stage / "notebook.ipynb").read_text()


def test_a_failed_copy_does_not_lose_the_run(make_notebook, tmp_path, server, capsys):
    notebooks = [str(make_notebook(FINISH, name=name)) for name in ("one", "two")]
    url = server.url.replace("http://", "http://me:hunter2@") + "?sig=abc"
    line = ["run", *notebooks, "--out", str(tmp_path), "--run", "r", "--copy-to", url]
    server.status = 503
    assert cli.main(line) == 74
    out, err = capsys.readouterr()
    assert f"{server.url}/r/one/notebook.ipynb was not written: HTTPStatusError: " in err
    assert "the same command copies it" in err
    assert not any(secret in out + err for secret in ("hunter2", "abc"))
    assert (tmp_path / "r" / "index.html").exists()
    assert [read_record(tmp_path / "r" / name)["status"] for name in ("one", "two")] == ["completed"] * 2
    server.status = 200
    assert cli.main(line) == 0
    assert len(server.kept) == 2
    assert "two completed (unchanged, skipped)" in capsys.readouterr().out
    server.shutdown()
    server.server_close()
    assert cli.main(line) == 74
    assert "ConnectError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere://host/x?sig=abc", "--copy-to nowhere://host/x: Protocol not known: nowhere"),
        ("FILE", "is a file; expected a folder"),
        ("gs://bucket/runs", "gcsfs"),
    ],
)
def test_stores_that_cannot_be_written_are_refused_before_anything_runs(make_notebook, tmp_path, capsys, url, message):
    if url.startswith("gs") and importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed, so fsspec can write there")
    (tmp_path / "file").touch()
    url = url.replace("FILE", str(tmp_path / "file"))
    line = ["run", str(make_notebook(FINISH)), "--out", str(tmp_path), "--run", "r", "--copy-to", url]
    assert cli.main(line) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "abc" not in err
    assert not (tmp_path / "r").exists()
