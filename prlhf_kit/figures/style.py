"""What all figures share. Colours are Okabe & Ito's, told apart by people with any common form of colour blindness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "svg.hashsalt": "prlhf_kit",
    "axes.prop_cycle": cycler(color=PALETTE),
}


def new_figure(width: float, height: float, **kwargs):
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(**kwargs)


def error_bars(table: pd.DataFrame, value: str) -> np.ndarray:
    """How far a 95% interval reaches to both sides, `[2, n]`."""
    return np.abs(table[["low", "high"]].to_numpy(float) - table[[value]].to_numpy(float)).T


def save(figure: Figure, path: Path) -> None:
    """Write `path` with the endings .png and .svg. The same figure gives the same files."""
    with mpl.rc_context(STYLE):
        figure.savefig(path.with_suffix(".png"), dpi=150, bbox_inches="tight")
        figure.savefig(path.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})


MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


def marker_of(i: int) -> str:
    """Shifted where colours begin again, so that the ninth series does not look as the first."""
    return MARKERS[(i + i // 8) % 8]


def reference_line(ax: Axes, at: float, vertical: bool = True) -> None:
    draw = ax.axvline if vertical else ax.axhline
    draw(at, color="black", linewidth=1, linestyle=":")
