"""Figures of a dataset: pure functions from a table to a matplotlib `Figure`."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prlhf_kit.figures.style import PALETTE, legend, matrix, new_figure, reference_line, scatter
from prlhf_kit.files import of_extra

MANY_USERS = 20  # more are not drawn one by one


def tastes(weights: pd.DataFrame) -> Figure:
    """Heatmap of users' true weights. `weights`: index user, one column an attribute."""
    label = "weight (utility per SD of the attribute)"
    return matrix(weights, label, 0, "text attribute", "simulated user", cell=(0.65, 0.32))


def users_and_pairs(pairs: pd.DataFrame) -> Figure:
    """How many pairs users have, and how many users and pairs a split. `pairs`: columns `split`, `user_id`."""
    figure, (left, right) = new_figure(9, 3.2, ncols=2)
    counts = pairs.groupby(["split", "user_id"], sort=False).size()
    most = counts.max()
    many = most > 30
    bins = np.geomspace(1, most + 1, 25) if many else np.arange(0.5, most + 1.5)
    for color, split in zip(PALETTE, counts.index.unique("split"), strict=False):
        left.hist(counts[split], bins=bins, histtype="step", linewidth=1.5, color=color, label=split)
    left.set(xlabel="pairs of a user", ylabel="users", xscale="log" if many else "linear")
    left.legend(frameon=False)
    numbers = counts.groupby("split", sort=False).agg(pairs="sum", users="size")
    numbers.plot.barh(ax=right, color=dict(zip(numbers, PALETTE, strict=False)), width=0.76)
    for bars in right.containers:
        right.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    right.invert_yaxis()
    right.set(xlabel="number (logarithmic)", ylabel="", xscale="log", xlim=(0.7, 8 * numbers.pairs.max()))
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.22), ncols=2)
    return figure


def agreement(table: pd.DataFrame) -> Figure:
    """Heatmap of how often users agree on the pairs they share.

    `table`: columns `user_a`, `user_b`, `agreement`, `shared`. Cells of users who share nothing stay empty.
    """
    values, shared = (table.pivot(index="user_a", columns="user_b", values=of) for of in ("agreement", "shared"))
    notes = values.map("{:.2f}".format) + "\n" + shared.map("n={:.0f}".format)
    style: dict[str, Any] = {"fmt": "", "square": True, "annot_kws": {"size": 6}, "cell": (0.6, 0.5)}
    shown = notes if len(values) <= 15 else None
    figure = matrix(values, "same preference on shared pairs", 0.5, "user", "user", notes=shown, **style)
    figure.axes[0].set_facecolor("0.9")  # nothing shared: not the white of 0.5
    return figure


def response_map(table: pd.DataFrame) -> Figure:
    """Scatter of responses, similar ones near each other. `table`: columns `group`, `x`, `y`."""
    figure, ax = new_figure(7, 4.6)
    scatter(ax, table, "group", "x", "y", s=9, alpha=0.7, linewidths=0)
    ax.set(xlabel="t-SNE of TF-IDF, first axis (no unit)", ylabel="second axis (no unit)", xticks=[], yticks=[])
    legend(figure, "outside right upper", title="chosen responses of", markerscale=2)
    return figure


def word_clouds(table: pd.DataFrame) -> Figure:
    """Words typical of each group, larger for more typical ones. `table`: columns `group`, `word`, `weight`."""
    groups = list(table.groupby("group", sort=False))
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure, axes = new_figure(3.2 * columns, 2.3 * lines, nrows=lines, ncols=columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    style: dict[str, Any] = {"width": 640, "height": 400, "background_color": "white", "prefer_horizontal": 1.0}
    for i, (group, rows) in enumerate(groups):
        color = PALETTE[i % 8] if PALETTE[i % 8] != "#F0E442" else "#8a7f00"  # yellow can't be read on white
        style |= {"random_state": 0, "color_func": lambda *_, color=color, **__: color}
        cloud = of_extra("wordcloud").WordCloud(**style)
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
    pairs = pairs.assign(difference=pairs.chosen_words - pairs.rejected_words)
    counts = pairs.user_id.value_counts()  # most pairs first
    users = sorted(counts.index, key=str) if len(counts) <= MANY_USERS else list(counts.index[:MANY_USERS])
    groups = [pairs.difference[pairs.user_id == user] for user in users]
    if len(users) > 1:
        users, groups = [*users, f"all {len(counts)}"], [*groups, pairs.difference]
    figure, ax = new_figure(6.5, 0.32 * len(users) + 1.2)
    style = {"patch_artist": True, "widths": 0.7, "flierprops": {"markersize": 3}, "medianprops": {"color": "black"}}
    ax.boxplot(groups, orientation="horizontal", tick_labels=users, boxprops={"facecolor": PALETTE[4]}, **style)
    ax.invert_yaxis()
    reference_line(ax, 0)
    ax.set(xlabel="words in the chosen response minus words in the rejected one", ylabel="user")
    return figure
