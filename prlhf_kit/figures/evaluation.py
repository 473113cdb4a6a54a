"""Figures of the evaluation: pure functions from a table to a matplotlib `Figure`. Accuracy by method and by user is
in `users.py`."""

import pandas as pd
from matplotlib.figure import Figure

from prlhf_kit.figures.style import PALETTE, heatmap, legend, names_down, new_figure, points, reference_line
from prlhf_kit.figures.users import by_known_pairs


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
