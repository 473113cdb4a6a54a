"""`docs/scale.md`: its commands are understood, and the image is made of what is there."""

import re
import shlex
from pathlib import Path

from accelerate.commands.launch import launch_command_parser
from test_cli import commands_in

from prlhf_kit import cli
from prlhf_kit.runs import parameters

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scale.md"


def test_commands_of_the_page_are_understood():
    """That they parse: test_cli."""
    text = PAGE.read_text().replace("\\\n", " ").replace("$RANK", "1")
    found = [cli.parser().parse_args(words[1:]) for words in commands_in(text) if words[1:2] == ["run"]]
    assert len(found) >= 2
    for args in found:
        known = {name for notebook in args.notebooks for name in parameters.defaults(ROOT / notebook)}
        assert set(dict(args.parameter or [])) <= known
    [line] = re.findall(r"accelerate launch (.*)", text)
    args = launch_command_parser().parse_args(shlex.split(line.split(" > ")[0]))
    assert (ROOT / args.config_file).is_file()
    assert args.training_script == "prlhf_kit.training.recipe"


def test_image_is_made_of_what_is_there_and_runs_as_nobody_special():
    lines = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    copied = [name for what, rest in steps if what == "COPY" for name in rest.split()[:-1]]
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    for name in copied:
        assert (ROOT / name).exists()
        assert name not in left_out
    after = steps[max(i for i, (what, _) in enumerate(steps) if what == "RUN") :]
    assert ["USER", "kit"] in after
    assert {"pyproject.toml", "constraints.txt", "prlhf_kit", "notebooks", "configs"} <= set(copied)
