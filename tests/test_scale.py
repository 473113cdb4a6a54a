"""`docs/scale.md`: its commands are understood, and the image is made of what is there."""

import re
import shlex
from pathlib import Path

import nbformat
import pytest
from accelerate.commands.launch import launch_command_parser

from prlhf_kit import cli
from prlhf_kit.runs import parameters

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scale.md"


def _commands(page, *programs):
    """What follows one of `programs` in the lines of the page's fences, as arguments."""
    fences = re.findall(r"^```bash[^\n]*\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    found = []
    for line in "\n".join(fences).replace("\\\n", " ").replace("$RANK", "1").splitlines():
        words = shlex.split(line.split(" > ")[0], comments=True)
        at = next((i for i, word in enumerate(words) if word in programs), None)
        if at is not None and words[0] != "cd" and words[:2] != ["docker", "build"]:
            found.append(words[at + 1 :])
    return found


def test_commands_of_the_page_are_understood():
    found = _commands(PAGE, "prlhf", ".venv/bin/prlhf", "prlhf_kit")  # the last is the container's image
    assert [words[0] for words in found].count("run") == 3
    assert {words[0] for words in found} == {"run", "data", "bundle"}
    for words in found:
        args = cli.parser().parse_args(words)
        for notebook in getattr(args, "notebooks", []):
            assert set(dict(args.parameter or [])) <= {
                name for n in args.notebooks for name in parameters.defaults(ROOT / n)
            }
            assert (ROOT / notebook).is_file()
    [words] = _commands(PAGE, "accelerate")
    args = launch_command_parser().parse_args(words[1:])
    assert (ROOT / args.config_file).is_file()
    assert args.training_script == "prlhf_kit.training.recipe"


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda n: n.stem)
def test_notebook_says_how_long_it_takes(notebook):
    first = nbformat.read(notebook, as_version=4).cells[0].source
    assert re.search(r"^\*Expected time: about [^*]+ CPU cores?[^*]*\*", first, re.MULTILINE)


def test_image_is_made_of_what_is_there_and_runs_as_nobody_special():
    lines = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    copied = [name for what, rest in steps if what == "COPY" for name in rest.split()[:-1]]
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    for name in copied:
        assert (ROOT / name).exists()
        assert name not in left_out
    order = [what for what, _ in steps]
    assert "USER" not in order[: len(order) - 1 - order[::-1].index("RUN")]
    assert [rest for what, rest in steps if what == "USER"] == ["kit"]
    assert {"pyproject.toml", "constraints.txt", "prlhf_kit", "notebooks", "configs"} <= set(copied)
