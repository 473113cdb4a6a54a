"""Figures of the reader in the prompt: pure functions from a table to a matplotlib `Figure`."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from prlhf_kit.figures.style import PALETTE, error_bars, heatmap, marker_of, new_figure, reference_line
from prlhf_kit.figures.users import learning_curves

# as in evaluation/context.py, intervals.py and options.py, which take seconds to import, as figures should not
FOUR_WAYS = ("neither", "prompt only", "soft tokens", "both")
NONE, ALL = "none", "all"
LIKELIHOOD, SHORTEST, LONGEST = "likelihood a token", "shortest option", "longest option"

CONTROL = "0.55"  # grey of what is there to compare with
CONTEXTS = {
    "true": ("right", 0, "o"),
    "user_text": ("right", 0, "o"),
    NONE: (NONE, 7, "s"),
    "random": ("random", 5, "D"),
    "shuffled": ("shuffled", 3, "^"),
}
"""Context -> its name in the picture, its colour and its marker: the same in all figures."""


def _panels(names: list, rows: float, width: float = 6.4, legend: int = 0):
    """Panels below each other, `rows` lines of text high each, so that a page as narrow as a phone's keeps labels."""
    height = (0.34 * rows + 1.15) * len(names) + 0.28 * legend
    figure, axes = new_figure(width, height, nrows=len(names), squeeze=False)
    return figure, dict(zip(names, axes[:, 0], strict=True))


