"""Figures of the reader in the prompt: pure functions from a table to a matplotlib `Figure`."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from prlhf_kit.figures.style import (
    PALETTE,
    heatmap,
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


def context_heatmap(table: pd.DataFrame) -> Figure:
    """Accuracy on each community's pairs with each community's context in the prompt; framed: the right one.

    `table`: intervals of `context.context_matrix` by `community`, `context` ("none" is drawn first) and `right`, and by
    `dataset` where there are several: one panel each.
    """
    datasets = list(dict.fromkeys(table.dataset)) if "dataset" in table else [""]
    sizes = [table[table.dataset == d].community.nunique() if d else table.community.nunique() for d in datasets]
    width, height = 0.72 * (max(sizes) + 1) + 3.4, sum(0.5 * size + 2.1 for size in sizes)
    figure, axes = new_figure(width, height, nrows=len(datasets), squeeze=False, height_ratios=[s + 3 for s in sizes])
    reach = max(0.1, float((table.value - 0.5).abs().max()))  # the same in all panels
    for ax, dataset in zip(axes[:, 0], datasets, strict=True):
        part = table[table.dataset == dataset] if dataset else table
        communities = list(dict.fromkeys(part.community))
        contexts = [NONE, *communities]
        cells = part.pivot(index="community", columns="context", values="value").loc[communities, contexts]
        heatmap(ax, cells, "accuracy (white: chance)", 0.5, reach=reach, fmt=".2f")
        for row in part[part.right].itertuples():
            place = contexts.index(row.context), communities.index(row.community)
            ax.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="black", linewidth=2, clip_on=False))
        numbers = part.drop_duplicates("community").set_index("community").n
        ax.set_yticks(np.arange(len(communities)) + 0.5, [fill(f"{c} (n={numbers[c]:,})", 26) for c in communities])
        ax.set_xticks(np.arange(len(contexts)) + 0.5, [fill(str(c), 20) for c in contexts])
        ax.tick_params(axis="x", rotation=45)
        ax.tick_params(axis="y", rotation=0)
        for label in ax.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
        ax.set(xlabel="context in the prompt (framed: the right one)", ylabel="whose held-out pairs", title=dataset)
    return figure


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
