"""Figures of the evaluation: pure functions from a table to a matplotlib `Figure`. Accuracy by method and by user is
in `users.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prlhf_kit.figures.style import (
    PALETTE,
    draw_intervals,
    error_bars,
    heatmap,
    legend,
    marker_of,
    names_down,
    new_figure,
    reference_line,
    series_positions,
)


def win_matrix(table: pd.DataFrame) -> Figure:
    """Win rates of every system against every other, one panel a judge; a star: differs from 1/2 at 0.05 after Holm.

    `table`: rows of `win_rate.win_rates`.
    """
    judges = list(table.judge.unique())
    systems = list(dict.fromkeys([*table.system_a, *table.system_b]))
    side = 0.75 * len(systems)
    stacked = len(systems) > 6
    rows, columns = (len(judges), 1) if stacked else (1, len(judges))
    figure, axes = new_figure(
        side * columns + 3.2, (side + 1.6) * rows, nrows=rows, ncols=columns, sharey=not stacked, squeeze=False
    )
    for number, (ax, judge) in enumerate(zip(axes.flat, judges, strict=True)):
        cells = pd.DataFrame(np.nan, index=systems, columns=systems)
        notes = pd.DataFrame("", index=systems, columns=systems)
        part = table[table.judge == judge]
        for a, b, rate, p in zip(part.system_a, part.system_b, part.win_rate, part.p_holm, strict=True):
            star = "*" if p < 0.05 else ""
            for one, other, value in ((a, b, rate), (b, a, 1 - rate)):
                cells.loc[one, other] = value
                notes.loc[one, other] = "" if np.isnan(value) else f"{value:.2f}{star}"
        last = stacked or number == len(judges) - 1
        heatmap(ax, cells, "win rate of the row", 0, 1, notes, fmt="", square=True, cbar=last)
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
    judges = list(table.groupby("judge", sort=False))
    for i, (judge, rows) in enumerate(judges):
        draw_intervals(ax, rows, series_positions(systems, rows.system, i, len(judges), 0.16), i, "rating", label=judge)
    names_down(ax, systems)
    reference_line(ax, 1000)
    ax.set(xlabel="Bradley-Terry rating (Elo's scale, mean 1000; 95% interval)")
    legend(figure, ax, "outside right upper", title="judge")
    return figure


def dimensions(table: pd.DataFrame) -> Figure:
    """Methods over preference dimensions, as lines over parallel axes with intervals.

    `table`: intervals by `method` and `dimension`, and `unit` (the same everywhere).
    """
    names = list(dict.fromkeys(table.dimension))
    methods = list(table.groupby("method", sort=False))
    figure, ax = new_figure(1.5 * len(names) + 3.5, 3.8)
    for i, (method, rows) in enumerate(methods):
        x = series_positions(names, rows.dimension, i, len(methods), 0.07)
        style: dict[str, Any] = {"fmt": f"{marker_of(i)}-", "capsize": 2, "linewidth": 1.2, "label": method}
        draw_intervals(ax, rows, x, i, upright=True, **style)
    ax.set_xticks(range(len(names)), names, rotation=20 if max(map(len, names)) > 12 else 0)
    for place in range(len(names)):
        ax.axvline(place, color="0.85", linewidth=1, zorder=0)
    reference_line(ax, 0, vertical=False)
    ax.set(xlabel="preference dimension", ylabel=f"{table.unit.iloc[0]}\n(95% interval)")
    legend(figure, ax, "outside right upper")
    return figure


def reward_front(table: pd.DataFrame) -> Figure:
    """Two things that are wanted at once, by weight; ringed: nothing else is better in both (the Pareto front).

    `table`: rows of `steering.front` by `guide` and `weight`; its first `measure` lies along x, its second along y.
    """
    of_x, of_y = table.measure.unique()
    figure, ax = new_figure(7, 4.2)
    for i, (guide, rows) in enumerate(table.groupby("guide", sort=False)):
        x, y = rows[rows.measure == of_x], rows[rows.measure == of_y]
        ax.plot(x.value, y.value, color=PALETTE[i % 8], marker=marker_of(i), linewidth=1, label=guide)
        spans: dict[str, Any] = {"xerr": error_bars(x, "value"), "yerr": error_bars(y, "value")}
        ax.errorbar(x.value, y.value, **spans, fmt="none", ecolor=PALETTE[i % 8], alpha=0.2)
        for w, *place in zip(x.weight, x.value, y.value, strict=True):
            ax.annotate(f"{w:g}", place, xytext=(5, 4), textcoords="offset points", fontsize=8)
    best_x, best_y = (table.value[table.front & (table.measure == of)] for of in (of_x, of_y))
    ax.scatter(best_x, best_y, s=170, facecolors="none", edgecolors="black", linewidths=1, label="Pareto front")
    ax.margins(0.1)
    ax.set(xlabel=f"{of_x} (95% intervals)", ylabel=f"{of_y} (numbers: w)")
    legend(figure, ax, ncols=2)
    return figure


def length_against_win(table: pd.DataFrame) -> Figure:
    """Do longer answers win? One point a user and comparison.

    `table`: columns `comparison`, `user_id`, `longer` (mean words of a's answers minus b's), `win_rate`.
    """
    figure, ax = new_figure(7, 3.8)
    for i, (name, rows) in enumerate(table.groupby("comparison", sort=False)):
        ax.scatter(rows.longer, rows.win_rate, s=36, marker=marker_of(i), color=PALETTE[i % 8], alpha=0.8, label=name)
    reference_line(ax, 0)
    reference_line(ax, 0.5, vertical=False)
    ax.set(
        xlabel="words in one's own answers minus words in the other's (mean)",
        ylabel="win rate of a user",
        ylim=(-0.05, 1.05),
    )
    legend(figure, ax, ncols=2)
    return figure


def fairness(table: pd.DataFrame) -> Figure:
    """What each user gains over the generic model, the least first.

    `table`: intervals by `user_id` and `group` in the order to draw, and `unit` (the same everywhere).
    """
    figure, ax = new_figure(7, min(max(0.28 * len(table), 1.2), 20) + 1.2)
    groups = list(dict.fromkeys(table.group.fillna("")))
    for i, group in enumerate(groups):
        rows = table[table.group.fillna("") == group]
        draw_intervals(ax, rows, rows.index, i, label=group or None)
    names_down(ax, list(table.user_id) if len(table) <= 60 else [""] * len(table))
    reference_line(ax, 0)
    ax.set(xlabel=f"{table.unit.iloc[0]} (95% interval)", ylabel="user, the least served first")
    if groups != [""]:
        legend(figure, ax, "outside right upper", title="type")
    return figure


def position_bias(table: pd.DataFrame) -> Figure:
    """Do judges prefer what they see first, and how often do the two orders disagree?

    `table`: rows of `win_rate.position_bias`.
    """
    bias, disagree = (table[table.measure == measure] for measure in table.measure.unique())
    figure, (left, right) = new_figure(8, 0.4 * len(bias) + 1.3, ncols=2, sharey=True, width_ratios=[3, 2])
    y = np.arange(len(bias))
    draw_intervals(left, bias, y, 0)
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
        line: dict[str, Any] = {"fmt": f"{marker_of(i)}-", "label": f"{guide}: steered model"}
        draw_intervals(ax, steered, steered.weight + 0.03 * i, i, upright=True, **line)
        style: dict[str, Any] = {"color": PALETTE[i % 8], "linestyle": "--", "linewidth": 1}
        ax.axhline(reward.value, label=f"{guide}: reward alone", **style)
        ax.axhspan(reward.low, reward.high, color=PALETTE[i % 8], alpha=0.07, linewidth=0)
    reference_line(ax, 0.5, vertical=False)
    ax.set(
        xlabel="weight w of the reward",
        ylabel="pairs whose chosen response\nis the likelier (95% interval)",
        ylim=(0, 1.02),
    )
    legend(figure, ax, ncols=2)
    return figure


def alignment_tax(table: pd.DataFrame) -> Figure:
    """What personalisation costs elsewhere: change of accuracy on general sets against the untrained model.

    `table`: `intervals.differences` by `set`: `one` is the model.
    """
    sets = list(dict.fromkeys(table["set"]))
    figure, ax = new_figure(7, 0.5 * len(sets) + 1.4)
    models = list(table.groupby("one", sort=False))
    for i, (model, rows) in enumerate(models):
        draw_intervals(
            ax, rows, series_positions(sets, rows["set"], i, len(models), 0.18), i, "difference", label=model
        )
    names_down(ax, sets)
    reference_line(ax, 0)
    ax.set(xlabel="accuracy minus that of the untrained model (95% interval)")
    legend(figure, ax, ncols=3)
    return figure


FIGURES = {
    "win_matrix": ("05_evaluation", "win_rates", win_matrix),
    "ratings": ("05_evaluation", "ratings", ratings),
    "dimensions": ("05_evaluation", "dimensions", dimensions),
    "reward_front": ("05_evaluation", "reward_front", reward_front),
    "length_against_win": ("05_evaluation", "length_against_win", length_against_win),
    "fairness": ("05_evaluation", "fairness", fairness),
    "position_bias": ("05_evaluation", "position_bias", position_bias),
    "policy_accuracy": ("05_evaluation", "policy_accuracy", policy_accuracy),
    "tax": ("05_evaluation", "tax", alignment_tax),
}
