"""Figures of what models learn of their users: pure functions from a table to a matplotlib `Figure`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prlhf_kit.figures import style
from prlhf_kit.figures.style import PALETTE, legend, matrix, new_figure, points, reference_line, scatter


def learning_curves(history: pd.DataFrame) -> Figure:
    """Loss and reward accuracy over training. `history`: columns `step`, `method`, `loss`, `accuracy`."""
    figure, (left, right) = new_figure(9, 3.2, ncols=2)
    for i, (method, rows) in enumerate(history.groupby("method", sort=False)):
        for ax, column in ((left, "loss"), (right, "accuracy")):
            ax.plot(rows.step, rows[column], color=PALETTE[i % 8], alpha=0.3, linewidth=1)
            smooth = rows[column].rolling(5, min_periods=1).mean()
            ax.plot(rows.step, smooth, color=PALETTE[i % 8], label=method)
    left.set(xlabel="optimizer step", ylabel="DPO loss (nats)")
    right.set(xlabel="optimizer step", ylabel="training reward accuracy", ylim=(0, 1.02))
    reference_line(right, 0.5, vertical=False)
    legend(figure, "outside right center", title="mean of 5 logged values")
    return figure


def similarity(table: pd.DataFrame) -> Figure:
    """Heatmap of a symmetric similarity in [-1, 1]. `table`: users by users."""
    others = table.to_numpy()[~np.eye(len(table), dtype=bool)]
    reach = max(0.1, float(np.abs(others).max(initial=0)))  # by the diagonal all others would look alike
    label = "cosine similarity"
    return matrix(table, label, 0, "user", "user", notes=len(table) <= 16, square=True, reach=reach)


def accuracy_by_method(table: pd.DataFrame) -> Figure:
    """Held-out accuracy. `table`: intervals by `split` and `method`; rows of method "oracle" become a line."""
    splits = list(table.split.unique())
    figure, axes = new_figure(4.6 * len(splits), 3.6, ncols=len(splits), sharey=True, squeeze=False)
    for ax, split in zip(axes[0], splits, strict=True):
        rows = table[table.split == split]
        oracle, rows = rows[rows.method == "oracle"], rows[rows.method != "oracle"]
        y = np.arange(len(rows))[::-1]
        colors = [PALETTE[0] if method.startswith("P-DPO") else "0.6" for method in rows.method]
        ax.barh(y, rows.value, color=colors, height=0.65)
        ax.errorbar(rows.value, y, xerr=style.error_bars(rows), fmt="none", ecolor="black", elinewidth=1, capsize=3)
        ax.set_yticks(y, rows.method)
        reference_line(ax, 0.5)
        if len(oracle):
            ax.axvline(oracle.value.iloc[0], color=PALETTE[5], linewidth=1.5, label="oracle")
            ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1.0), borderaxespad=0.1)
        ax.set(xlabel=f"reward accuracy, {split} (95% interval)", xlim=(0, 1))
    return figure


def accuracy_by_user(table: pd.DataFrame) -> Figure:
    """Each user's held-out accuracy. `table`: intervals by `method` and `user_id`."""
    users = sorted(table.user_id.unique())
    figure, ax = new_figure(7, min(0.4 * len(users), 30) + 1.4)
    style.side_by_side(ax, table, "method", "user_id", users, 0.2)
    reference_line(ax, 0.5)
    ax.set(xlabel="reward accuracy on held-out pairs (95% interval)", ylabel="user")
    legend(figure, "outside right upper")
    return figure


def by_known_pairs(ax: Axes, table: pd.DataFrame, series: str, kinds: Sequence) -> None:
    """Lines over `k`, one a value of `series`; `kinds` fixes whose look is whose over several panels."""
    ks = sorted(table.k.dropna().unique())
    for name, rows in table.groupby(series, sort=False):
        i = kinds.index(name)
        if rows.k.nunique() <= 1:
            label = name if rows.k.isna().all() else f"{name} (k = {rows.k.iloc[0]:g})"
            ax.axhline(rows.value.iloc[0], label=label, color=PALETTE[i % 8], linestyle="--", linewidth=1.2)
        else:
            at = [ks.index(k) + min(0.06, 0.5 / len(kinds)) * i for k in rows.k]
            points(ax, rows, at, i, upright=True, linestyle="-", label=name)
    ax.set_xticks(range(len(ks)), [f"{k:g}" for k in ks])
    reference_line(ax, 0.5, vertical=False)


def adaptation(
    table: pd.DataFrame,
    series: str = "method",
    xlabel: str = "known pairs of the user, k",
    ylabel: str = "reward accuracy, test_unseen\n(95% interval)",
) -> Figure:
    """Accuracy against the number of pairs of each user. `table`: intervals by `k` and `series`; what stands at one k
    only, or at none (an oracle), becomes a line."""
    figure, ax = new_figure(6.5, 3.6)
    by_known_pairs(ax, table, series, list(dict.fromkeys(table[series])))
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.02))
    legend(figure, ncols=3)
    return figure


def pairs_learned(table: pd.DataFrame) -> Figure:
    """Held-out accuracy of user models against the pairs that each user gave in training. `table`: intervals by
    `user_model` and `k`."""
    ylabel = "reward accuracy, test_seen\n(95% interval)"
    return adaptation(table, "user_model", "training pairs of each user so far", ylabel)


def user_map(table: pd.DataFrame) -> Figure:
    """Users in a plane, one panel a user model. `table`: columns `user_model`, `user_id`, `group`, `x`, `y`."""
    kinds = list(table.groupby("user_model", sort=False))
    figure, axes = new_figure(4.2 * len(kinds) + 1.2, 3.8, ncols=len(kinds), squeeze=False)
    for ax, (kind, rows) in zip(axes[0], kinds, strict=True):
        scatter(ax, rows, "group", "x", "y", list(dict.fromkeys(table.group)), s=45)
        if len(rows) <= 30:
            style.numbered(ax, rows.user_id, rows.x, rows.y, fontsize=7)
        ax.margins(0.2)
        ax.set(title=kind, xlabel="first principal axis (no unit)", ylabel="second axis (no unit)")
    legend(figure, "outside right upper", title="type")
    return figure


def people(table: pd.DataFrame) -> Figure:
    """Each person's accuracy under one method against another's. `table`: columns `user_id`, `group`, and the names of
    the two; points of the same place are moved apart a little."""
    figure, ax = new_figure(5.6, 4)
    x, y = table.columns.drop(["user_id", "group"])
    rows = table.copy()
    rows[[x, y]] += np.random.default_rng(0).uniform(-0.015, 0.015, (len(rows), 2))
    ax.axline((0, 0), slope=1, color="0.6", linewidth=1)
    scatter(ax, rows, "group", x, y, sorted(set(table.group)), s=25)
    ax.set(xlabel=f"accuracy of a person, {x}", ylabel=f"accuracy of a person, {y}", xlim=(-0.05, 1.05))
    ax.set_ylim(-0.05, 1.05)
    legend(figure, "outside right upper", title="group")
    return figure


def swapped_utility(table: pd.DataFrame) -> Figure:
    """Heatmap: what every user's answers are worth to every user, less the judge's mean over all authors.

    `table`: columns `judge`, `author`, `utility`. A clear diagonal means that answers fit their own user.
    """
    means = table.pivot_table(index="judge", columns="author", values="utility", sort=False)
    centred = means.sub(means.mean(axis=1), axis=0)
    label = "true utility, less the row's mean\n(SD of attributes)"
    names = ("whom the answers were written for", "who judges them")
    return matrix(centred, label, 0, *names, notes=len(means) <= 16, square=True)
