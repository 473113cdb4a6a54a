"""Pages of runs and notebooks: numbers, links, and what they make of torn, failed and hostile records."""

import os
import re
from urllib.parse import unquote

import nbformat
import pandas as pd
from bs4 import BeautifulSoup

from prlhf_kit import cli
from prlhf_kit.files import write_json
from prlhf_kit.runs import report
from runs.conftest import RECORD

EVIL = '"quoted" onerror="alert(1)" <script>alert(2)</script>'


def test_a_notebook_page_needs_no_script_folds_code_drops_bars_and_has_captions_as_text():
    new = nbformat.v4
    shown = [{"text/html": html} for html in ("<div><progress></progress><table></table></div>", "<p>kept</p>")]
    outputs = [new.new_output("display_data", data) for data in (*shown, {"image/png": "iVBORw0KGgo="})]
    outputs[-1].metadata = {"image/png": {"alt": EVIL}}
    markdown = "# A $e_0$\n\n$$\\log\\frac{a}{b}$$\n\n`$x$` costs 3 $ or 4"
    cells = [new.new_markdown_cell(markdown), new.new_code_cell("1 + 1", outputs=outputs)]
    page = report.notebook_page(new.new_notebook(cells=cells), "a run")
    assert "kept" in page
    assert "<progress" not in page
    assert "mathjax" not in page.lower()
    soup = BeautifulSoup(page, "html.parser")
    assert "1 + 1" in soup.find("details").text
    assert soup.find("code", string="$x$")
    assert [each["display"] for each in soup.find_all("math")] == ["inline", "block"]
    [image] = soup.find_all("img")
    assert (image["alt"], set(image.attrs)) == (EVIL, {"alt", "src"})
    assert image.find_next("figcaption").text == EVIL


def test_the_index_says_in_four_lines_what_was_run_on_what_with_which_result(tmp_path):
    made = {"parameters": {"dataset": "/x/mine", "model": "tiny"}, "metrics": {"pairs/train": 32.0}}
    made |= {"notes": ["4 of 36 pairs left out"], "git": {"commit": "a", "dirty": True}}
    write_json(tmp_path / "01" / "run.json", RECORD | made)
    write_json(tmp_path / "03" / "run.json", RECORD | {"status": "failed", "error": "cell 3 raised OSError"})

    def lines():
        soup = BeautifulSoup(report.write_index(tmp_path).read_text(), "html.parser")
        return soup, [" ".join(each.text.split()) for each in soup.find_all("dd")]

    soup, (what, data, result, notes) = lines()
    assert (what, data, result) == ("01, 03; model tiny", "mine: 32 train pairs", "03: accuracy 0.750")
    assert "03 failed" in notes
    assert notes.endswith("Made with uncommitted changes: 01. 01: 4 of 36 pairs left out.")
    assert [section.has_attr("open") for section in soup.find_all("details")] == [False, True]
    headline = pd.DataFrame({"method": ["P-DPO"], "n": [3], "value": [0.7], "low": [0.6], "high": [0.8]})
    headline.to_parquet(tmp_path / "03" / "headline.parquet")
    left = {"headline.parquet": {"kind": "headline", "caption": "Accuracy"}}
    write_json(tmp_path / "03" / "run.json", RECORD | {"artifacts": left})
    soup, (_, _, result, _) = lines()
    assert result == "Accuracy: P-DPO: value 0.700 [0.600, 0.800]"
    assert [section.has_attr("open") for section in soup.find_all("details")] == [False, True]  # where it is from


def test_a_lost_or_cut_table_is_named_and_the_page_is_written(tmp_path):
    left = {f"{name}.parquet": {"kind": "headline", "caption": name} for name in ("lost", "cut")}
    write_json(tmp_path / "05" / "run.json", RECORD | {"artifacts": left})
    (tmp_path / "05" / "cut.parquet").write_bytes(b"PAR1 half")
    page = report.write_index(tmp_path).read_text()
    assert all(
        f"{name}: 05/{name}.parquet can&#39;t be read; run its notebook again" in page for name in ("lost", "cut")
    )


def soup_of(*dirs, out=None):
    return BeautifulSoup(report.write_page(dirs, out).read_text(), "html.parser")


