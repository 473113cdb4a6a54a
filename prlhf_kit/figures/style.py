"""What all figures share. Colours are Okabe & Ito's, told apart by people with any common form of colour blindness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
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


MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


def marker_of(i: int) -> str:
    """The colours repeat after 8 series; the marker shifts by one there, so that the ninth differs from the first."""
    return MARKERS[(i + i // 8) % 8]


def reference_line(ax: Axes, at: float, vertical: bool = True) -> None:
    draw = ax.axvline if vertical else ax.axhline
    draw(at, color="black", linewidth=1, linestyle=":")


def draw_intervals(ax: Axes, rows: pd.DataFrame, at, i: int, value: str = "value", upright: bool = False, **more: Any):
    """One series of an intervals table, the i-th: marks with error bars along x at the heights `at`, or, upright, along
    y at the places `at`."""
    style: dict[str, Any] = {"fmt": marker_of(i), "color": PALETTE[i % 8], "capsize": 3} | more
    if upright:
        ax.errorbar(at, rows[value], yerr=error_bars(rows, value), **style)
    else:
        ax.errorbar(rows[value], at, xerr=error_bars(rows, value), **style)


def series_positions(names: list, of, i: int, series: int, step: float) -> list[float]:
    """Axis positions of series i of `series`, `step` apart and centred on each name; `of`: the name of each row."""
    return [names.index(name) + step * (i - (series - 1) / 2) for name in of]


def names_down(ax: Axes, names: Sequence[str]) -> None:
    """Names down the y axis, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)


def heatmap(ax: Axes, cells: pd.DataFrame, label: str, low: float, high: float, notes: Any = True, **more: Any) -> None:
    """Cells with their numbers (or `notes`) in them; `label` stands at the colour bar, from `low` to `high`."""
    style: dict[str, Any] = {"cmap": "PuOr", "fmt": ".1f", "annot_kws": {"size": 8}} | more
    sns.heatmap(cells, vmin=low, vmax=high, annot=notes, ax=ax, cbar_kws={"label": label}, **style)


def legend(figure: Figure, ax: Axes, loc: Any = "outside upper center", **options: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc=loc, **options)


def save(figure: Figure, path: Path) -> None:
    """Write `path` with the endings .png and .svg. The same figure gives the same files."""
    with mpl.rc_context(STYLE):
        figure.savefig(path.with_suffix(".png"), dpi=150, bbox_inches="tight")
        figure.savefig(path.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})
