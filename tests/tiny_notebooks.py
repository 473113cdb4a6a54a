"""Notebooks that take a second: one parameters cell, the stage's begin and finish, and what a test puts between."""

import time

import nbformat

PARAMETERS = 'run_dir = "x"\nuser = "ann"\nn = 3\nrate = 0.5\nnames = ["a"]\nlimit = None\nseed = 0\n'
BODY = """from pathlib import Path
import json, os, signal, time
from prlhf_kit.runs.stage import begin
stage = begin("{name}", run_dir, globals())
with (stage.dir / "starts.txt").open("a") as f:
    f.write("x")
"""
FINISH = 'stage.finish({"twice": 2 * n})'


def write_notebook(
    folder, name, *cells, needs=(), uses=(), parameters=PARAMETERS, body=BODY, finish=FINISH, tags=("parameters",)
):
    """`<folder>/<name>.ipynb` with `cells` between the stage's begin and `finish`."""
    nb = nbformat.v4.new_notebook()
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": list(tags)})
    texts = [body.replace("{name}", name), *cells, *filter(None, [finish])]
    nb.cells = [first, *map(nbformat.v4.new_code_cell, texts)]
    nb.metadata["prlhf_kit"] = {"needs": list(needs), "uses": list(uses)}
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / f"{name}.ipynb"
    nbformat.write(nb, path)
    return path


def starts(stage):
    """How often a stage with this body has begun."""
    return len((stage / "starts.txt").read_text()) if (stage / "starts.txt").exists() else 0


def wait_for(condition, seconds=90):
    """Return when `condition()` holds; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
