"""A notebook opened in JupyterLab and run there, cell after cell, by Run All Cells."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import expect

from browser.conftest import CHEAP, ROOT, assert_contrast, shot

NAME = "07_compare_responses.ipynb"


@contextmanager
def jupyterlab(folder):
    """JupyterLab on `folder`, with settings of its own; the address of a file in it, less the file's name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "themes.jupyterlab-settings").write_text('{"adaptive-theme": true}')  # light or dark as the system is
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    own = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    environment = os.environ | {f"JUPYTER_{name}": str(folder / path) for name, path in own.items()}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "OMP_NUM_THREADS": "1",
                    "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "JUPYTER_TOKEN": token}  # fmt: skip
    line = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
            f"--ServerApp.root_dir={folder / 'notebooks'}",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly",
            "--ServerApp.log_level=ERROR"]  # fmt: skip
    with subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(240):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, "JupyterLab ended"
                time.sleep(0.25)
            yield lambda name: f"http://127.0.0.1:{port}/lab/workspaces/{name[:2]}/tree/{name}?token={token}"
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def opened(tiny_run, tiny_folder, tmp_path_factory):
    """The checkout's notebook with a cheap setting, as papermill would write it into it, in a JupyterLab."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    cheap = CHEAP | {"run_dir": str(tiny_run), "model": str(tiny_folder)}
    notebook = parameterize_notebook(load_notebook_node(str(ROOT / "notebooks" / NAME)), cheap)
    nbformat.write(notebook, folder / "notebooks" / NAME)
    with jupyterlab(folder) as address:
        yield folder / "notebooks" / NAME, address(NAME)


def run_all(page, file, timeout=120):
    """Run All Cells, and wait until the saved file says that every code cell has run."""
    page.get_by_text("| Idle").wait_for()  # the kernel is there
    page.locator(".jp-Notebook").get_by_role("heading").first.click()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        page.wait_for_timeout(1500)
        page.keyboard.press("Control+s")
        cells = [c for c in json.loads(file.read_text())["cells"] if c["cell_type"] == "code"]
        errors = [o for c in cells for o in c["outputs"] if o["output_type"] == "error"]
        assert not errors, errors[0]["evalue"]
        if all(c["execution_count"] for c in cells):
            return
    raise AssertionError(f"{file.name} did not end in {timeout} s")


def test_the_comparison_answers(opened, open_page):
    file, address = opened
    page = open_page(address)
    run_all(page, file)
    generate = page.get_by_role("button", name="Generate")
    generate.scroll_into_view_if_needed()
    page.get_by_label("or type one").fill("Is tea good?")
    page.keyboard.press("Control+Enter")  # JupyterLab would run the cell again
    page.locator('.prlhf-status [data-state="done"]').wait_for()
    expect(page.get_by_role("status").filter(has_text="Done")).to_be_visible()
    answers = page.get_by_role("region", name="Answers").get_by_role("article")
    assert answers.count() >= 4
    assert all(answer.get_attribute("data-state") == "done" for answer in answers.all())
    assert re.search(r"\w", answers.first.locator(".prlhf-text").inner_text())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.locator(f'body[data-jp-theme-light="{str(scheme == "light").lower()}"]').wait_for(state="attached")
        page.wait_for_timeout(500)  # the theme's style sheet
        assert_contrast(page, ".prlhf-compare")
        shot(page, f"lab-{scheme}")
