"""Figures of a dataset: pure functions from a table to a matplotlib `Figure`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from wordcloud import WordCloud

from prlhf_kit.figures.style import PALETTE, heatmap, marker_of, new_figure


def tastes(weights: pd.DataFrame) -> Figure:
    """Heatmap of users' true weights. `weights`: index user, one column an attribute."""
    figure, ax = new_figure(6.5, 0.32 * len(weights) + 1.4)
    limit = float(np.abs(weights.to_numpy()).max())
    heatmap(ax, weights, "weight (utility per SD of the attribute)", -limit, limit)
    ax.set(xlabel="text attribute", ylabel="simulated user")
    return figure


MANY_USERS = 20  # more are not drawn one by one


def users_and_pairs(pairs: pd.DataFrame) -> Figure:
    """How many pairs users have, and how many users and pairs a split. `pairs`: columns `split`, `user_id`."""
    splits = list(pairs.split.unique())
    figure, (left, right) = new_figure(9, 3.2, ncols=2)
    counts = pairs.groupby(["split", "user_id"], sort=False).size()
    bins = np.geomspace(1, counts.max() + 1, 25) if counts.max() > 30 else np.arange(0.5, counts.max() + 1.5)
    for i, split in enumerate(splits):
        left.hist(counts[split], bins=bins, histtype="step", linewidth=1.5, color=PALETTE[i], label=split)
    left.set(xlabel="pairs of a user", ylabel="users", xscale="log" if counts.max() > 30 else "linear")
    left.legend(frameon=False)
    y = np.arange(len(splits))
    for shift, (what, numbers) in zip(
        (-0.2, 0.2),
        {
            "pairs": [int(counts[split].sum()) for split in splits],
            "users": [len(counts[split]) for split in splits],
        }.items(),
        strict=True,
    ):
        bars = right.barh(y + shift, numbers, height=0.38, color=PALETTE[0 if what == "pairs" else 1], label=what)
        right.bar_label(bars, [f"{n:,}" for n in numbers], padding=3, fontsize=8)
    right.set_yticks(y, splits)
    right.invert_yaxis()
    right.set(xlabel="number (logarithmic)", xscale="log", xlim=(0.7, 8 * counts.groupby("split").sum().max()))
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.22), ncols=2)
    return figure


def agreement(table: pd.DataFrame) -> Figure:
    """Heatmap of how often users agree on the pairs they share.

    `table`: columns `user_a`, `user_b`, `agreement`, `shared`. Cells of users who share nothing stay empty.
    """
    values = table.pivot_table(index="user_a", columns="user_b", values="agreement")
    shared = table.pivot_table(index="user_a", columns="user_b", values="shared")
    figure, ax = new_figure(0.6 * len(values) + 2.6, 0.5 * len(values) + 1.4)
    notes = values.map(lambda v: f"{v:.2f}") + "\n" + shared.map(lambda n: f"n={n:.0f}")
    heatmap(
        ax,
        values,
        "same preference on shared pairs",
        0,
        1,
        notes if len(values) <= 15 else None,
        fmt="",
        square=True,
        annot_kws={"size": 6},
    )
    ax.set_facecolor("0.9")  # nothing shared: not the white of 0.5
    ax.set(xlabel="user", ylabel="user")
    return figure


def response_map(table: pd.DataFrame) -> Figure:
    """Scatter of responses, similar ones near each other. `table`: columns `group`, `x`, `y`."""
    figure, ax = new_figure(7, 4.6)
    for i, (group, rows) in enumerate(table.groupby("group", sort=False)):
        ax.scatter(rows.x, rows.y, s=9, marker=marker_of(i), color=PALETTE[i % 8], alpha=0.7, linewidths=0, label=group)
    ax.set(xlabel="t-SNE of TF-IDF, first axis (no unit)", ylabel="second axis (no unit)", xticks=[], yticks=[])
    figure.legend(
        *ax.get_legend_handles_labels(),
        frameon=False,
        title="chosen responses of",
        markerscale=2,
        loc="outside right upper",
    )
    return figure


def word_clouds(table: pd.DataFrame) -> Figure:
    """Words typical of each group, larger for more typical ones. `table`: columns `group`, `word`, `weight`."""
    groups = list(table.groupby("group", sort=False))
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure, axes = new_figure(3.2 * columns, 2.3 * lines, nrows=lines, ncols=columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for i, (group, rows) in enumerate(groups):
        color = PALETTE[i % 8] if PALETTE[i % 8] != "#F0E442" else "#8a7f00"  # yellow can't be read on white
        cloud = WordCloud(
            width=640,
            height=400,
            background_color="white",
            prefer_horizontal=1.0,
            random_state=0,
            color_func=lambda *_, color=color, **__: color,
        )
        cloud.generate_from_frequencies(dict(zip(rows.word, rows.weight, strict=True)))
        ax = axes.flat[i]
        ax.imshow(cloud.to_array(), interpolation="bilinear")
        ax.set_title(str(group), fontsize=10)
    return figure


def lengths(pairs: pd.DataFrame) -> Figure:
    """Chosen minus rejected length by user in the training pairs, of the 20 users with most pairs if there are more.

    `pairs`: columns `split`, `user_id`, `chosen_words`, `rejected_words`.
    """
    pairs = pairs[pairs.split == "train"]
    difference = pairs.chosen_words - pairs.rejected_words
    by_user = pairs.assign(difference=difference).groupby("user_id").difference
    users = sorted(by_user.groups, key=str)
    if len(users) > MANY_USERS:
        users = by_user.size().sort_values(ascending=False, kind="stable").index[:MANY_USERS].tolist()
    groups = [by_user.get_group(user) for user in users]
    if len(users) > 1:
        users, groups = [*users, f"all {by_user.ngroups}"], [*groups, difference]
    figure, ax = new_figure(6.5, 0.32 * len(users) + 1.2)
    style = {"patch_artist": True, "widths": 0.7, "flierprops": {"markersize": 3}, "medianprops": {"color": "black"}}
    boxes = ax.boxplot(groups, orientation="horizontal", tick_labels=users, **style)
    for user, box in zip(users, boxes["boxes"], strict=True):
        box.set_facecolor(PALETTE[1] if str(user).startswith("all ") else PALETTE[4])
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=1, linestyle=":")
    ax.set(xlabel="words in the chosen response minus words in the rejected one", ylabel="user")
    return figure


# file name -> (stage, table, function)
FIGURES = {
    "tastes": ("01_data_preparation", "tastes", tastes),
    "users_and_pairs": ("01_data_preparation", "lengths", users_and_pairs),
    "lengths": ("01_data_preparation", "lengths", lengths),
    "agreement": ("01_data_preparation", "agreement", agreement),
    "response_map": ("01_data_preparation", "response_map", response_map),
    "word_clouds": ("01_data_preparation", "typical_words", word_clouds),
}