def _labels(ax: Axes, names: list, width: int = 26) -> None:
    """Names down the y axis, long ones in several lines, the first on top."""
    ax.set_yticks(range(len(names)), [fill(str(name), width) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    for place in range(len(names)):
        ax.axhline(place, color="0.92", linewidth=1, zorder=0)


def _points(ax: Axes, rows: pd.DataFrame, y, value: str, color: str, marker: str, label: str | None = None) -> None:
    ax.errorbar(rows[value], y, xerr=error_bars(rows, value), fmt=marker, color=color, capsize=3, label=label)


def four_way(table: pd.DataFrame) -> Figure:
    """Prompt only, soft user tokens, both, neither: accuracy with intervals, one panel a dataset, controls in grey.

    `table`: rows of `context.four_way`, its first table: intervals by `dataset` and `method`, with `users` and `chance`
    (the dotted line).
    """
    controls = [method for method in dict.fromkeys(table.method) if method not in FOUR_WAYS]
    known = [method for method in [*FOUR_WAYS, *controls] if method in set(table.method)]
    figure, axes = _panels(list(dict.fromkeys(table.dataset)), len(known))
    low = min(table.low.min(), table.value.min(), table.chance.min())
    for dataset, ax in axes.items():
        part = table[table.dataset == dataset]
        methods = [method for method in known if method in set(part.method)]
        for i, method in enumerate(methods):
            color = PALETTE[FOUR_WAYS.index(method)] if method in FOUR_WAYS else CONTROL
            marker = marker_of(FOUR_WAYS.index(method)) if method in FOUR_WAYS else "o"
            _points(ax, part[part.method == method], [i], "value", color, marker)
        _labels(ax, methods)
        reference_line(ax, part.chance.iloc[0])
        ax.set_title(f"{dataset}: {_count(part.n)} items, {_count(part.users)} users", fontsize=10, loc="left")
        ax.set(xlim=(max(0, low - 0.05), 1.02))
    ax.set_xlabel("accuracy on held-out items (95% interval; dotted: chance)")
    return figure


def _count(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def context_heatmap(table: pd.DataFrame) -> Figure:
    """Accuracy on each community's pairs with each community's context in the prompt; framed: the right one.

    `table`: intervals of `context.context_matrix` by `community`, `context` ("none" is drawn first) and `right`, and by
    `dataset` where there are several: one panel each.
    """
    datasets = list(dict.fromkeys(table.dataset)) if "dataset" in table else [""]
    sizes = [table[table.dataset == d].community.nunique() if d else table.community.nunique() for d in datasets]
    width, height = 0.72 * (max(sizes) + 1) + 3.4, sum(0.5 * size + 2.1 for size in sizes)
    figure, axes = new_figure(width, height, nrows=len(datasets), squeeze=False, height_ratios=[s + 3 for s in sizes])
    reach = max(0.1, float((table.value - 0.5).abs().max()))
    for ax, dataset in zip(axes[:, 0], datasets, strict=True):
        part = table[table.dataset == dataset] if dataset else table
        communities = list(dict.fromkeys(part.community))
        contexts = [NONE, *communities]
        cells = part.pivot(index="community", columns="context", values="value").loc[communities, contexts]
        heatmap(ax, cells, "accuracy (white: chance)", 0.5 - reach, 0.5 + reach, fmt=".2f")
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


def option_accuracy(table: pd.DataFrame) -> Figure:
    """Multiple choice by likelihood, with and without the reader in the prompt, by method; grey: rules of length.

    `table`: intervals by `rule` (`options.RULES`), `method` and `context` (what stood in the prompt), with `chance`
    (the dotted line). The rules of length know no model, so each is drawn once.
    """
    likely = table[table.rule == LIKELIHOOD]
    rules = table[table.rule.isin([SHORTEST, LONGEST])].drop_duplicates("rule")
    methods = list(dict.fromkeys(likely.method))
    names = [*methods, *rules.rule]
    figure, axes = _panels([""], len(names), legend=1)
    ax = axes[""]
    _by_context(ax, likely, methods)
    _points(ax, rules, len(methods) + np.arange(len(rules)), "value", CONTROL, "o")
    _labels(ax, names)
    reference_line(ax, table.chance.iloc[0])
    ax.set(
        xlabel="questions answered as the user's preference asks\n(share; 95% interval; dotted: chance)",
        xlim=(-0.02, 1.02),
    )
    _legend(figure, [ax], "context")
    return figure


def by_context(table: pd.DataFrame) -> Figure:
    """Accuracy of methods with the right, no, and others' context in the same prompts, one panel a dataset.

    `table`: intervals by `method` and `context`, and by `dataset` where there are several, with `chance` (the dotted
    line).
    """
    datasets = list(dict.fromkeys(table.dataset)) if "dataset" in table else [""]
    rows = 1.6 * table.groupby("dataset").method.nunique().max() if datasets[0] else 1.6 * table.method.nunique()
    figure, axes = _panels(datasets, rows, legend=1)
    low = min(table.low.min(), table.value.min(), table.chance.min())
    for dataset, ax in axes.items():
        part = table[table.dataset == dataset] if dataset else table
        methods = list(dict.fromkeys(part.method))
        _by_context(ax, part, methods)
        _labels(ax, methods)
        reference_line(ax, part.chance.iloc[0])
        ax.set_title(f"{dataset or 'held-out'}: {_count(part.n)} items", fontsize=10, loc="left")
        ax.set(xlim=(max(0, low - 0.05), 1.02))
    ax.set_xlabel("accuracy (95% interval; dotted: chance)")
    _legend(figure, axes.values(), "context")
    return figure


def _by_context(ax: Axes, rows: pd.DataFrame, methods: list) -> None:
    """One line a method, one mark a context."""
    known = [context for context in CONTEXTS if context in set(rows.context)]
    for i, context in enumerate(known):
        part = rows[rows.context == context]
        y = [methods.index(method) + 0.18 * (i - (len(known) - 1) / 2) for method in part.method]
        name, color, marker = CONTEXTS[context]
        _points(ax, part, y, "value", PALETTE[color], marker, name)


def _legend(figure: Figure, axes: Iterable[Axes], title: str, columns: int = 4) -> None:
    """Above the panels, with what stands in any of them once."""
    marks = {label: mark for ax in axes for mark, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(marks.values(), marks.keys(), frameon=False, title=title, loc="outside upper center", ncols=columns)


def community_win_rates(table: pd.DataFrame) -> Figure:
    """Win rates by community with intervals, one panel a judge, one mark a comparison; filled: differs from 1/2 at 0.05
    after Holm.

    `table`: rows of `win_rate.win_rates_by_community`.
    """
    communities = [c for c in dict.fromkeys(table.community) if c != ALL] + [ALL] * (ALL in set(table.community))
    pairs = list(dict.fromkeys(zip(table.system_a, table.system_b, strict=True)))
    lines = max(1.0, 0.6 * len(pairs)) * len(communities)
    figure, axes = _panels(list(dict.fromkeys(table.judge)), lines, legend=len(pairs) + 1)
    for judge, ax in axes.items():
        for i, (a, b) in enumerate(pairs):
            rows = table[(table.judge == judge) & (table.system_a == a) & (table.system_b == b)]
            y = np.array([communities.index(c) for c in rows.community]) + 0.22 * (i - (len(pairs) - 1) / 2)
            _points(ax, rows, y, "win_rate", PALETTE[i % 8], marker_of(i), f"{a} over {b}")
            open_ = (~(rows.p_holm < 0.05)).to_numpy()
            ax.plot(
                rows.win_rate[open_], y[open_], marker_of(i), color=PALETTE[i % 8], markerfacecolor="white", zorder=3
            )
        _labels(ax, communities)
        reference_line(ax, 0.5)
        ax.set_title(f"judge: {judge}", fontsize=10, loc="left")
        ax.set(xlim=(-0.02, 1.02))
    ax.set_xlabel("win rate of the first (95% interval; filled: p < 0.05, Holm over communities)")
    _legend(figure, axes.values(), "", columns=1)
    return figure


FIGURES = {
    "context_curves": ("08_community_context", "history", learning_curves),
    "four_way": ("08_community_context", "four_way", four_way),
    "context_heatmap": ("08_community_context", "context_matrix", context_heatmap),
    "option_accuracy": ("08_community_context", "option_accuracy", option_accuracy),
    "by_context": ("08_community_context", "by_context", by_context),
    "community_win_rates": ("08_community_context", "community_win_rates", community_win_rates),
}
