"""Figures of the reader in the prompt: pure functions from a table to a matplotlib `Figure`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prlhf_kit.figures.style import (
    PALETTE,
    legend,
    look,
    names_down,
    new_figure,
    points,
    reference_line,
    side_by_side,
)

# as in evaluation/context.py and intervals.py, which take seconds to import, as figures should not
FOUR_WAYS = ("neither", "prompt only", "soft tokens", "both")
NONE, ALL = "none", "all"

CONTROL: dict[str, Any] = {"color": "0.55", "marker": "o"}  # grey of what is there to compare with
CONTEXTS = {
    "true": ("right", PALETTE[0], "o"),
    "user_text": ("right", PALETTE[0], "o"),
    NONE: (NONE, PALETTE[7], "s"),
    "random": ("random", PALETTE[5], "D"),
    "shuffled": ("shuffled", PALETTE[3], "^"),
}
"""Context -> its name in the picture, its colour and its marker: the same in all figures."""


def _panels(names: list, rows: float, legend_rows: int):
    """Panels below each other, `rows` lines of text high each, so that a page as narrow as a phone's keeps labels."""
    height = (0.34 * rows + 1.15) * len(names) + 0.28 * legend_rows
    figure, axes = new_figure(6.4, height, nrows=len(names), squeeze=False)
    return figure, dict(zip(names, axes[:, 0], strict=True))


def _by_dataset(table: pd.DataFrame, xlabel: str, rows: float, mark: Callable[[Axes, pd.DataFrame, list], None]):
    """Accuracies of methods, one panel a dataset: `mark` draws them at the places of the methods. Dotted: chance."""
    table = table if "dataset" in table else table.assign(dataset="held-out")
    panels = table.groupby("dataset", sort=False)
    figure, axes = _panels(list(panels.groups), rows * panels.method.nunique().max(), 1)
    rank = {method: i for i, method in enumerate(FOUR_WAYS)}  # before all others
    low = float(table[["low", "value", "chance"]].min().min())
    for dataset, part in panels:
        ax = axes[dataset]
        methods = sorted(dict.fromkeys(part.method), key=lambda method: rank.get(method, len(rank)))
        mark(ax, part, methods)
        names_down(ax, methods)
        reference_line(ax, part.chance.iloc[0])
        users = f", {_count(part.users)} users" if "users" in part else ""
        ax.set_title(f"{dataset}: {_count(part.n)} items{users}", fontsize=10, loc="left")
        ax.set(xlim=(max(-0.02, low - 0.05), 1.02))
    ax.set_xlabel(xlabel)
    return figure


def _count(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def four_way(table: pd.DataFrame) -> Figure:
    """Prompt only, soft user tokens, both, neither: accuracy with intervals, one panel a dataset, controls in grey.

    `table`: rows of `context.four_way`, its first table: intervals by `dataset` and `method`, with `users` and `chance`
    (the dotted line).
    """

    def mark(ax: Axes, part: pd.DataFrame, methods: list) -> None:
        for place, method in enumerate(methods):
            style = look(FOUR_WAYS.index(method)) if method in FOUR_WAYS else CONTROL
            points(ax, part[part.method == method], [place], 0, **style)

    return _by_dataset(table, "accuracy on held-out items (95% interval; dotted: chance)", 1, mark)


def by_context(table: pd.DataFrame) -> Figure:
    """Accuracy of methods with the right, no, and others' context in the same prompts, one panel a dataset.

    `table`: intervals by `method` and `context`, and by `dataset` where there are several, with `chance` (the dotted
    line).
    """

    def mark(ax: Axes, part: pd.DataFrame, methods: list) -> None:
        known = [context for context in CONTEXTS if context in set(part.context)]
        for i, context in enumerate(known):
            rows, (name, color, marker) = part[part.context == context], CONTEXTS[context]
            at = [methods.index(method) + 0.18 * (i - (len(known) - 1) / 2) for method in rows.method]
            points(ax, rows, at, 0, color=color, marker=marker, label=name)

    figure = _by_dataset(table, "accuracy (95% interval; dotted: chance)", 1.6, mark)
    legend(figure, title="context", ncols=4)
    return figure


def community_win_rates(table: pd.DataFrame) -> Figure:
    """Win rates by community with intervals, one panel a judge, one mark a comparison; filled: differs from 1/2 at 0.05
    after Holm.

    `table`: rows of `win_rate.win_rates_by_community`.
    """
    communities = [c for c in dict.fromkeys(table.community) if c != ALL] + [ALL] * (ALL in set(table.community))
    table = table.assign(pair=table.system_a + " over " + table.system_b)
    pairs = list(dict.fromkeys(table.pair))
    lines = max(1.0, 0.6 * len(pairs)) * len(communities)
    figure, axes = _panels(list(dict.fromkeys(table.judge)), lines, len(pairs) + 1)
    for judge, ax in axes.items():
        for color in ("white", None):  # the filled ones last: theirs is the legend's mark
            part = table[(table.judge == judge) & ((table.p_holm < 0.05) == (color is None))]
            style = {"markerfacecolor": color}
            side_by_side(ax, part, "pair", "community", communities, 0.22, "win_rate", pairs, **style)
        reference_line(ax, 0.5)
        ax.set_title(f"judge: {judge}", fontsize=10, loc="left")
        ax.set(xlim=(-0.02, 1.02))
    ax.set_xlabel("win rate of the first (95% interval; filled: p < 0.05, Holm over communities)")
    legend(figure, ncols=1)
    return figure