def rows_of(page):
    """{name of row: [text of cell]} of the page's table."""
    rows = [[" ".join(cell.text.split()) for cell in row.find_all(["td", "th"])] for row in page.find_all("tr")]
    assert len({name for name, *_ in rows}) == len(rows)
    return {name: cells for name, *cells in rows}


def stage(run, name="03_pdpo_training", metrics=RECORD["metrics"], parameters=None, notebook=True, **more):
    given = {"metrics": metrics, "parameters": {"run_dir": str(run), **RECORD["parameters"], **(parameters or {})}}
    made_from = {"provenance": {"data": {"fingerprint": "cc7dded3ea5cbe6e"}}}
    write_json(run / name / "run.json", RECORD | given | made_from | more)
    if notebook:
        (run / name / "notebook.html").write_text("a notebook")
        (run / "index.html").write_text("an index")


def test_runs_side_by_side(tmp_path, capsys):
    numbers = {"loss": 0.69314718, "pairs": 12345.0, "accuracy/all users": None, "tokens": 1234567.8, "none": 0.0}
    stage(tmp_path / "a", metrics=numbers, parameters={"alpha": 1.0, "beta": 0.1})
    stage(tmp_path / "a", "01_data_preparation", {"pairs/train": 240.0}, seconds=13.0, peak_memory_bytes=2**30)
    stage(tmp_path / "b", metrics={"loss": 0.5, "accuracy/all users": 2 / 3}, parameters={"seed": 1, "beta": 0.1})
    stage(
        tmp_path / "b",
        "05_evaluation",
        {"ece": 0.00002},
        provenance={"data": {"fingerprint": "00"}, "base model": {"id": "tiny", "fingerprint": "35247a471349627b"}},
        git={"commit": "b" * 40, "dirty": True},
        ended="2026-11-22T10:00:00+00:00",
    )
    assert cli.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path}/leaderboard.html\n"
    assert rows_of(BeautifulSoup((tmp_path / "leaderboard.html").read_text(), "html.parser")) == {
        "run": ["a", "b"],
        "date (UTC)": ["2026-11-21 06:39", "2026-11-22 10:00"],
        "commit": ["a9319a1f", "a9319a1f bbbbbbbb (dirty)"],
        "data": ["cc7dded3ea5cbe6e", "cc7dded3ea5cbe6e 00"],
        "base model": ["", "tiny 35247a471349627b"],
        "seed": ["0", "1 (03_pdpo_training) 0 (05_evaluation)"],
        "alpha": ["0.5 (01_data_preparation) 1.0 (03_pdpo_training)", "0.5"],  # but not beta: it does not differ
        "01_data_preparation": ["completed 13 s, 1.0 GiB record notebook", ""],
        "pairs/train": ["240", ""],
        "03_pdpo_training": ["completed record notebook", "completed record notebook"],
        "loss": ["0.693", "0.5"],
        "pairs": ["12345", ""],
        "accuracy/all users": ["", "0.667"],
        "tokens": ["1234568", ""],
        "none": ["0", ""],
        "05_evaluation": ["", "completed record notebook"],
        "ece": ["", "2e-05"],
    }


def test_parameters_differ_only_between_runs_that_have_their_stage(tmp_path):
    stage(tmp_path / "a", "01_data", parameters={"same": [1, {"b": 2}], "length": 96})
    stage(tmp_path / "a", "02_train", {"x": 1.0}, parameters={"length": 192, "new": ""})
    stage(tmp_path / "b", "01_data", parameters={"same": [1, {"b": 2}], "length": 96})  # stopped before 02_train
    stage(tmp_path / "c", "02_train", {"x": 1.0}, parameters={"length": 192})  # by a version without `new`
    rows = rows_of(soup_of(tmp_path))
    assert rows["new"] == ['""', "", ""]
    assert rows["seed"] == ["0", "0", "0"]  # always there
    assert not {"length", "same", "run_dir", "alpha"} & set(rows)


