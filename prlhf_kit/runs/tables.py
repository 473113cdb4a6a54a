"""A table as HTML, for a run's index page and, under its caption, in a notebook."""

import html
from typing import Any

import numpy as np
import pandas as pd


def to_html(table: pd.DataFrame) -> str:
    """The table as HTML, its texts escaped and their line breaks kept (pandas would print them as backslash-n)."""

    def text(value: Any) -> Any:
        plain = value is None or isinstance(value, (bool, int, float, np.generic)) or value is pd.NaT or value is pd.NA
        return value if plain else html.escape(str(value)).replace("\n", "<br>")

    return (
        table.round(3)
        .map(text)
        .rename(columns=text)
        .rename_axis(columns=None)  # its name would be a heading over nothing
        .to_html(index=False, border=0, na_rep="-", escape=False, justify="left")
    )


def show(table: pd.DataFrame, caption: str) -> None:
    """Display the table under its caption, as text too; in a notebook only."""
    from IPython.core.interactiveshell import InteractiveShell  # these take seconds to import
    from IPython.display import display

    if InteractiveShell.initialized():
        head = f'<caption style="caption-side: top; text-align: left">{html.escape(caption)}</caption>'
        page = to_html(table).replace(">", f">{head}", 1)
        for cell in ("th", "td"):
            page = page.replace(f"<{cell}>", f'<{cell} style="text-align: left; vertical-align: top">')
        display({"text/html": page, "text/plain": f"{caption}\n{table.to_string(index=False)}"}, raw=True)
