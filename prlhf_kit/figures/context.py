"""Figures of contexts in the prompt: pure functions from a table to a matplotlib `Figure`."""

import pandas as pd
from matplotlib.figure import Figure

from prlhf_kit.figures.style import legend, new_figure, reference_line, side_by_side

# as in evaluation/context.py and intervals.py, which take seconds to import, as figures should not
FOUR_WAYS = ("neither", "prompt only", "soft tokens", "both")
NONE, ALL = "none", "all"


def _panels(names: list, rows: float, legend_rows: int):
    """Panels below each other, `rows` lines of text high each, so that a page as narrow as a phone's keeps labels."""
    height = (0.34 * rows + 1.15) * len(names) + 0.28 * legend_rows
    figure, axes = new_figure(6.4, height, nrows=len(names), squeeze=False)
    return figure, dict(zip(names, axes[:, 0], strict=True))


def four_way(table: pd.DataFrame) -> Figure:
    """Prompt only, soft user tokens, both, neither: accuracy with intervals, one panel a dataset, controls in grey.

    `table`: rows of `context.four_way`, its first table: intervals by `dataset` and `method`, with `users` and `chance`
    (the dotted line).
    """
    panels = table.groupby("dataset", sort=False)
    figure, axes = _panels(list(panels.groups), panels.method.nunique().max(), 1)
    low = float(table[["low", "value", "chance"]].min().min())
    for dataset, part in panels:
        ax, is_way = axes[dataset], part.method.isin(FOUR_WAYS)
        ways = [way for way in FOUR_WAYS if way in set(part.method)]
        methods = [*ways, *dict.fromkeys(part.method[~is_way])]
        side_by_side(ax, part[is_way], "method", "method", methods, 0, kinds=FOUR_WAYS)
        side_by_side(ax, part[~is_way], "method", "method", methods, 0, color="0.55", marker="o")
        reference_line(ax, part.chance.iloc[0])
        ax.set_title(f"{dataset}: {_count(part.n)} items, {_count(part.users)} users", fontsize=10, loc="left")
        ax.set(xlim=(max(-0.02, low - 0.05), 1.02))
    ax.set_xlabel("accuracy on held-out items (95% interval; dotted: chance)")
    return figure


def _count(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def by_context(table: pd.DataFrame) -> Figure:
    """Accuracy of methods with the right, no, and others' context in the same prompts.

    `table`: intervals by `method` and `context` ("true", "none", "random", "shuffled"), with `chance`.
    """
    methods = list(dict.fromkeys(table.method))
    figure, ax = new_figure(6.4, 0.55 * len(methods) + 1.6)
    side_by_side(ax, table.replace({"context": {"true": "right"}}), "context", "method", methods, 0.18)
    reference_line(ax, table.chance.iloc[0])
    ax.set(xlabel="accuracy (95% interval; dotted: chance)", xlim=(None, 1.02))
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
