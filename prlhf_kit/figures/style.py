"""What all figures share: colours, marks with error bars, heatmaps, legends. Colours are Okabe & Ito's, told apart by
people with any common form of colour blindness."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "svg.hashsalt": "prlhf_kit",
    "axes.prop_cycle": cycler(color=PALETTE),
}


def new_figure(width: float, height: float, **kwargs):
    """A figure of so many inches apart from pyplot, and its axes; `kwargs`: of `Figure.subplots`."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(**kwargs)


def look(i: int) -> dict[str, Any]:
    """Colour and marker of series i. The colours repeat after 8; the marker shifts by one there."""
    return {"color": PALETTE[i % 8], "marker": MARKERS[(i + i // 8) % 8]}


def error_bars(table: pd.DataFrame, value: str = "value") -> np.ndarray:
    """How far a 95% interval reaches to both sides, `[2, n]`."""
    return np.abs(table[["low", "high"]].to_numpy(float) - table[[value]].to_numpy(float)).T


def points(ax: Axes, rows: pd.DataFrame, at, i: int, value: str = "value", upright: bool = False, **more: Any) -> None:
    """Series i of an intervals table: marks with error bars along x at the heights `at`, or, upright, along y at the
    places `at`."""
    style: dict[str, Any] = look(i) | {"linestyle": "none", "capsize": 3} | more
    if upright:
        ax.errorbar(at, rows[value], yerr=error_bars(rows, value), **style)
    else:
        ax.errorbar(rows[value], at, xerr=error_bars(rows, value), **style)


def side_by_side(
    ax: Axes,
    table: pd.DataFrame,
    series: str,
    names: str,
    order: Sequence,
    step: float,
    value: str = "value",
    kinds: Sequence | None = None,
    **more: Any,
) -> None:
    """`points` of every value of the column `series`, `step` apart and centred at the place in `order` of its value of
    the column `names`, which are written at the axis. `kinds` fixes whose look is whose over several calls."""
    kinds = list(dict.fromkeys(table[series])) if kinds is None else kinds
    for name, rows in table.groupby(series, sort=False):
        i = kinds.index(name)
        at = [order.index(row) + step * (i - (len(kinds) - 1) / 2) for row in rows[names]]
        points(ax, rows, at, i, value, label=name, **more)
    if more.get("upright"):
        ax.set_xticks(range(len(order)), order)
    else:
        names_down(ax, order)


def crossed(ax: Axes, x: pd.DataFrame, y: pd.DataFrame, i: int, value: str = "value", **more: Any) -> None:
    """Series i of two intervals tables of the same rows: marks with error bars along both axes."""
    style: dict[str, Any] = look(i) | {"linestyle": "none"} | more
    ax.errorbar(x[value], y[value], xerr=error_bars(x, value), yerr=error_bars(y, value), **style)


def scatter(
    ax: Axes, table: pd.DataFrame, series: str, x: str, y: str, order: Sequence | None = None, **more: Any
) -> None:
    """One mark a row, coloured by the column `series`; `order` fixes whose colour is whose over several panels."""
    order = list(dict.fromkeys(table[series])) if order is None else order
    for name, rows in table.groupby(series, sort=False):
        ax.scatter(rows[x], rows[y], **look(order.index(name)), label=name, **more)


def numbered(ax: Axes, texts: Iterable, x: Iterable[float], y: Iterable[float], fmt: str = "{}", **more: Any) -> None:
    """A small text beside each mark."""
    for text, right, up in zip(texts, x, y, strict=True):
        ax.annotate(fmt.format(text), (right, up), xytext=(4, 4), textcoords="offset points", **more)


def reference_line(ax: Axes, at: float, vertical: bool = True) -> None:
    """A dotted line: chance, or no difference."""
    draw = ax.axvline if vertical else ax.axhline
    draw(at, color="black", linewidth=1, linestyle=":")


def names_down(ax: Axes, names: Sequence) -> None:
    """Names down the y axis, the first on top, long ones in several lines; of more than 100 none."""
    ax.set_yticks(range(len(names)), [fill(str(name), 26) if len(names) <= 100 else "" for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="0.92", linewidth=1)
    ax.set_axisbelow(True)


def heatmap(
    ax: Axes, cells: pd.DataFrame, label: str, middle: float, notes: Any = True, reach: float | None = None, **more: Any
) -> None:
    """Cells with their numbers (or `notes`) in them, `label` at the colour bar. Colours go as far from `middle` as the
    cells do (at least by 0.1), or as `reach` says: cells that differ by little are to be told apart, too."""
    style: dict[str, Any] = {"cmap": "PuOr", "fmt": ".1f", "annot_kws": {"size": 8}} | more
    furthest = max(0.1, float((cells - middle).abs().max().max())) if reach is None else reach
    ends = {"vmin": middle - furthest, "vmax": middle + furthest}
    sns.heatmap(cells, annot=notes, ax=ax, cbar_kws={"label": label}, **ends, **style)


def matrix(
    cells: pd.DataFrame, label: str, middle: float, xlabel: str, ylabel: str, cell=(0.55, 0.5), **more: Any
) -> Figure:
    """A figure of one `heatmap`, with cells of so many inches, or smaller ones where there are many."""
    rows, columns = cells.shape
    figure, ax = new_figure(min(cell[0] * columns + 2.6, 14), min(cell[1] * rows + 1.4, 12))
    heatmap(ax, cells, label, middle, **more)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return figure


def legend(figure: Figure, loc: Any = "outside upper center", **options: Any) -> None:
    """Outside of the panels, with what stands in any of them once."""
    marks = {label: mark for ax in figure.axes for mark, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(marks.values(), marks.keys(), frameon=False, loc=loc, **options)


def save(figure: Figure, path: Path) -> None:
    """Write `path` with the endings .png and .svg. The same figure gives the same files."""
    with mpl.rc_context(STYLE):
        figure.savefig(path.with_suffix(".png"), dpi=150, bbox_inches="tight")
        figure.savefig(path.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})
