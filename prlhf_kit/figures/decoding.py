"""Figures of guided decoding: pure functions from a table to a matplotlib `Figure`."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prlhf_kit.figures.style import crossed, legend, look, names_down, new_figure, numbered, points, reference_line

GAINED = "reward gained over the base\n(judge's units, 95% interval)"


def reward_by_weight(table: pd.DataFrame) -> Figure:
    """What steering gains, against its weight and against the distance from the base; and the tokens it changed.

    The divergence of a greedy policy from the base is minus the base's log-probability of its answers.

    `table`: intervals of `gain` (`evaluation.steering.gains`) by `guide` and `weight`.
    """
    figure, (left, middle, right) = new_figure(11, 3.6, ncols=3)
    for i, (guide, rows) in enumerate(table.groupby("guide", sort=False)):
        points(left, rows, rows.weight, i, "gain", upright=True, linestyle="-", label=guide)
        middle.plot(-rows.logp, rows.gain, linewidth=1, **look(i))
        numbered(middle, rows.weight, -rows.logp, rows.gain, "{:g}")
        right.plot(rows.weight, 100 * rows.changed, **look(i))
    for ax in (left, middle):
        reference_line(ax, 0, vertical=False)
    left.set(xlabel="weight w", ylabel=GAINED)
    middle.set(xlabel="divergence of the answers from the base\n(nats a token)", ylabel="reward gained (numbers: w)")
    right.set(xlabel="weight w", ylabel="tokens that differ from the\nbase's choice (%)", ylim=(0, None))
    legend(figure, ncols=4)
    return figure


def steering_methods(table: pd.DataFrame) -> Figure:
    """Ways to answer as a person prefers, side by side: what they gain, and how likely the base finds the answers.

    `table`: intervals of `gain` (`evaluation.steering.gains`) by `method`.
    """
    figure, (left, right) = new_figure(9, 0.6 + 0.38 * len(table), ncols=2, sharey=True, width_ratios=[3, 2])
    y = np.arange(len(table))
    points(left, table, y, 0, "gain")
    names_down(left, list(table.method))
    reference_line(left, 0)
    left.set(xlabel=GAINED)
    right.plot(table.logp, y, linestyle="none", **look(5))
    right.set(xlabel="log-probability under the base\n(nats a token)")
    return figure


def two_preferences(table: pd.DataFrame) -> Figure:
    """Answers steered towards one preference, the other, and both: what each of the two people gains.

    `table`: of `evaluation.steering.Steered.gains_of_two`.
    """
    first, second = table.user_id.unique()
    figure, ax = new_figure(6.5, 4)
    for i, (towards, rows) in enumerate(table.groupby("towards", sort=False)):
        x, y = (rows[rows.user_id == user] for user in (first, second))
        crossed(ax, x, y, i, "gain", markersize=8, elinewidth=1, label=towards)
    reference_line(ax, 0, vertical=False)
    reference_line(ax, 0)
    ax.set(xlabel=f"gained by {first} (judge's units)", ylabel=f"gained by {second}\n(judge's units)")
    legend(figure, "outside right upper", title="towards")
    return figure
