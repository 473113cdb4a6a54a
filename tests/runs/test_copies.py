"""Copies of executed notebooks in other stores (`prlhf run --copy-to`), by fsspec."""

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
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_every_stage_is_copied_and_a_failed_copy_does_not_lose_the_run(make_notebook, tmp_path, server, capsys):
    notebooks = [str(make_notebook(FINISH, name="good")), str(make_notebook("1 / 0", FINISH, name="bad"))]
    place = f"127.0.0.1:{server.server_port}/store"
    line = ["run", *notebooks, "--out", str(tmp_path), "--run", "r", "--copy-to"]
    server.status = 503
    assert cli.main([*line[:2], *line[3:], f"http://me:hunter2@{place}?sig=abc"]) == 74
    out, err = capsys.readouterr()
    assert f"http://{place}/r/good/notebook.ipynb was not written: HTTPStatusError: " in err
    assert "the same command copies it" in err
    assert not any(secret in out + err for secret in ("hunter2", "abc"))
    assert read_record(tmp_path / "r" / "good")["status"] == "completed"
    assert (tmp_path / "r" / "index.html").exists()

    server.status = 200
    for url in (f"http://{place}?sig=abc", str(tmp_path / "new" / "folder")):
        assert cli.main([*line, url]) == 1  # the one that is skipped is copied, and the one that fails
        assert "copied to " + url.partition("?")[0] + "/r/good/notebook.ipynb" in capsys.readouterr().out
    for stage in ("good", "bad"):
        executed = (tmp_path / "r" / stage / "notebook.ipynb").read_text()
        assert (tmp_path / "new" / "folder" / "r" / stage / "notebook.ipynb").read_text() == executed
        kept = server.kept[f"/store/r/{stage}/notebook.ipynb?sig=abc"]
        assert len(kept["cells"]) == len(json.loads(executed)["cells"])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere://host/x?sig=abc", "--copy-to nowhere://host/x: Protocol not known: nowhere"),
        ("FILE", "is a file; expected a folder"),
    ],
)
def test_stores_that_cannot_be_written_are_refused_before_anything_runs(make_notebook, tmp_path, capsys, url, message):
    (tmp_path / "file").touch()
    url = url.replace("FILE", str(tmp_path / "file"))
    line = ["run", str(make_notebook(FINISH)), "--out", str(tmp_path), "--run", "r", "--copy-to", url]
    assert cli.main(line) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "abc" not in err
    assert not (tmp_path / "r").exists()
