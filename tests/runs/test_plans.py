"""What is to be run: the stages of sweeps and pipelines, what they share, and what is refused."""

from pathlib import Path

import pytest
import yaml
from tiny_notebooks import write_notebook

from prlhf_kit import cli
from prlhf_kit.runs import plans
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.stage import begin

STUDY = Path(__file__).parents[2] / "configs" / "study.yaml"


def test_every_combination(tmp_path):
    notebook = write_notebook(tmp_path, "nb")
    (tmp_path / "rows.yaml").write_text("- {user: '00123', limit: null}\n- {user: b, names: [x, null]}")
    rows, same = plans.combinations([notebook], ["rate=1,1e-5"], tmp_path / "rows.yaml", seeds=2, fixed={"n": "7"})
    assert same == {"n": 7}
    assert len(rows) == 8
    assert rows[0] == {"user": "00123", "limit": None, "rate": 1.0, "seed": 0}
    assert rows[-1] == {"user": "b", "names": ["x", None], "rate": 1e-05, "seed": 1}
    assert [plans.name_of(row) for row in rows[:2]] == [
        "user~00123_limit~null_rate~1.0_seed~0",
        "user~00123_limit~null_rate~1.0_seed~1",
    ]


@pytest.mark.parametrize("texts", [["../../etc", "a/b", "a b", "a_b"], ["x" * 300, "x" * 299 + "y"], ["é", "ü"], "Aa"])
def test_names_are_files_names_and_differ(texts):
    names = [plans.name_of({"user": text}) for text in texts]
    assert len({name.casefold() for name in names}) == len(texts)
    assert all(len(name) <= plans.LONGEST and name.isascii() and not set("/=,") & set(name) for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grids": ["n=1,x"]}, "'n' is 'x', expected int"),
        ({"grids": ["limit=1,1e999"]}, "'limit' can't be inf, which a run's record can't hold"),
        ({"grids": ["names=[[1]"]}, "are no values that YAML can read"),
        ({"grids": ["n"]}, "has no values"),
        ({"grids": ["n=1,1"]}, "stands twice in the sweep"),
        ({"grids": ["seed=1"], "seeds": 2}, "seed is given twice"),
        ({"grids": ["n=1"], "fixed": {"n": "2"}}, "'n' is set twice"),
        ({"seeds": 1, "fixed": {"sed": "2"}}, "no parameter 'sed'"),
        ({"file": "n: 1"}, "holds no list of mappings"),
        ({"file": "["}, "can't be read"),
        ({}, "nothing to sweep over"),
    ],
)
def test_refused_before_anything_starts(tmp_path, options, message):
    if "file" in options:
        (tmp_path / "rows.yaml").write_text(options["file"])
        options = options | {"file": tmp_path / "rows.yaml"}
    with pytest.raises(RunError, match=message):
        plans.combinations([write_notebook(tmp_path, "nb")], **options)


def test_a_value_must_fit_every_notebook_that_has_the_parameter(tmp_path):
    notebooks = [write_notebook(tmp_path, "a"), write_notebook(tmp_path, "b", parameters='run_dir = "x"\nn = "one"\n')]
    with pytest.raises(RunError, match="'n' is 3, expected str"):
        plans.combinations(notebooks, ["n=3"])


def test_a_stage_whose_parameters_are_the_same_in_several_runs_is_one_node(tmp_path):
    parameters = {"01": "seed = 0", "02": "size = 1", "03": "beta = 0.1", "05": "judge = 'a'"}
    needs = {"01": [], "02": ["01"], "03": ["01"], "05": ["01", "03"]}
    notebooks = [
        write_notebook(tmp_path, name, needs=needs[name], parameters=f'run_dir = "x"\n{text}\n')
        for name, text in parameters.items()
    ]
    rows = [{"beta": beta, "seed": seed, "judge": judge} for beta in (0.1, 0.5) for seed in (0, 1) for judge in "ab"]
    runs, links = plans.plan_sweep(notebooks[::-1], rows, {"size": 3}, tmp_path / "s")
    names = {node.name for nodes in runs.values() for node in nodes}
    assert names == {
        *(f"{stage}/seed~{seed}" for stage in ("01", "02") for seed in (0, 1)),
        *(f"03/beta~{beta}_seed~{seed}" for beta in (0.1, 0.5) for seed in (0, 1)),
        *(f"05/{name}" for name in runs),
    }
    assert len(runs) == 8
    nodes = {node.notebook.stem: node for node in runs["beta~0.5_seed~1_judge~b"]}
    assert {stage: node.parameters for stage, node in nodes.items()} == {
        "01": {"seed": 1},
        "02": {"size": 3},
        "03": {"beta": 0.5},
        "05": {"judge": "b"},
    }
    assert set(nodes["05"].after) == {"01/seed~1", "03/beta~0.5_seed~1"}
    run = tmp_path / "s" / "beta~0.5_seed~1_judge~b"
    assert nodes["05"].run_dir == run
    assert links[run / "03"] == nodes["03"].stage_dir == tmp_path / "s" / plans.SHARED / "beta~0.5_seed~1" / "03"
    assert links[nodes["03"].run_dir / "01"] == links[run / "01"] == nodes["01"].stage_dir
    assert not {run / "05", nodes["03"].run_dir / "02"} & links.keys()  # its own; not what 03 is made from


