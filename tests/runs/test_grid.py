"""The combinations of a sweep: which they are, what they are called, what is refused."""

import pytest
from tiny_notebooks import write_notebook

from prlhf_kit.runs import grid
from prlhf_kit.runs.parameters import RunError


def test_every_combination(tmp_path):
    notebook = write_notebook(tmp_path, "nb")
    (tmp_path / "rows.yaml").write_text("- {user: '00123', limit: null}\n- {user: b, names: [x, null]}")
    rows, same = grid.combinations([notebook], ["rate=1,1e-5"], tmp_path / "rows.yaml", seeds=2, fixed={"n": "7"})
    assert same == {"n": 7}
    assert len(rows) == 8
    assert rows[0] == {"user": "00123", "limit": None, "rate": 1.0, "seed": 0}
    assert rows[-1] == {"user": "b", "names": ["x", None], "rate": 1e-05, "seed": 1}
    assert [grid.name_of(row) for row in rows[:2]] == [
        "user~00123_limit~null_rate~1.0_seed~0",
        "user~00123_limit~null_rate~1.0_seed~1",
    ]


@pytest.mark.parametrize("texts", [["../../etc", "a/b", "a b", "a_b"], ["x" * 300, "x" * 299 + "y"], ["é", "ü"], "Aa"])
def test_names_are_files_names_and_differ(texts):
    names = [grid.name_of({"user": text}) for text in texts]
    assert len({name.casefold() for name in names}) == len(texts)
    assert all(len(name) <= grid.LONGEST and name.isascii() and not set("/=,") & set(name) for name in names)


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
        grid.combinations([write_notebook(tmp_path, "nb")], **options)


def test_a_value_must_fit_every_notebook_that_has_the_parameter(tmp_path):
    notebooks = [write_notebook(tmp_path, "a"), write_notebook(tmp_path, "b", parameters='run_dir = "x"\nn = "one"\n')]
    with pytest.raises(RunError, match="'n' is 3, expected str"):
        grid.combinations(notebooks, ["n=3"])
