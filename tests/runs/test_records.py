"""Records of every kind, and what `prlhf runs` makes of them."""

import json
import os
import platform
import re
import time
from pathlib import Path

import pytest
from conftest import build_tiny
from test_notebooks import SMOKE

from prlhf_kit import cli
from prlhf_kit.files import write_json
from prlhf_kit.runs import commands, notebook, records, stage as record_module
from prlhf_kit.runs.records import RunError, read
from prlhf_kit.runs.stage import begin, read_record
from runs.conftest import FINISH

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def described(record):
    """Of a record whose fields docs/runs.md has."""
    table = set(re.findall(r"`(\w+)`", (Path(__file__).parents[2] / "docs" / "runs.md").read_text()))
    assert records.FIELDS <= set(record) <= table
    return record


@pytest.fixture(scope="module")
def twice(tokenizer, tmp_path_factory):
    """Notebooks 01 and 03 on a tiny model, with the same inputs and seed in two folders."""
    folder = tmp_path_factory.mktemp("twice")
    build_tiny("llama", len(tokenizer)).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for run in ("a", "b"):
            for stem in ("01_data_preparation", "03_pdpo_training"):
                parameters = SMOKE[stem] | {"model": str(folder / "tiny")}
                done = notebook.run_notebook(NOTEBOOKS / f"{stem}.ipynb", folder / "runs" / run, parameters)
                assert done["status"] == "completed", done.get("error")
    return folder / "runs"


def test_the_same_inputs_and_seed_give_the_same_metrics(twice, capsys):
    a, b = ({stage: read(path) for stage, path in records.stages(twice / run).items()} for run in "ab")
    for stage, record in a.items():
        assert record["metrics"] == b[stage]["metrics"], stage
        assert len(record["metrics"]) > 3
    assert cli.main(["runs", "diff", str(twice / "a"), str(twice / "b")]) == 0
    assert capsys.readouterr().out == "the same: 01_data_preparation, 03_pdpo_training\n"


def test_fields_of_records_of_every_kind_are_described(twice, make_notebook, tmp_path):
    for path in twice.glob("?/*/run.json"):
        record = described(json.loads(path.read_text()))
        assert record["status"] == "completed"
        assert record["parameters"]["seed"] == 0
    failed = notebook.run_notebook(make_notebook("1 / 0", FINISH, name="bad"), tmp_path / "run")
    assert re.match(r"cell \d raised ZeroDivisionError", described(failed)["error"])
    late = notebook.run_notebook(make_notebook(FINISH, "1 / 0", name="late"), tmp_path / "run")
    assert (described(late)["status"], late["metrics"]) == ("failed", {"twice": 6.0})

    record_module._names.clear()
    stage = begin("lab", tmp_path / "run", {"run_dir": "x", "n": 1})  # as in JupyterLab
    assert described(read_record(stage.dir))["status"] == read(stage.dir)["status"] == "running"
    stage.artifact("a.txt", "data", "A text").write_text("a")
    stage.finish({"none": None, "x": 1})
    assert described(read_record(stage.dir))["status"] == "completed"
    assert "key" not in read(stage.dir)


def test_running_and_died(tmp_path):
    """What an interrupted run leaves is tested in test_notebook."""
    stage = tmp_path / "r" / "03_pdpo_training"
    running = {"status": "running", "host": platform.node()}
    write_run(tmp_path / "r", pid=os.getpid(), **running)
    assert read(stage)["status"] == "running"
    assert records.summary(tmp_path / "r")["stages"][stage.name] == "running"
    write_run(tmp_path / "r", pid=2**22 + 1, **running)
    assert read(stage)["status"] == records.DIED
    write_run(tmp_path / "r", pid=2**22 + 1, **running | {"host": "another-" + platform.node()})
    assert read(stage)["status"] == "running"  # what runs on another machine can't be known here


