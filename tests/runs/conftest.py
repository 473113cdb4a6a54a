"""Notebooks that run in a moment, and the command that runs them."""

import pytest
from tiny_notebooks import write_notebook

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
RECORD = {
    "schema": 1,
    "status": "completed",
    "parameters": {"seed": 0, "alpha": 0.5},
    "metrics": {"accuracy": 0.75},
    "artifacts": {},
    "versions": dict.fromkeys(("python", "prlhf_kit", "torch", "transformers", "trl"), "1"),
    "git": {"commit": "a9319a1f12fa1a9b8263350214f7b4d97ed3c563", "dirty": False},
    "started": "2026-11-21T06:39:20+00:00",
}
FINISH = 'stage.finish({"twice": 2 * n})'


@pytest.fixture
def make_notebook(tmp_path):
    def make(*cells, name="nb", parameters=PARAMETERS, body=BODY, **more):
        return write_notebook(tmp_path, name, *cells, parameters=parameters, body=body, finish=None, **more)

    return make