def test_intervals_share_a_cell_and_no_number_is_lost(tmp_path):
    full = {"win/base": 0.609375, "win_low/base": 0.375, "win_high/base": 0.8125, "win_n/base": 64.0, "f_n": 8.0}
    stage(tmp_path / "full", metrics=full)
    stage(tmp_path / "half", metrics={"win/base": 0.5, "win_low/base": 0.25})
    stage(tmp_path / "none", metrics={"win/base": None, "win_low/base": None, "win_high/base": None, "win_n/base": 0.0})
    rows = rows_of(soup_of(tmp_path))
    assert rows["win/base"] == ["0.609 [0.375, 0.812] n = 64", "0.5", ""]
    assert rows["win_low/base"] == ["", "0.25", ""]
    assert rows["win_n/base"] == ["", "", "0"]
    assert rows["f_n"] == ["8", "", ""]


def test_failed_and_unreadable_records_are_listed(tmp_path):
    stage(tmp_path / "failed", metrics={}, status="failed", error="boom", provenance={}, notebook=False)
    (tmp_path / "torn" / "03_pdpo_training").mkdir(parents=True)
    (tmp_path / "torn" / "03_pdpo_training" / "run.json").write_text('{"stage": "03')
    odd = {"text": "0.5", "huge": 10**400, "list": [1]}
    stage(tmp_path / "odd", status="running", metrics=odd)
    stage(tmp_path / "failed" / ".previous", metrics={"old": 1.0})
    rows = rows_of(soup_of(tmp_path))
    assert rows["run"] == ["failed", "odd", "torn"]
    assert rows["03_pdpo_training"] == ["failed record", "running record notebook", "unreadable record"]
    assert [rows[name] for name in odd] == [[""] * 3] * 3
    assert "old" not in rows


def test_runs_with_the_same_name_are_told_apart_and_links_lead_to_files(tmp_path):
    for run in ("x/one/r", "y/one/r", "y/two/r", "y/two/s"):
        stage(tmp_path / run)
    assert rows_of(soup_of(tmp_path))["run"] == ["x/one/r", "y/one/r", "y/two/r", "y/two/s"]
    stage(tmp_path / "y" / "two" / "50% #1?")
    out = tmp_path / "elsewhere" / "deep" / "page.html"
    page = soup_of(tmp_path / "y", tmp_path / "y" / "two" / "r", out=out)  # given twice, listed once
    assert rows_of(page)["run"] == ["one/r", "two/50% #1?", "two/r", "two/s"]
    links = [link["href"] for link in page.find_all("a")]
    assert len(links) == 3 * 4
    assert all((out.parent / unquote(link)).is_file() and not re.match(r"[a-z]+:|/", link) for link in links)


def test_hostile_names_are_shown_as_text_and_nothing_is_fetched(tmp_path):
    evil = '"><script>alert(1)</script><img src=//x>'
    folder = evil.replace("/", "")
    stage(
        tmp_path / folder,
        metrics={evil: 1.0},
        parameters={f"p{evil}": evil},
        status=evil,
        git={"commit": "<b>"},
        provenance={f"d{evil}": {"id": evil, "fingerprint": "\ud800"}},
    )
    stage(tmp_path / "b")
    stage(tmp_path / "b", folder, metrics={})
    os.rename(tmp_path / "b", os.fsencode(tmp_path) + b"/\xff")  # a name that is not UTF-8
    page = soup_of(tmp_path)
    rows = rows_of(page)
    assert (rows["run"], rows[evil], rows[f"p{evil}"]) == ([folder, "?"], ["1", ""], [evil, ""])
    assert not page.find_all(["script", "img", "b", "link", "iframe"])
    assert not any(
        name in ("src", "srcset") or name.startswith("on") for tag in page.find_all(True) for name in tag.attrs
    )
    assert not re.search(r"https?://|@import|url\(", str(page))
    assert page.find("a", href="%FF/index.html")


def test_what_is_refused_before_anything_is_written(tmp_path, capsys):
    stage(tmp_path / "good")
    (empty := tmp_path / "empty").mkdir()
    for words, message in (
        ([tmp_path / "good", empty], f"prlhf: {empty} holds no run"),
        ([tmp_path / "missing"], "is no folder"),
        ([tmp_path, "--out", empty], f"--out {empty}/leaderboard.html"),
    ):
        assert cli.main(["report", *map(str, words)]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("leaderboard.html"))
