"""`prlhf app` over HTTP: who gets in, what can be fetched, and that nothing is left when it ends."""

import http.client
import json
import re
import signal
import socket
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
import websockets
from jupyter_client.session import Session
from runs.conftest import RECORD
from websockets.sync.client import connect

from compare.conftest import serving
from prlhf_kit import cli
from prlhf_kit.compare import app
from prlhf_kit.files import write_json

SECRET = "c0ffee-not-for-the-browser"
TEMPLATE_FILE = "voila/templates/lab/static/index.css"
CELLS = (
    f"print('in', run_dir, votes, n)  # {SECRET}",
    "import os; print('pid', os.getpid(), 'cwd', os.getcwd())",
    "raise ValueError('broken <b>on purpose</b>')",
    "print('after the error')",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with all that `prlhf app` looks for before it serves, and its notebook."""
    folder = tmp_path_factory.mktemp("app") / "demo"
    for stage in app.NEEDED:
        write_json(folder / stage / "run.json", RECORD | {"parameters": {"x": SECRET}})
    (folder / "votes.jsonl").write_text(SECRET)
    (folder / "figure.png").write_text(SECRET)
    v4 = nbformat.v4
    notebook = v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}})
    parameters = "run_dir = 'none'  # the run\nvotes = ''  # a file\nn = 1  # a number"
    notebook.cells = [v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), *map(v4.new_code_cell, CELLS)]
    nbformat.write(notebook, folder.parent / "page.ipynb")
    return folder


@pytest.fixture(scope="module")
def address(run):
    options = "--notebook", run.parent / "page.ipynb", "--votes", run / "votes.jsonl", "-p", "n", "7"
    with serving(run, *options) as (_, address):
        yield address


def fetch(address, path="/", token=True, method="GET", headers=None):
    """Status, text and headers of a path, which is sent as it is: clients with good manners would mend it."""
    url = urlsplit(address)
    headers = dict(headers or {})
    if token:
        headers["Authorization"] = "token " + url.query.removeprefix("token=")
    with closing(http.client.HTTPConnection(url.hostname, url.port, timeout=60)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace"), response.headers


def kernel_of(page):
    return re.search(r'"kernelId": "([\w-]+)"', page).group(1)


def test_the_page_runs_the_notebook_without_its_code(run, address):
    before = (run.parent / "page.ipynb").read_bytes()
    status, page, _ = fetch(address)
    assert status == 200
    assert f"in {run} {run / 'votes.jsonl'} 7" in page
    assert f"cwd {run.parent}" in page
    assert "<title>demo - prlhf_kit</title>" in page
    assert SECRET not in page  # it stands in the code
    assert len(urlsplit(address).query) > 40
    assert "ValueError" in page  # an error is shown where it happened
    assert "<b>on purpose</b>" not in page
    assert "after the error" not in page
    assert (run.parent / "page.ipynb").read_bytes() == before


def test_the_address_alone_lets_nobody_in(address):
    static = ["/voila/static/voila.js", f"/{TEMPLATE_FILE}", "/voila/files/figure.png"]
    static += ["/voila/labextensions/@jupyter-widgets/jupyterlab-manager/package.json", "/voila/api/themes/x/index.css"]
    kernel = "/api/kernels/" + kernel_of(fetch(address)[1])
    for wrong in ({}, {"Authorization": ""}, {"Authorization": "token wrong"}):
        for path in ("/", "/?token=wrong", "/any.ipynb", "/voila/render/index.ipynb"):
            status, page, headers_back = fetch(address, path, token=False, headers=wrong)
            assert (status, page) == (302, "")
            assert headers_back["Location"].startswith("/login")
        for path in [*static, kernel, f"{kernel}/channels"]:
            assert fetch(address, path, token=False, headers=wrong)[0] == 403, path
        for method, path in (("DELETE", kernel), ("POST", f"/voila/api/shutdown/{kernel.rpartition('/')[2]}")):
            assert fetch(address, path, token=False, headers=wrong, method=method)[0] == 403
    assert fetch(address, kernel)[0] == 200  # still there
    assert fetch(address, f"/{TEMPLATE_FILE}")[0] == 200


def test_no_file_of_the_run_or_the_machine_can_be_fetched(run, address):
    (run.parent / "link.png").symlink_to(run / "votes.jsonl")
    wanted = ["/etc/passwd", *(str(path) for path in (run / "votes.jsonl", run.parent / "link.png"))]
    paths = ["/index.ipynb", "/index.html.j2", "/figure.png", "/voila/files/figure.png", "/voila/files/index.ipynb"]
    steps = ("", "/", *(12 * step for step in ("../", "%2e%2e/", "..%2f", "..%5c", "%252e%252e%252f")))
    roots = [f"/voila/{root}/" for root in ("files", "static", "templates/lab/static", "labextensions", "api/themes")]
    paths += [root + step + name.lstrip("/") for root in ["/", *roots] for step in steps for name in wanted]
    for path in paths:
        status, text, _ = fetch(address, path)
        assert status in (302, 400, 403, 404, 500), path
        assert SECRET not in text, path
        assert "root:" not in text, path


def test_a_page_elsewhere_learns_and_changes_nothing(address):
    _, page, _ = fetch(address, "/?template=reveal&theme=%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    assert "alert(1)" not in page
    assert "reveal.js" not in page
    _, _, headers = fetch(address, f"/?{urlsplit(address).query}", token=False)
    assert headers["Referrer-Policy"] == "no-referrer"  # the address holds the token
    cookies = headers.get_all("Set-Cookie")
    assert len(cookies) == 2
    assert all("SameSite=Strict" in cookie for cookie in cookies)
    assert "frame-ancestors 'self'" in headers["Content-Security-Policy"]
    # a web page elsewhere can let its own name point to 127.0.0.1 (DNS rebinding)
    assert fetch(address, headers={"Host": "evil.example"})[0] == 403
    assert fetch(address, f"/{TEMPLATE_FILE}", headers={"Host": f"localhost:{urlsplit(address).port}"})[0] == 200


def test_a_page_sends_widgets_messages_only(run, address, tmp_path):
    url = urlsplit(address)
    channels = f"ws://{url.hostname}:{url.port}/api/kernels/{kernel_of(fetch(address)[1])}/channels"
    token = {"Authorization": "token " + url.query.removeprefix("token=")}
    session, kinds = Session(), []
    for refused in ({}, {"origin": "http://evil.example", "additional_headers": {"Cookie": "x=y"}}):
        with pytest.raises(websockets.InvalidStatus) as error, connect(channels, **refused):
            pass
        assert error.value.response.status_code == 403
    with connect(channels, additional_headers=token) as page:
        for kind, content in (
            ("execute_request", {"code": f"open({str(tmp_path / 'made')!r}, 'w')", "silent": False}),
            ("kernel_info_request", {}),
        ):
            message = session.msg(kind, content)
            message["header"]["date"] = "2000-01-01T00:00:00Z"
            page.send(json.dumps(message | {"channel": "shell", "buffers": []}, default=str))
        while "kernel_info_reply" not in kinds:
            kinds.append(json.loads(page.recv(timeout=20))["msg_type"])
    assert "execute_reply" not in kinds  # the second question is answered, the first is not heard
    assert not (tmp_path / "made").exists()


def test_so_many_pages_are_open_and_ending_it_ends_their_kernels(run):
    with socket.socket() as taken, tempfile.TemporaryDirectory(dir="/tmp") as short:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = "--notebook", run.parent / "page.ipynb", "--port", port, "--pages", "1"
        with serving(run, *options, stderr=subprocess.PIPE, TMPDIR=short, JUPYTER_TOKEN="chosen") as (server, address):
            assert address.endswith("/?token=chosen")
            assert urlsplit(address).port != port  # which is left alone
            with ThreadPoolExecutor(3) as pool:
                (status, page), *others = sorted(pool.map(lambda _: fetch(address)[:2], range(3)))
            assert status == 200
            assert [(s, "1 pages are open already" in text) for s, text in others] == [(503, True)] * 2
            kernel = int(re.search(r"pid (\d+)", page)[1])
            assert Path(f"/proc/{kernel}").exists()
            [scratch] = Path(short).glob("prlhf-app-*")
            assert scratch.stat().st_mode & 0o077 == 0
            server.send_signal(signal.SIGINT)  # a test's end sends SIGTERM
            err = server.communicate(timeout=30)[1]
            assert server.returncode == 0, err
            assert not Path(f"/proc/{kernel}").exists()
            assert list(Path(short).iterdir()) == []
            assert "Traceback" not in err


def test_what_can_not_be_served_and_wrong_options_are_refused(run, tmp_path, capsys):
    data, training = app.NEEDED
    (failed := tmp_path / "failed").mkdir()
    for stage, status in ((data, "completed"), (training, "failed")):
        write_json(failed / stage / "run.json", RECORD | {"status": status})
    (nothing := tmp_path / "nothing").mkdir()
    for folder, options, messages in (
        (nothing, [], [f"{nothing} holds no run"]),
        (failed, [], [f"stage {training} of {failed} is failed", "--run failed"]),
        (run, ["--port", "0"], ["--port is 0 and --pages 8; expected a port from 1 to 65535"]),
        (run, ["-p", "run_dir", "x"], ["are set with RUN and --votes"]),
        (run, ["--notebook", "nowhere.ipynb"], ["there is no notebook nowhere.ipynb"]),
    ):
        assert cli.main(["app", str(folder), "--notebook", str(run.parent / "page.ipynb"), *options]) == 2
        err = capsys.readouterr().err
        assert all(message in err for message in messages)
