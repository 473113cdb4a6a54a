"""Copies of executed notebooks in other stores (`prlhf run --copy-to`), by papermill's own handlers."""

import importlib.util
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from prlhf_kit import cli
from prlhf_kit.runs import copies
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
    assert f"{server.url}/r/one/notebook.ipynb was not written: HTTPError: 503" in err
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
    assert "ConnectionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", r"writes to no ftp:// store. Expected a local folder, or one of abs://, adl://, gs://"),
        ("https://github.com/me/mine", "not write to it"),
        ("FILE", "is a file; expected a folder"),
        ("s3://bucket/runs", r"boto3 optional dependency is missing.* pip install papermill\[s3\]"),
        ("abs://me.blob.core.windows.net/c?sig=abc", r"papermill\[azure\]"),
    ],
)
def test_stores_that_cannot_be_written_are_refused_before_anything_runs(make_notebook, tmp_path, capsys, url, message):
    package = {"s3": "boto3", "abs": "azure"}.get(url.partition(":")[0])
    if package and importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed, so papermill can write to {url}")
    (tmp_path / "file").touch()
    url = url.replace("FILE", str(tmp_path / "file"))
    line = ["run", str(make_notebook(FINISH)), "--out", str(tmp_path), "--run", "r", "--copy-to", url]
    assert cli.main(line) == 2
    with pytest.raises(copies.RunError, match=message):
        copies.check_store(url)
    assert "abc" not in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_the_clients_that_are_looked_for_are_papermills():
    """The check reads names of papermill's module; another release that renames them must not pass in silence."""
    from papermill import iorw

    schemes = {name.partition("://")[0] for name, _ in iorw.papermill_io._handlers if "://" in name}
    assert schemes == {*copies.CLIENTS, "http", "https"}
    assert all(hasattr(iorw, client) for client in copies.CLIENTS.values())