OLD = {  # of the first demo: neither inputs, nor host, nor a folder's hash
    "schema": 1,
    "stage": "01_data_preparation",
    "status": "completed",
    "key": "0" * 64,
    "parameters": {"seed": 0},
    "metrics": {"pairs": 3},
    "artifacts": {"data": {"kind": "data", "caption": "The dataset"}},
    "versions": dict.fromkeys(("python", "prlhf_kit", "torch", "transformers", "trl"), "1"),
    "git": {"commit": None, "dirty": None},
    "pid": 7224,
    "started": "2026-11-21T06:35:00+00:00",
    "provenance": {"data": {"fingerprint": "cc7dded3ea5cbe6e"}},
    "machine": {"platform": "Linux", "cpus": 2},
    "ended": "2026-11-21T06:36:00+00:00",
    "peak_memory_bytes": 1,
    "seconds": 60,
}


def test_what_is_no_record_of_this_kit_is_refused(tmp_path):
    for content, message in (
        (OLD | {"schema": 2}, r"follows schema 2; prlhf_kit .* up to 1. Upgrade prlhf_kit"),
        ({"schema": 1, "stage": "x"}, "is no run record: it lacks artifacts"),
        ([], "is no run record"),
    ):
        write_json(tmp_path / "run.json", content)
        with pytest.raises(RunError, match=message):
            read(tmp_path)
    write_json(tmp_path / "run.json", OLD | {"a_later_field": 1})
    assert read(tmp_path) == OLD | {"a_later_field": 1}


def write_run(folder, number=0, **change):
    for stage in ("01_data_preparation", "03_pdpo_training"):
        record = OLD | {"stage": stage, "parameters": {"run_dir": str(folder), "model": "m", "seed": number}} | change
        (folder / stage).mkdir(parents=True, exist_ok=True)
        write_json(folder / stage / "run.json", record)
    return folder


