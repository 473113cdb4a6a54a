"""The tables of a page that are written from runs' records."""

import pytest

from prlhf_kit import cli
from prlhf_kit.files import write_json
from runs.conftest import RECORD

STUDY = "<!-- results: {runs: study-*, stage: 05_eval, columns: {seen: accuracy/seen/*, gain: gain/*}} -->"
OTHER = "<!-- results: {runs: other, stage: 05_eval, columns: {seen: accuracy/seen/*}} -->\n| kept |\n<!-- end -->"


def run(folder, seed, value, n=10.0, status="completed", **more):
    metrics = {"accuracy/seen/P-DPO": value, "accuracy_low/seen/P-DPO": value - 0.1}
    metrics |= {"accuracy_high/seen/P-DPO": value + 0.1, "accuracy_n/seen/P-DPO": n, "gain/P-DPO": 0.25, **more}
    given = {"parameters": {"seed": seed, "model": "tiny"}, "metrics": metrics, "status": status}
    write_json(folder / "05_eval" / "run.json", RECORD | given)


def written(tmp_path, *blocks):
    (page := tmp_path / "page.md").write_text("\n".join(blocks))
    code = cli.main(["results", str(tmp_path), "--out", str(page)])
    return code, page.read_text()


def test_seeds_and_folds_are_averaged_and_all_else_stays(tmp_path, capsys):
    run(tmp_path / "study-0-fold0", 0, 0.5, n=10.0)
    run(tmp_path / "study-0-fold1", 0, 0.8, n=20.0)
    run(tmp_path / "study-1", 1, 0.9, n=30.0, **{"accuracy/seen/other": 0.5, "pairs": 7.0})
    run(tmp_path / "study-2", 2, 0.1, status="failed")
    blocks = ("# Prose\n", STUDY, "| an older table |", "<!-- end -->", "More prose.", OTHER)
    code, page = written(tmp_path, *blocks)
    table = """
|  | seen, mean (n = 30) | gain, mean |
|---|---|---|
| P-DPO | 0.800 [0.700, 0.900] (0.700, 0.900) | 0.250 (0.250, 0.250) |
| other | 0.500 (-, 0.500) |  |

*`study-*`, 3 runs: date (UTC) 2026-11-21; seed 0, 1; commit a9319a1f; model tiny*
"""
    assert page == "\n".join((*blocks[:2], table, *blocks[3:]))
    assert "no completed run other: its tables stay" in capsys.readouterr().out
    assert (code, written(tmp_path, page)[1]) == (0, page)  # written again, it is the same
    again = written(tmp_path, page, STUDY, "<!-- end -->")[1].removeprefix(page)
    assert "| P-DPO | 0.800" in again
    assert "commit" not in again  # which the first table of these runs says


def test_one_run_has_its_own_intervals(tmp_path):
    run(tmp_path / "study-0", 0, 0.5)
    assert "| P-DPO | 0.500 [0.400, 0.600] | 0.250 |" in written(tmp_path, STUDY, "<!-- end -->")[1]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("<!-- results: {runs: study-0} -->", "is not as expected"),
        ("<!-- results: {runs: a, stage: 05, columns: {seen: accuracy/*}} -->", "is not as expected"),
        (STUDY.replace("gain/*", "win/*"), "no metric of 05_eval is like win/*"),
    ],
)
def test_a_table_that_cannot_be_made_is_refused_and_the_page_stays(block, message, tmp_path, capsys):
    run(tmp_path / "study-0", 0, 0.5)
    code, page = written(tmp_path, block, "<!-- end -->")
    assert (code, page) == (2, f"{block}\n<!-- end -->")
    assert message in capsys.readouterr().err
