"""A table as HTML: whatever it holds is shown as text, under the caption."""

import numpy as np
import pandas as pd
from bs4 import BeautifulSoup

from prlhf_kit.runs import tables

EVIL = '"quoted" onerror="alert(1)" <script>alert(2)</script>'


def test_a_shown_table_has_text_of_any_type_and_numbers_as_numbers(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.core.interactiveshell.InteractiveShell.initialized", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    columns = {"<b>": [EVIL, "two\nlines"], "list": [[EVIL], {"a": EVIL}], "n": [0.12345, np.nan], "k": [3, None]}
    tables.show(pd.DataFrame(columns), "A & <b>")
    page = BeautifulSoup(shown[0]["text/html"], "html.parser")
    assert page.find("caption").text == "A & <b>"
    assert [cell.text for cell in page.find_all("th")] == list(columns)
    cells = [cell.text for cell in page.find_all("td")]
    assert cells == [EVIL, f"['{EVIL}']", "0.123", "3.0", "twolines", f"{{'a': '{EVIL}'}}", "-", "-"]
    assert len(page.find_all("br")) == 1
    assert not page.find_all(["script", "b"])
    assert shown[0]["text/plain"].startswith("A & <b>\n")
