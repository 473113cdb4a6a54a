"""Notebooks that run in a moment, and the command that runs them."""

import sys

import nbformat
import pytest

PARAMETERS = """run_dir = "x"  # where results go
user = "ann"  # text
n = 3  # whole number
rate = 0.5  # number
on = True  # flag
limit = None  # open
"""
BODY = """from prlhf_kit.runs.stage import begin
stage = begin("{name}", run_dir, globals())
(stage.dir / "log.txt").open("a").write(f"{user}{n}")
stage.artifact("log.txt", "data", "A log")
"""
FINISH = 'stage.finish({"twice": 2 * n})'


@pytest.fixture
def make_notebook(tmp_path):
    def make(*cells, name="nb", needs=(), uses=(), tags=("parameters",), body=BODY, parameters=PARAMETERS):
        nb = nbformat.v4.new_notebook()
        first = nbformat.v4.new_code_cell(parameters, metadata={"tags": list(tags)})
        nb.cells = [first, *map(nbformat.v4.new_code_cell, [body.replace("{name}", name), *cells])]
        nb.metadata["prlhf_kit"] = {"needs": list(needs), "uses": list(uses)}
        nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(nb, path)
        return path

    return make


def command(*arguments):
    return [sys.executable, "-m", "prlhf_kit.cli", "run", *map(str, arguments)]
