"""The tutorials: every command in them (but for a GPU node, `UNPLAYED`) is run, in order, in a copy of the checkout.

Fences of `bash` and `python` are run; a `text` fence is what the one before it prints, with `...` for anything. A
`python` fence that begins with `# name.py` is saved under that name, for others to import. What can't be run here says
`no-test:` and why. In place of the models that the pages name, a tiny one is trained.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
UNPLAYED = "4_gpu_node"  # its `prlhf` line is read by test_cli
MARK = "@@ step {} @@"


def fences(page):
    """(language, what stands behind it, text) of each fence."""
    found = re.findall(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(found) * 2 == len(re.findall("^```", page.read_text(), re.MULTILINE)), "a fence without a language"
    return found


def script(page, settings):
    """The page as one bash script, and what each of its steps is expected to print."""
    lines, expected = ["exec 2>&1"], {}
    for number, (language, note, text) in enumerate(fences(page)):
        if language == "text":
            expected[number - 1] = text
            continue
        if note:
            known = re.match(r"no-test: \w+", note) and "prlhf run" not in text  # the kit's own commands are run
            assert known, f"{page.name}: ```{language} {note}"
            continue
        for name, value in settings.items():
            text = re.sub(rf"^export {name}=\S*", f"export {name}={shlex.quote(value)}", text, flags=re.MULTILINE)
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            text = f"cat > {name[1] if name else '.step.py'} <<'END OF STEP'\n{text}END OF STEP\n"
            text += "" if name else "python .step.py\n"
        else:
            assert language == "bash", f"{page.name}: what is a fence of {language!r}?"
        lines += [f"echo '{MARK.format(number)}'", text]
    return "\n".join(lines), expected


@pytest.fixture(scope="module")
def play(tiny_folder, tmp_path_factory):
    """`play(page)` follows a page and returns what it printed; the first page's run is there for all others."""
    checkout = tmp_path_factory.mktemp("tutorials") / "checkout"
    for name in ("prlhf_kit", "notebooks", "configs"):
        shutil.copytree(
            ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        )
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),  # in place of the checkout that is installed
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    said = {}

    def play(page):
        if page != PAGES[0] and PAGES[0] not in said:
            play(PAGES[0])
        text, _ = script(page, {"MODEL": str(tiny_folder)})
        line = ["bash", "-euo", "pipefail"]
        done = subprocess.run(line, input=text, cwd=checkout, env=env, stdout=subprocess.PIPE, text=True, check=False)
        said[page] = done.stdout
        assert done.returncode == 0, done.stdout
        return done.stdout

    return play


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_tutorial_works_and_prints_what_it_says(play, page):
    _, expected = script(page, {})
    if page.stem == UNPLAYED:
        return
    printed = play(page)
    for number, text in expected.items():
        before = printed.split(MARK.format(number) + "\n")[1]
        pattern = re.escape(text).replace(r"\.\.\.", ".*?")
        assert re.search(pattern, before.split("@@ step")[0], re.DOTALL), f"{page.name} promises\n{text}\ngot\n{before}"


@pytest.mark.parametrize(
    "page", [*PAGES, *(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")], ids=lambda page: page.stem
)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
