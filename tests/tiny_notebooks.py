"""Notebooks that take a second: one parameters cell, the stage's begin and finish, and what a test puts between."""

import time

import nbformat

PARAMETERS = 'run_dir = "x"\nuser = "ann"\nn = 3\nrate = 0.5\non = True\nnames = ["a"]\nlimit = None\nseed = 0\n'
BODY = """from pathlib import Path
import json, os, signal, time
from prlhf_kit.runs.stage import begin
stage = begin("{name}", run_dir, globals())
with stage.artifact("log.txt", "data", "A line for each start").open("a") as f:
    print(stage.parameters.get("user"), stage.parameters.get("n"), file=f)
"""
FINISH = 'stage.finish({"twice": 2 * n})'


def write_notebook(folder, name, *cells, needs=(), uses=(), parameters=PARAMETERS, finish=FINISH, tags=("parameters",)):
    """`<folder>/<name>.ipynb` with `cells` between the stage's begin and `finish`."""
    nb = nbformat.v4.new_notebook()
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": list(tags)})
    texts = [BODY.replace("{name}", name), *cells, *filter(None, [finish])]
    nb.cells = [first, *map(nbformat.v4.new_code_cell, texts)]
    nb.metadata["prlhf_kit"] = {"needs": list(needs), "uses": list(uses)}
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / f"{name}.ipynb"
    nbformat.write(nb, path)
    return path


def starts(stage):
    """How often a stage with this body has begun in this folder."""
    return len((stage / "log.txt").read_text().splitlines()) if (stage / "log.txt").exists() else 0


def wait_for(condition, seconds=90):
    """Return when `condition()` holds; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