def test_list_of_a_thousand_runs_some_of_them_broken(tmp_path, capsys):
    for number in range(1000):
        (tmp_path / "runs" / f"r{number}" / "03_pdpo_training").mkdir(parents=True)
        path = tmp_path / "runs" / f"r{number}" / "03_pdpo_training" / "run.json"
        path.write_text(json.dumps(OLD | {"metrics": {f"m{i}": i for i in range(50)}}))
    broken = {"r1": "{", "r2": "[]", "r3": json.dumps(OLD | {"schema": 9}), "r4": "\udcff", "r5": "[" * 100_000}
    for name, text in broken.items():
        (tmp_path / "runs" / name / "03_pdpo_training" / "run.json").write_text(text, errors="surrogateescape")
    write_run(tmp_path / "runs" / "r6", status="failed", error="cell 1 raised X: no")
    began = time.perf_counter()
    assert cli.main(["runs", "list", str(tmp_path / "runs"), "--json"]) == 0
    assert time.perf_counter() - began < 20  # 2 s here
    rows = {Path(row["run"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == 1000
    assert {n for n, row in rows.items() if "unreadable" in row["stages"].values()} == set(broken)
    assert rows["r7"] == {
        "run": str(tmp_path / "runs" / "r7"),
        "stages": {"03_pdpo_training": "completed"},
        "started": "2026-11-21T06:35:00+00:00",
        "seconds": 60,
        "commits": [],
        "models": [],
        "data": ["cc7dded3"],
    }
    assert cli.main(["runs", "list", str(tmp_path / "runs"), "--status", "failed"]) == 0
    [head, row] = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["run", "stages"]
    assert re.match(
        r"\S+/r6 +01_data_preparation failed, 03_pdpo_training failed +2026-11-21 06:35 +2 min +m +cc7", row
    )
    assert cli.main(["runs", "list", str(tmp_path / "runs"), "--status", "died"]) == 0
    assert capsys.readouterr().out == "no runs with a stage that is died\n"
    assert cli.main(["runs", "list", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert commands.STATUSES == records.STATUSES


def test_show(tmp_path, capsys):
    more = {
        "metrics": {"loss": 0.25, "accuracy": None},
    }
    run = write_run(tmp_path / "r", 7, **more)
    bad = run / "05_evaluation"
    bad.mkdir()
    (bad / "run.json").write_text("{")
    failed = OLD | {"stage": "04", "status": "failed", "error": "cell 3 raised KeyError: 'x'\ny['x']\n---\ntrace"}
    (run / "04").mkdir()
    write_json(run / "04" / "run.json", failed)
    assert cli.main(["runs", "show", str(run)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("01_data_preparation: completed, began 2026-11-21 06:35:00 UTC, took 1 min, 0.0 GiB, commit")
    for line in (
        "seed     7",
        "loss      0.25",
        "accuracy  none",
        "data  data  The dataset",
    ):
        assert f"    {line}\n" in out
    assert "  error\n    cell 3 raised KeyError: 'x'\n" in out
    assert "05_evaluation/run.json can't be read" in err
    assert cli.main(["runs", "show", str(run / "03_pdpo_training"), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["03_pdpo_training"]
    for wrong, message in {bad: "can't be read", tmp_path / "no": "is no folder", tmp_path: "holds no run"}.items():
        assert cli.main(["runs", "show", str(wrong)]) == 2
        assert message in capsys.readouterr().err


def test_diff(tmp_path, capsys):
    def parameters(run, **more):
        return {"parameters": {"run_dir": str(tmp_path / run), "answers": f"{tmp_path / run}/x.jsonl", **more}}

    numbers = {"same": 1, "acc": 0.5, "gone": None, "none": None}
    a = write_run(tmp_path / "a", **parameters("a", alpha=1.0), metrics=numbers)
    twin = {"started": "2026-11-22T00:00:00+00:00", "pid": 1, "host": "x", "seconds": 9, "key": "1" * 64}
    b = write_run(tmp_path / "b", **parameters("b", alpha=1.0), metrics=numbers, **twin)
    assert records.differences(a, b) == []
    assert cli.main(["runs", "diff", str(a), str(b)]) == 0
    write_run(
        b,
        **parameters("b", alpha=0.7, beta=[1]),
        metrics={"same": 1, "acc": 0.75, "none": 2.0},
        versions=OLD["versions"] | {"trl": "2"},
        git={"commit": "c", "dirty": False},
        provenance={"data": {"fingerprint": "other"}},
    )
    (b / "01_data_preparation" / "run.json").unlink()
    capsys.readouterr()
    assert cli.main(["runs", "diff", str(a), str(b), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert rows[0] == {"stage": "01_data_preparation", "section": "status", "name": "status", "a": "completed"}
    assert [{k: v for k, v in row.items() if k != "stage"} for row in rows[1:]] == [
        {"section": "parameters", "name": "alpha", "a": 1.0, "b": 0.7},
        {"section": "parameters", "name": "beta", "b": [1]},
        {"section": "versions", "name": "trl", "a": "1", "b": "2"},
        {"section": "git", "name": "commit", "a": None, "b": "c"},
        {"section": "git", "name": "dirty", "a": None, "b": False},
        {"section": "provenance", "name": "data, fingerprint", "a": "cc7dded3ea5cbe6e", "b": "other"},
        {"section": "metrics", "name": "acc", "a": 0.5, "b": 0.75, "difference": 0.25},
        {"section": "metrics", "name": "gone", "a": None},
        {"section": "metrics", "name": "none", "a": None, "b": 2.0},
    ]
    assert cli.main(["runs", "diff", str(a), str(b)]) == 1
    out = capsys.readouterr().out
    assert out.startswith('01_data_preparation\n  status  status  "completed" -> (absent)\n03_pdpo_training\n')
    assert re.search(r"  metrics +acc +0.5 -> 0.75  \(\+0.25\)\n", out)
    (b / "03_pdpo_training" / "run.json").write_text("{")
    assert cli.main(["runs", "diff", str(a), str(b)]) == 2
    assert cli.main(["runs", "diff", str(a / "01_data_preparation"), str(a / "03_pdpo_training")]) == 2
    assert "no stage in common" in capsys.readouterr().err
