"""Pages of runs and notebooks: whatever a run holds is shown as text."""

import nbformat
import numpy as np
import pandas as pd
from bs4 import BeautifulSoup

from prlhf_kit.files import write_json
from prlhf_kit.runs import report
from runs.conftest import RECORD

EVIL = '"quoted" onerror="alert(1)" <script>alert(2)</script>'


def test_tables_show_text_of_any_type_and_numbers_as_numbers():
    table = pd.DataFrame(
        {"<b>": [EVIL, "two\nlines"], "list": [[EVIL], {"a": EVIL}], "n": [0.12345, np.nan], "k": [np.int64(3), None]}
    )
    page = report.to_html(table)
    assert "<script" not in page
    assert "<b>" not in page
    assert "two<br>lines" in page
    assert "<td>0.123</td>" in page
    assert "nan" not in page.lower()


def test_captions_of_figures_are_escaped_in_notebook_pages():
    picture = nbformat.v4.new_output(
        "display_data", {"image/png": "iVBORw0KGgo="}, metadata={"image/png": {"alt": EVIL}}
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[picture])])
    [image] = BeautifulSoup(report.notebook_page(notebook, "a run"), "html.parser").find_all("img")
    assert image["alt"] == EVIL
    assert set(image.attrs) == {"alt", "src"}


def test_a_lost_or_cut_table_is_named_and_the_page_is_written(tmp_path):
    left = {f"{name}.parquet": {"kind": "headline", "caption": name} for name in ("lost", "cut")}
    write_json(tmp_path / "05" / "run.json", RECORD | {"artifacts": left})
    (tmp_path / "05" / "cut.parquet").write_bytes(b"PAR1 half")
    page = report.write_index(tmp_path).read_text()
    assert all(
        f"{name}: 05/{name}.parquet can&#39;t be read; run its notebook again" in page for name in ("lost", "cut")
    )
