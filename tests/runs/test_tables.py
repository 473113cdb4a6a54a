"""Tables as HTML: whatever they hold is shown as text, under the caption."""

import numpy as np
import pandas as pd
from bs4 import BeautifulSoup

from prlhf_kit.runs import tables

EVIL = '"quoted" onerror="alert(1)" <script>alert(2)</script>'


def test_tables_show_text_of_any_type_and_numbers_as_numbers():
    table = pd.DataFrame(
        {"<b>": [EVIL, "two\nlines"], "list": [[EVIL], {"a": EVIL}], "n": [0.12345, np.nan], "k": [np.int64(3), None]}
    )
    page = tables.to_html(table)
    assert "<script" not in page
    assert "<b>" not in page
    assert "two<br>lines" in page
    assert "<td>0.123</td>" in page
    assert "nan" not in page.lower()


def test_a_shown_table_stands_under_its_caption(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.core.interactiveshell.InteractiveShell.initialized", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    tables.show(pd.DataFrame({"a": ["x < y"]}), "A & <b>")
    [data] = shown
    page = BeautifulSoup(data["text/html"], "html.parser")
    assert (page.find("caption").text, page.find("td").text) == ("A & <b>", "x < y")
    assert data["text/plain"].startswith("A & <b>\n")
