"""Pages of runs and notebooks: whatever a run holds is shown as text."""

import nbformat
import pandas as pd
from bs4 import BeautifulSoup

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
