"""Figures of the evaluation: pure functions from a table to a matplotlib `Figure`. Accuracy by method and by user is
in `users.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prlhf_kit.figures.style import (
    PALETTE,
    crossed,
    heatmap,
    legend,
    look,
    names_down,
    new_figure,
    numbered,
    points,
    reference_line,
    scatter,
    side_by_side,
)


def win_matrix(table: pd.DataFrame) -> Figure:
    """Win rates of every system against every other, one panel a judge; a star: differs from 1/2 at 0.05 after Holm.

    `table`: rows of `win_rate.win_rates`.
    """
    judges = list(table.judge.unique())
    systems = list(dict.fromkeys([*table.system_a, *table.system_b]))
    side, stacked = 0.75 * len(systems), len(systems) > 6
    rows, columns = (len(judges), 1) if stacked else (1, len(judges))
    size = (side * columns + 3.2, (side + 1.6) * rows)
    figure, axes = new_figure(*size, nrows=rows, ncols=columns, sharey=not stacked, squeeze=False)
    for number, (ax, judge) in enumerate(zip(axes.flat, judges, strict=True)):
        part = table[table.judge == judge].pivot(index="system_a", columns="system_b", values=["win_rate", "p_holm"])
        rates, p = (part[of].reindex(index=systems, columns=systems).astype(float) for of in ("win_rate", "p_holm"))
        rates, p = rates.fillna(1 - rates.T), p.fillna(p.T)
        notes = rates.map("{:.2f}".format) + (p < 0.05).map({True: "*", False: ""}.get)
        last = stacked or number == len(judges) - 1
        heatmap(ax, rates, "win rate of the row", 0, 1, notes, fmt="", square=True, cbar=last)
        ax.set_facecolor("0.9")  # not compared: not the white of 0.5
        ax.set(title=f"judge: {judge}", xlabel="against", ylabel="system" if stacked or not number else "")
        ax.tick_params(axis="x", rotation=40)
        ax.tick_params(axis="y", rotation=0)
        for label in ax.get_xticklabels():
            label.set_horizontalalignment("right")
    return figure


def ratings(table: pd.DataFrame) -> Figure:
    """Bradley-Terry ratings with intervals, by judge. `table`: rows of `win_rate.bradley_terry`."""
    systems = list(dict.fromkeys(table.sort_values("rating", ascending=False).system))
    figure, ax = new_figure(7, 0.45 * len(systems) + 1.4)
    side_by_side(ax, table, "judge", "system", systems, 0.16, "rating")
    reference_line(ax, 1000)
    ax.set(xlabel="Bradley-Terry rating (Elo's scale, mean 1000; 95% interval)")
    legend(figure, "outside right upper", title="judge")
    return figure


def dimensions(table: pd.DataFrame) -> Figure:
    """Methods over preference dimensions, as lines over parallel axes with intervals.

    `table`: intervals by `method` and `dimension`, and `unit` (the same everywhere).
    """
    names = list(dict.fromkeys(table.dimension))
    figure, ax = new_figure(1.5 * len(names) + 3.5, 3.8)
    style: dict[str, Any] = {"upright": True, "linestyle": "-", "linewidth": 1.2}
    side_by_side(ax, table, "method", "dimension", names, 0.07, **style)
    ax.tick_params(axis="x", rotation=20 if max(map(len, names)) > 12 else 0)
    ax.grid(axis="x", color="0.85")
    reference_line(ax, 0, vertical=False)
    ax.set(xlabel="preference dimension", ylabel=f"{table.unit.iloc[0]}\n(95% interval)")
    legend(figure, "outside right upper")
    return figure


def reward_front(table: pd.DataFrame) -> Figure:
    """Two things that are wanted at once, by weight; ringed: nothing else is better in both (the Pareto front).

    `table`: rows of `steering.front` by `guide` and `weight`; its first `measure` lies along x, its second along y.
    """
    of_x, of_y = table.measure.unique()
    figure, ax = new_figure(7, 4.2)
    for i, (guide, rows) in enumerate(table.groupby("guide", sort=False)):
        x, y = rows[rows.measure == of_x], rows[rows.measure == of_y]
        ax.plot(x.value, y.value, **look(i), linewidth=1, label=guide)
        crossed(ax, x, y, i, marker="", alpha=0.2)
        numbered(ax, x.weight, x.value, y.value, "{:g}", fontsize=8)
    best_x, best_y = (table.value[table.front & (table.measure == of)] for of in (of_x, of_y))
    ax.scatter(best_x, best_y, s=170, facecolors="none", edgecolors="black", linewidths=1, label="Pareto front")
    ax.margins(0.1)
    ax.set(xlabel=f"{of_x} (95% intervals)", ylabel=f"{of_y} (numbers: w)")
    legend(figure, ncols=2)
    return figure


def length_against_win(table: pd.DataFrame) -> Figure:
    """Do longer answers win? One point a user and comparison.

    `table`: columns `comparison`, `user_id`, `longer` (mean words of a's answers minus b's), `win_rate`.
    """
    figure, ax = new_figure(7, 3.8)
    scatter(ax, table, "comparison", "longer", "win_rate", s=36, alpha=0.8)
    reference_line(ax, 0)
    reference_line(ax, 0.5, vertical=False)
    xlabel = "words in one's own answers minus words in the other's (mean)"
    ax.set(xlabel=xlabel, ylabel="win rate of a user", ylim=(-0.05, 1.05))
    legend(figure, ncols=2)
    return figure


def fairness(table: pd.DataFrame) -> Figure:
    """What each user gains over the generic model, the least first.

    `table`: intervals by `user_id` and `group` in the order to draw, and `unit` (the same everywhere).
    """
    figure, ax = new_figure(7, min(max(0.28 * len(table), 1.2), 20) + 1.2)
    side_by_side(ax, table.assign(group=table.group.fillna("")), "group", "user_id", list(table.user_id), 0)
    reference_line(ax, 0)
    ax.set(xlabel=f"{table.unit.iloc[0]} (95% interval)", ylabel="user, the least served first")
    if table.group.any():
        legend(figure, "outside right upper", title="type")
    return figure


def position_bias(table: pd.DataFrame) -> Figure:
    """Do judges prefer what they see first, and how often do the two orders disagree?

    `table`: rows of `win_rate.position_bias`.
    """
    bias, disagree = (table[table.measure == measure] for measure in table.measure.unique())
    figure, (left, right) = new_figure(8, 0.4 * len(bias) + 1.3, ncols=2, sharey=True, width_ratios=[3, 2])
    y = np.arange(len(bias))
    points(left, bias, y, 0)
    names_down(left, list(bias.judge))
    left.set(xlabel="position bias (-1: always the second,\n1: always the first; 95% interval)", xlim=(-1.05, 1.05))
    reference_line(left, 0)
    right.barh(y, 100 * disagree.value, color=PALETTE[1], height=0.5)
    right.set(xlabel="pairs on which the two\norders disagree (%)", xlim=(0, 100))
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


def alignment_tax(table: pd.DataFrame) -> Figure:
    """What personalisation costs elsewhere: change of accuracy on general sets against the untrained model.

    `table`: `intervals.differences` by `set`: `one` is the model.
    """
    sets = list(dict.fromkeys(table["set"]))
    figure, ax = new_figure(7, 0.5 * len(sets) + 1.4)
    side_by_side(ax, table, "one", "set", sets, 0.18, "difference")
    reference_line(ax, 0)
    ax.set(xlabel="accuracy minus that of the untrained model (95% interval)")
    legend(figure, ncols=3)
    return figure


FIGURES = {
    "win_matrix": ("05b_answers_and_judges", "win_rates", win_matrix),
    "ratings": ("05b_answers_and_judges", "ratings", ratings),
    "fairness": ("05_evaluation", "fairness", fairness),
    "position_bias": ("05b_answers_and_judges", "position_bias", position_bias),
    "policy_accuracy": ("05_evaluation", "policy_accuracy", policy_accuracy),
    "tax": ("05_evaluation", "tax", alignment_tax),
}
