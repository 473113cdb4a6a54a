"""Figures of the evaluation, and of contexts in the prompt: pure functions from a table to a matplotlib `Figure`.
Accuracy by method and by user is in `users.py`."""

import pandas as pd
from matplotlib.figure import Figure

from prlhf_kit.figures.style import (
    PALETTE,
    heatmap,
    legend,
    names_down,
    new_figure,
    points,
    reference_line,
    side_by_side,
)
from prlhf_kit.figures.users import by_known_pairs

# as in evaluation/context.py and intervals.py, which take seconds to import, as figures should not
FOUR_WAYS = ("neither", "prompt only", "soft tokens", "both")
ALL = "all"


def win_matrix(table: pd.DataFrame) -> Figure:
    """Win rates of every system against every other, one panel a judge; a star: differs from 1/2 at 0.05 after Holm.

    `table`: rows of `win_rate.win_rates`.
    """
    judges = list(table.judge.unique())
    systems = list(dict.fromkeys([*table.system_a, *table.system_b]))
    side = 0.75 * len(systems)
    reach = max(0.1, float((table.win_rate - 0.5).abs().max()))  # the same in all panels
    figure, axes = new_figure(side + 3.2, (side + 1.6) * len(judges), nrows=len(judges), squeeze=False)
    for ax, judge in zip(axes.flat, judges, strict=True):
        part = table[table.judge == judge].pivot(index="system_a", columns="system_b", values=["win_rate", "p_holm"])
        rates, p = (part[of].reindex(index=systems, columns=systems).astype(float) for of in ("win_rate", "p_holm"))
        rates, p = rates.fillna(1 - rates.T), p.fillna(p.T)
        notes = rates.map("{:.2f}".format) + (p < 0.05).map({True: "*", False: ""}.get)
        heatmap(ax, rates, "win rate of the row", 0.5, notes, reach, fmt="", square=True)
        ax.set_facecolor("0.9")  # not compared: not the white of 0.5
        ax.set(title=f"judge: {judge}", xlabel="against", ylabel="system")
        ax.set_xticks(ax.get_xticks(), systems, rotation=40, ha="right")
        ax.tick_params(axis="y", rotation=0)
    return figure


def policy_accuracy(table: pd.DataFrame) -> Figure:
    """Does a model that is steered by a good reward prefer what was chosen?

    `table`: intervals of `policy.policy_ranks` by `method` (the guide), `weight` and `of`.
    """
    figure, ax = new_figure(7, 3.8)
    for i, (guide, rows) in enumerate(table.groupby("method", sort=False)):
        steered, reward = rows[rows.of == "steered model"], rows[rows.of == "reward alone"].iloc[0]
        x = steered.weight + 0.03 * i
        points(ax, steered, x, i, upright=True, linestyle="-", label=f"{guide}: steered model")
        color = PALETTE[i % 8]
        ax.axhline(reward.value, label=f"{guide}: reward alone", color=color, linestyle="--", linewidth=1)
        ax.axhspan(reward.low, reward.high, color=color, alpha=0.07, linewidth=0)
    reference_line(ax, 0.5, vertical=False)
    ylabel = "pairs whose chosen response\nis the likelier (95% interval)"
    ax.set(xlabel="weight w of the reward", ylabel=ylabel, ylim=(0, 1.02))
    legend(figure, ncols=2)
    return figure


def bench(table: pd.DataFrame) -> Figure:
    """A row of panels a dataset: each method's accuracy for seen users, and for new ones by the pairs that are known.

    `table`: intervals by `dataset`, `split`, `method` and `k`.
    """
    sets, kinds = list(dict.fromkeys(table.dataset)), list(dict.fromkeys(table.method))
    figure, axes = new_figure(11, 3.6 * len(sets) + 1, nrows=len(sets), ncols=2, squeeze=False)
    for (left, right), (name, rows) in zip(axes, table.groupby("dataset", sort=False), strict=True):
        seen, new = rows[rows.split == "test_seen"], rows[rows.split == "test_unseen"]
        for place, one in enumerate(seen.method):
            points(left, seen[seen.method == one], [place], kinds.index(one), label=one)
        if len(seen):
            names_down(left, list(seen.method))
        reference_line(left, 0.5)
        by_known_pairs(right, new, "method", kinds)
        left.set(title=f"{name}, seen users", xlabel="accuracy (95% interval)", xlim=(0, 1))
        right.set(title=f"{name}, new users", xlabel="known pairs of the user, k", ylabel="accuracy", ylim=(0, 1.02))
        for ax, shown in ((left, seen), (right, new)):
            ax.set_visible(len(shown) > 0)
    legend(figure, ncols=3)
    return figure


def _panels(names: list, rows: float, legend_rows: int):
    """Panels below each other, `rows` lines of text high each, so that a page as narrow as a phone's keeps labels."""
    height = (0.34 * rows + 1.15) * len(names) + 0.28 * legend_rows
    figure, axes = new_figure(6.4, height, nrows=len(names), squeeze=False)
    return figure, dict(zip(names, axes[:, 0], strict=True))


def four_way(table: pd.DataFrame) -> Figure:
    """Prompt only, soft user tokens, both, neither: accuracy with intervals, one panel a dataset, controls in grey.

    `table`: rows of `context.four_way`, its first table: intervals by `dataset` and `method`, with `users`.
    """
    panels = table.groupby("dataset", sort=False)
    figure, axes = _panels(list(panels.groups), panels.method.nunique().max(), 1)
    low = min(0.5, table[["low", "value"]].min().min())
    for dataset, part in panels:
        ax, is_way = axes[dataset], part.method.isin(FOUR_WAYS)
        ways = [way for way in FOUR_WAYS if way in set(part.method)]
        methods = [*ways, *dict.fromkeys(part.method[~is_way])]
        side_by_side(ax, part[is_way], "method", "method", methods, 0, kinds=FOUR_WAYS)
        side_by_side(ax, part[~is_way], "method", "method", methods, 0, color="0.55", marker="o")
        reference_line(ax, 0.5)
        ax.set_title(f"{dataset}: {_count(part.n)} items, {_count(part.users)} users", fontsize=10, loc="left")
        ax.set(xlim=(max(-0.02, low - 0.05), 1.02))
    ax.set_xlabel("accuracy on held-out items (95% interval; dotted: chance)")
    return figure


def _count(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def by_context(table: pd.DataFrame) -> Figure:
    """Accuracy of methods with the right, no, and others' context in the same prompts.

    `table`: intervals by `method` and `context` ("true", "none", "random", "shuffled").
    """
    methods = list(dict.fromkeys(table.method))
    figure, ax = new_figure(6.4, 0.55 * len(methods) + 1.6)
    side_by_side(ax, table.replace({"context": {"true": "right"}}), "context", "method", methods, 0.18)
    reference_line(ax, 0.5)
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
