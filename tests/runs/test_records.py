"""Records of every kind, what counts as one, and `prlhf runs list`."""

import json
import os
import platform
import re
from pathlib import Path

import pytest
from tiny_notebooks import FINISH, write_notebook

from prlhf_kit import cli
from prlhf_kit.files import write_json
from prlhf_kit.runs import notebook, records, report, stage as record_module
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.stage import begin, read_record
from runs.conftest import RECORD


def described(record):
    """Of a record whose fields docs/runs.md has."""
    table = set(re.findall(r"`(\w+)`", (Path(__file__).parents[2] / "docs" / "runs.md").read_text()))
    assert RECORD.keys() <= set(record) <= table
    return record


def test_fields_of_records_of_every_kind_are_described(tmp_path):
    late = notebook.run_notebook(write_notebook(tmp_path, "late", FINISH, "1 / 0", finish=None), tmp_path / "run")
    assert (described(late)["status"], late["metrics"]) == ("failed", {"twice": 6.0})

    record_module._names.clear()
    stage = begin("lab", tmp_path / "run", {"run_dir": "x", "n": 1})  # as in JupyterLab
    assert described(read_record(stage.dir))["status"] == "running"
    stage.artifact("a.txt", "data", "A text").write_text("a")
    (stage.dir / "a-checkpoints" / "checkpoint-3").mkdir(parents=True)
    (stage.dir / "a-checkpoints" / "events").touch()
    stage.finish({"none": None, "x": 1})
    assert described(read_record(stage.dir))["status"] == "completed"
    assert [path.name for path in (stage.dir / "a-checkpoints").iterdir()] == ["events"]  # a tracker's


@pytest.mark.parametrize(
    "text",
    [
        *("", "3", "\udcff", "[" * 100_000),
        *({"schema": 2}, {"git": None}, {"provenance": {"data": "x"}}),
        *({"seconds": "3"}, {"artifacts": {"a": {}}}, {"inputs": {"../01": {}}}),
        {"artifacts": {"/x": {"kind": "table", "caption": ""}}},
    ],
)
def test_what_is_no_record_counts_as_none_and_everything_else_goes_on(text, tmp_path, capsys):
    path = tmp_path / "r" / "03" / "run.json"
    write_json(tmp_path / "r" / "01" / "run.json", RECORD)
    path.parent.mkdir()
    path.write_text(text if isinstance(text, str) else json.dumps(RECORD | text), errors="surrogateescape")
    assert read_record(path.parent) is None
    assert cli.main(["report", str(tmp_path)]) == 0
    assert "01" in report.write_index(tmp_path / "r").read_text()
    assert cli.main(["runs", "list", str(tmp_path)]) == 0
    assert "1 completed, 03 unreadable  2026-11-21 06:39" in capsys.readouterr().out


def test_a_later_field_and_half_a_surrogate_are_read(tmp_path):
    write_json(tmp_path / "r" / "s" / "run.json", RECORD | {"later": 1, "stage": "\ud800"})
    assert read_record(tmp_path / "r" / "s")["later"] == 1
    assert report.write_index(tmp_path / "r").is_file()


def test_running_and_died(tmp_path):
    """What an interrupted run leaves is tested in test_execute."""
    elsewhere = "another-" + platform.node()
    for pid, host, status in (
        (os.getpid(), platform.node(), "running"),
        (2**22 + 1, platform.node(), "died"),
        (2**22 + 1, elsewhere, "running"),  # what runs on another machine can't be known here
    ):
        write_json(tmp_path / "r" / "s" / "run.json", RECORD | {"status": "running", "pid": pid, "host": host})
        assert records.records_of(tmp_path / "r")["s"]["status"] == status


def test_runs_are_listed_once_however_many_links_lead_to_them(tmp_path, capsys):
    more = {
        "git": {"commit": "a9319a1f12", "dirty": True},
        "parameters": {"model": "tiny", "dataset": "prism"},
        "seconds": 600.0,
    }
    write_json(tmp_path / "runs" / "r" / "s" / "run.json", RECORD | more)
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs" / "r")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path)
    (tmp_path / "runs" / "nowhere").symlink_to(tmp_path / "gone")
    assert records.find_runs(tmp_path / "runs") == [tmp_path / "runs" / "again"]
    assert cli.main(["runs", "list", str(tmp_path / "runs")]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.endswith("again  1 completed  2026-11-21 06:39  10 min  a9319a1+  tiny   prism")
    assert cli.main(["runs", "list", str(tmp_path / "runs" / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_a_run_is_given_by_its_folder_or_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "papermill_runs" / "demo" / "01" / "run.json", RECORD)
    write_json(tmp_path / "elsewhere" / "r" / "01" / "run.json", RECORD)
    (tmp_path / "demo").mkdir()  # of this name, but no run
    out = Path("papermill_runs")
    for given in ("demo", "papermill_runs/demo", tmp_path / "papermill_runs" / "demo"):
        assert records.existing(given).resolve() == tmp_path / "papermill_runs" / "demo"
        assert records.place_of(given, out).resolve() == tmp_path / "papermill_runs" / "demo"
        for words in (["runs", "list"], ["report"]):
            assert cli.main([*words, str(given)]) == 0
    assert records.place_of("elsewhere/r", out) == Path("elsewhere/r")
    assert records.place_of("papermill_runs/new", out) == records.place_of("new", out) == out / "new"
    assert records.place_of("a/b", out) == out / "a" / "b"
    for bad in ("../x", "a/../../x", "/x", ".", "", "papermill_runs"):
        with pytest.raises(RunError, match="lies outside papermill_runs"):
            records.place_of(bad, out)
    with pytest.raises(RunError, match=r"Did you mean 'demo'\?"):
        records.existing("dmo")
