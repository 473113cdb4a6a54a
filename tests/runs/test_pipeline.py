"""Pipelines: what runs, in which order, what a failure stops, and which files are refused."""

from pathlib import Path

import nbformat
import pytest
import yaml
from tiny_notebooks import write_notebook

from prlhf_kit import cli
from prlhf_kit.files import write_json
from prlhf_kit.runs import pipeline
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.stage import read_record


def write(folder, *stages):
    file = folder / "p.yaml"
    file.write_text(yaml.safe_dump({"stages": list(stages)}))
    return file


def test_stages_come_after_what_they_need_with_their_parameters(tmp_path):
    for name, needs in {"a": [], "b": ["a"], "c": []}.items():
        write_notebook(tmp_path, name, needs=needs)
    stages = pipeline.read(
        write(
            tmp_path,
            {"notebook": "c.ipynb", "needs": ["b"], "parameters": {"rate": 1, "user": "00123", "names": [None]}},
            {"notebook": "b.ipynb"},
            {"notebook": "a.ipynb", "parameters": {"n": 5}},
        ),
        [("seed", "7"), ("n", "-6")],
    )
    assert list(stages) == ["a", "b", "c"]
    assert stages["b"].needs == {"a"}  # from the notebook's own metadata
    assert (stages["c"].needs, stages["c"].only_here) == ({"b"}, {"b"})
    assert stages["a"].parameters == {"n": " -6", "seed": "7"}  # given ones come before the file's
    assert stages["c"].parameters == {"rate": "1.0", "user": "00123", "names": "[None]", "n": " -6", "seed": "7"}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"notebook": "a.ipynb", "needs": ["c"]}, {"notebook": "c.ipynb", "needs": ["a"]}], "circle: (a <- c|c <- a)"),
        ([{"notebook": "a.ipynb", "needs": ["x"]}], "a needs 'x', which is no stage of it. It has: a"),
        ([{"notebook": "a.ipynb", "parameters": {"raet": 1}}], "no parameter 'raet'. Did you mean 'rate'"),
        ([{"notebook": "a.ipynb", "parameters": {"n": "x"}}], "'n' is 'x', expected int"),
        ([{"notebook": "a.ipynb", "parameters": {"limit": {1: 2}}}], "'limit' can't be {1: 2}"),
        ([{"notebook": "a.ipynb", "parameters": {"run_dir": "x"}}], "set with --run and --out"),
        ([{"notebook": "a.ipynb", "parameters": [1]}], "parameters as a mapping"),
        ([{"notebook": "a.ipynb", "need": ["a"]}], "expected notebook, and perhaps parameters and needs"),
        ([{"notebook": "a.ipynb"}, {"notebook": "sub/../a.ipynb"}], "stands in it already"),
        ([{"notebook": "nowhere.ipynb"}], "there is no notebook"),
        (["a.ipynb"], "stage 1 of"),
        ([], "no list of stages"),
    ],
)
def test_refused_before_anything_starts(tmp_path, capsys, stages, message):
    for name, needs in {"a": [], "b": ["a"], "c": []}.items():
        write_notebook(tmp_path, name, needs=needs)
    (tmp_path / "sub").mkdir()
    with pytest.raises(RunError, match=message):
        pipeline.read(write(tmp_path, *stages))
    assert cli.main(["pipeline", str(tmp_path / "p.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", [None, "stages: [", "stages: {}\nother: 1", "- a.ipynb"])
def test_files_that_are_no_pipeline(tmp_path, text):
    if text:
        (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(RunError, match=r"can't be read|holds no list of stages"):
        pipeline.read(tmp_path / "p.yaml")


def test_parameters_given_on_the_command_line_must_exist_in_a_stage(tmp_path):
    write_notebook(tmp_path, "a")
    with pytest.raises(RunError, match=r"no parameter 'sed'\. Did you mean 'seed'"):
        pipeline.read(write(tmp_path, {"notebook": "a.ipynb"}), [("sed", "1")])
    with pytest.raises(RunError, match="'n' is given twice by -p"):
        pipeline.read(write(tmp_path, {"notebook": "a.ipynb"}), [("n", "1"), ("n", "2")])


def test_a_stage_is_older_than_what_only_the_file_says_it_needs(tmp_path):
    def ran(name, started, ended):
        write_json(tmp_path / name / "run.json", {"status": "completed", "started": started, "ended": ended})

    assert not pipeline._older(tmp_path, "b", {"a"})  # nothing was run yet
    ran("a", "2026-01-01T10:00:00+00:00", "2026-01-01T10:05:00+00:00")
    assert not pipeline._older(tmp_path, "b", {"a"})
    ran("b", "2026-01-01T10:05:00+00:00", "2026-01-01T10:06:00+00:00")
    assert not pipeline._older(tmp_path, "b", {"a"})
    ran("a", "2026-01-01T10:07:00+00:00", "2026-01-01T10:08:00+00:00")
    assert pipeline._older(tmp_path, "b", {"a"})
    assert not pipeline._older(tmp_path, "b", set())


def test_independent_stages_run_at_once_and_a_failure_stops_only_what_needs_it(tmp_path, capsys):
    mended = tmp_path / "mended"
    meet = (
        "import time\n(Path({here!r}) / {own!r}).touch()\nend = time.monotonic() + 90\n"
        "while not (Path({here!r}) / {other!r}).exists() and time.monotonic() < end: time.sleep(0.1)\n"
        "assert time.monotonic() < end, 'the other stage did not run at the same time'"
    )
    write_notebook(tmp_path, "a", meet.format(here=str(tmp_path), own="a here", other="d here"))
    write_notebook(tmp_path, "d", meet.format(here=str(tmp_path), own="d here", other="a here"))
    fails = f"if not Path({str(mended)!r}).exists():\n    raise ValueError('too cold')"
    write_notebook(tmp_path, "bad", fails, needs=["a"])
    write_notebook(tmp_path, "c")
    names = {"a": [], "bad": [], "c": ["bad"], "d": []}
    file = write(tmp_path, *({"notebook": f"{name}.ipynb", "needs": needs} for name, needs in names.items()))
    line = ["pipeline", str(file), "--out", str(tmp_path), "--workers", "2"]
    run = tmp_path / "p"  # named after the file

    def rows():
        lines = capsys.readouterr().out.split("\nstage ")[1].splitlines()[1:]
        return {words[0]: " ".join(words[1:]) for words in map(str.split, lines) if words and words[0] in names}

    assert cli.main(line) == 1
    found = rows()
    assert {name: (read_record(run / name) or {}).get("status") for name in names} == {
        "a": "completed",
        "bad": "failed",
        "c": None,
        "d": "completed",
    }
    assert found["c"] == "not run needs bad"
    assert found["bad"].startswith("failed")
    assert found["bad"].endswith("ValueError: too cold")
    cell = int(found["bad"].split()[-4])
    assert nbformat.read(run / "bad" / "notebook.ipynb", as_version=4).cells[cell].source == fails
    assert "too cold" in (run / "index.html").read_text()

    mended.touch()
    assert cli.main(line) == 0
    found = rows()
    assert [found[name].split()[0] for name in "ad"] == ["unchanged"] * 2
    assert [found[name].split()[0] for name in ("bad", "c")] == ["completed"] * 2
    assert read_record(run / "c")["started"] >= read_record(run / "bad")["ended"]


def test_the_demo_is_a_pipeline():
    demo = Path(__file__).parents[2] / "configs" / "pipeline.yaml"
    stages = pipeline.read(demo, [("seed", "1")])
    assert [name[:2] for name in stages] == ["01", "02", "03", "04", "05"]
    assert all(stage.parameters == {"seed": "1"} for stage in stages.values())
