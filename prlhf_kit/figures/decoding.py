"""Figures of guided decoding: pure functions from a table to a matplotlib `Figure`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prlhf_kit.figures.style import PALETTE, error_bars, legend, new_figure, reference_line

MARKERS = ("o", "s", "^", "D", "v", "P")


def reward_by_weight(table: pd.DataFrame) -> Figure:
    """What steering gains, against its weight and against the distance from the base; and the tokens it changed.

    The divergence of a greedy policy from the base is minus the base's log-probability of its answers.

    `table`: intervals of `gain` (`evaluation.steering.gains`) by `guide` and `weight`.
    """
    figure, (left, middle, right) = new_figure(11, 3.6, ncols=3)
    for number, (guide, group) in enumerate(table.groupby("guide", sort=False)):
        style = {"color": PALETTE[number], "marker": MARKERS[number]}
        left.errorbar(group.weight, group.gain, yerr=error_bars(group, "gain"), capsize=3, label=guide, **style)
        middle.plot(-group.logp, group.gain, linewidth=1, **style)
        for w, x, y in zip(group.weight, -group.logp, group.gain, strict=True):
            middle.annotate(f"{w:g}", (x, y), xytext=(4, 3), textcoords="offset points")
        right.plot(group.weight, 100 * group.changed, **style)
    for ax in (left, middle):
        reference_line(ax, 0, vertical=False)
    left.set(xlabel="weight w", ylabel="reward gained over the base\n(judge's units, 95% interval)")
    middle.set(xlabel="divergence of the answers from the base\n(nats a token)", ylabel="reward gained (numbers: w)")
    right.set(xlabel="weight w", ylabel="tokens that differ from the\nbase's choice (%)", ylim=(0, None))
    legend(figure, left, ncols=4)
    return figure


def steering_methods(table: pd.DataFrame) -> Figure:
    """Ways to answer as a person prefers, side by side: what they gain, and how likely the base finds the answers.

    `table`: intervals of `gain` (`evaluation.steering.gains`) by `method`.
    """
    figure, (left, right) = new_figure(9, 0.6 + 0.38 * len(table), ncols=2, sharey=True, width_ratios=[3, 2])
    places = np.arange(len(table))[::-1]
    left.errorbar(table.gain, places, xerr=error_bars(table, "gain"), fmt="o", color=PALETTE[0], capsize=3)
    reference_line(left, 0)
    left.set_yticks(places, table.method)
    left.set(xlabel="reward gained over the base\n(judge's units, 95% interval)", ylim=(-0.6, len(table) - 0.4))
    right.plot(table.logp, places, "s", color=PALETTE[5])
    right.set(xlabel="log-probability under the base\n(nats a token)")
    return figure


def asked_seldom(table: pd.DataFrame) -> Figure:
    """Quality against time where the guide is asked for some tokens only.

    `table`: intervals of `gain` (`evaluation.steering.gains`) by `asks` (when it is asked) with `slower`
    (times the base's own time).
    """
    figure, ax = new_figure(7, 3.4)
    labels = [f"{name} ({share:.0%})" for name, share in zip(table.asks, table.asked, strict=True)]
    for number, label in enumerate(labels):
        one = table.iloc[[number]]
        style: dict[str, Any] = {
            "fmt": MARKERS[number % len(MARKERS)],
            "color": PALETTE[number],
            "capsize": 3,
            "label": label,
        }
        ax.errorbar(one.slower, one.gain, yerr=error_bars(one, "gain"), **style)
    reference_line(ax, 0, vertical=False)
    ax.set(xlabel="time (times the base's own)", ylabel="reward gained over the base\n(judge's units, 95% interval)")
    legend(figure, ax, "outside right upper", title="asked at (share of tokens)")
    return figure


def two_preferences(table: pd.DataFrame) -> Figure:
    """Answers steered towards one preference, the other, and both: what each of the two people gains.

    `table`: of `evaluation.steering.gains_of_two`.
    """
    first, second = table.user_id.unique()
    figure, ax = new_figure(6.5, 4)
    for number, (towards, group) in enumerate(table.groupby("towards", sort=False)):
        x, y = (group[group.user_id == user] for user in (first, second))
        spans: dict[str, Any] = {"xerr": error_bars(x, "gain"), "yerr": error_bars(y, "gain")}
        style: dict[str, Any] = {
            "fmt": MARKERS[number % len(MARKERS)],
            "color": PALETTE[number],
            "markersize": 8,
            "elinewidth": 1,
        }
        ax.errorbar(x.gain, y.gain, **spans, **style, label=towards)
    reference_line(ax, 0, vertical=False)
    reference_line(ax, 0)
    ax.set(xlabel=f"gained by {first} (judge's units)", ylabel=f"gained by {second}\n(judge's units)")
    legend(figure, ax, "outside right upper", title="towards")
    return figure


FIGURES = {
    "reward_by_weight": ("04_pad_decoding", "reward_by_weight", reward_by_weight),
    "steering_methods": ("04_pad_decoding", "steering_methods", steering_methods),
    "two_preferences": ("04_pad_decoding", "two_preferences", two_preferences),
    "asked_seldom": ("04_pad_decoding", "asked_seldom", asked_seldom),
}