@pytest.mark.parametrize(
    ("needs", "source", "message"),
    [
        ({"a": [], "b": ["x"]}, None, "b.ipynb needs the stage x, which is not among the notebooks.*--from RUN"),
        ({"a": [], "b": ["x"]}, "empty", "b.ipynb needs the stage x, which is not completed in --from"),
        ({"a": [], "b": ["a"]}, "empty", "no notebook needs a stage of it"),
        ({"a": ["b"], "b": ["a"]}, None, "circle: (a <- b <- a|b <- a <- b)"),
    ],
)
def test_sweeps_that_are_refused(tmp_path, needs, source, message):
    notebooks = [write_notebook(tmp_path, name, needs=each) for name, each in needs.items()]
    with pytest.raises(RunError, match=message):
        plans.plan_sweep(notebooks, [{"n": 1}], {}, tmp_path / "s", source and tmp_path / source)
    with pytest.raises(RunError, match="two notebooks have the same name"):
        plans.plan_sweep([notebooks[0]] * 2, [{"n": 1}], {}, tmp_path / "s")


def test_stages_of_a_finished_run(tmp_path):
    stage = begin("a", tmp_path / "demo", {"run_dir": "x"})
    stage.finish()
    notebook = write_notebook(tmp_path, "b", needs=["a"], uses=["elsewhere"])
    runs, links = plans.plan_sweep([notebook], [{"n": 1}, {"n": 2}], {}, tmp_path / "s", tmp_path / "demo")
    assert set(runs) == {"n~1", "n~2"}
    assert links == {tmp_path / "s" / name / "a": tmp_path / "demo" / "a" for name in runs}
    place = tmp_path / "s" / "n~1" / "a"
    for _ in range(2):
        plans.link(place, tmp_path / "demo" / "a")
        assert (place / "run.json").is_file()
    plans.link(place, tmp_path / "later" / "a")  # which is not there yet
    assert not place.exists()


def write(folder, *stages):
    """A pipeline's file, beside its notebooks: b needs a, c needs b and uses a, d and e need each other, f needs x."""
    for name, needs in {"a": "", "b": "a", "c": "b", "d": "e", "e": "d", "f": "x"}.items():
        write_notebook(folder, name, needs=list(needs), uses=["a", "elsewhere"] if name == "c" else ())
    (folder / "p.yaml").write_text(yaml.safe_dump({"stages": list(stages)}))
    return folder / "p.yaml"


def test_a_pipelines_stages_come_after_what_they_need_with_their_parameters(tmp_path):
    file = write(
        tmp_path,
        {"notebook": "c.ipynb", "parameters": {"rate": 1, "user": "00123", "names": [None]}},
        {"notebook": "b.ipynb"},
        {"notebook": "a.ipynb", "parameters": {"n": 5}},
    )
    a, b, c = plans.read_pipeline(file, tmp_path / "r", [("seed", "7"), ("n", "-6")])
    assert [node.name for node in (a, b, c)] == ["a/r", "b/r", "c/r"]
    assert (b.after, c.after) == (["a/r"], ["b/r", "a/r"])
    assert a.parameters == {"n": -6, "seed": 7}  # given ones come before the file's
    assert c.parameters == {"rate": 1.0, "user": "00123", "names": [None], "n": -6, "seed": 7}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"notebook": "d.ipynb"}, {"notebook": "e.ipynb"}], "circle: (d <- e|e <- d)"),
        ([{"notebook": "f.ipynb"}], "f needs 'x', which it has not. Add it to f"),
        ([{"notebook": "a.ipynb", "parameters": {"raet": 1}}], "no parameter 'raet'"),
        ([{"notebook": "a.ipynb", "parameters": {"limit": {1: 2}}}], "'limit' can't be {1: 2}"),
        ([{"notebook": "a.ipynb", "parameters": [1]}], "parameters as a mapping"),
        ([{"notebook": "a.ipynb", "need": ["a"]}], "expected notebook, and perhaps parameters"),
        ([{"notebook": "a.ipynb"}, {"notebook": "sub/../a.ipynb"}], "names the stage a twice"),
        (["a.ipynb"], "stage 1 of"),
        ([], "no list of stages"),
    ],
)
def test_pipelines_that_are_refused_before_anything_starts(tmp_path, stages, message):
    file = write(tmp_path, *stages)
    with pytest.raises(RunError, match=message):
        plans.read_pipeline(file, tmp_path / "out" / "p")
    assert cli.main(["pipeline", str(file), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_the_study_is_a_pipeline_of_all_notebooks_but_the_widget_and_real_people():
    nodes = plans.read_pipeline(STUDY, Path("study"), [("seed", "1")])
    notebooks = {path.stem for path in STUDY.parents[1].glob("notebooks/*.ipynb")}
    assert {node.stage for node in nodes} == notebooks - {"07_compare_responses", "10_real_people"}
    assert all(node.parameters["seed"] == 1 for node in nodes)
