"""Every figure of the kit: pure functions from a table to a matplotlib `Figure`.

Colours are Okabe & Ito's, told apart by people with any common form of colour blindness.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from cycler import cycler
from matplotlib.figure import Figure
from wordcloud import WordCloud

PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "svg.hashsalt": "prlhf_kit",
    "axes.prop_cycle": cycler(color=PALETTE),
}


def _figure(width: float, height: float, **kwargs):
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(**kwargs)


def _error(table: pd.DataFrame, value: str) -> np.ndarray:
    """How far a 95% interval reaches to both sides, `[2, n]`."""
    return np.abs(table[["low", "high"]].to_numpy(float) - table[[value]].to_numpy(float)).T


def save(figure: Figure, path: Path) -> None:
    """Write `path` with the endings .png and .svg. The same figure gives the same files."""
    with mpl.rc_context(STYLE):
        figure.savefig(path.with_suffix(".png"), dpi=150, bbox_inches="tight")
        figure.savefig(path.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})


def tastes(weights: pd.DataFrame) -> Figure:
    """Heatmap of users' true weights. `weights`: index user, one column an attribute."""
    figure, ax = _figure(6.5, 0.32 * len(weights) + 1.4)
    limit = float(np.abs(weights.to_numpy()).max())
    sns.heatmap(
        weights,
        cmap="PuOr",
        center=0,
        vmin=-limit,
        vmax=limit,
        annot=True,
        fmt=".1f",
        ax=ax,
        annot_kws={"size": 8},
        cbar_kws={"label": "weight (utility per SD of the attribute)"},
    )
    ax.set(xlabel="text attribute", ylabel="simulated user")
    return figure


MANY_USERS = 20  # more are not drawn one by one


def users_and_pairs(pairs: pd.DataFrame) -> Figure:
    """How many pairs users have, and how many users and pairs a split. `pairs`: columns `split`, `user_id`."""
    splits = list(pairs.split.unique())
    figure, (left, right) = _figure(9, 3.2, ncols=2)
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
    figure, ax = _figure(0.6 * len(values) + 2.6, 0.5 * len(values) + 1.4)
    notes = values.map(lambda v: f"{v:.2f}") + "\n" + shared.map(lambda n: f"n={n:.0f}")
    sns.heatmap(
        values,
        cmap="PuOr",
        vmin=0,
        vmax=1,
        annot=notes if len(values) <= 15 else None,
        fmt="",
        ax=ax,
        square=True,
        annot_kws={"size": 6},
        cbar_kws={"label": "same preference on shared pairs"},
    )
    ax.set_facecolor("0.9")  # nothing shared: not the white of 0.5
    ax.set(xlabel="user", ylabel="user")
    return figure


def response_map(table: pd.DataFrame) -> Figure:
    """Scatter of responses, similar ones near each other. `table`: columns `group`, `x`, `y`."""
    figure, ax = _figure(7, 4.6)
    for i, (group, rows) in enumerate(table.groupby("group", sort=False)):
        ax.scatter(
            rows.x, rows.y, s=9, marker="osD^vPX*"[i % 8], color=PALETTE[i % 8], alpha=0.7, linewidths=0, label=group
        )
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
    figure, axes = _figure(3.2 * columns, 2.3 * lines, nrows=lines, ncols=columns, squeeze=False)
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
    figure, ax = _figure(6.5, 0.32 * len(users) + 1.2)
    style = {"patch_artist": True, "widths": 0.7, "flierprops": {"markersize": 3}, "medianprops": {"color": "black"}}
    boxes = ax.boxplot(groups, orientation="horizontal", tick_labels=users, **style)
    for user, box in zip(users, boxes["boxes"], strict=True):
        box.set_facecolor(PALETTE[1] if str(user).startswith("all ") else PALETTE[4])
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=1, linestyle=":")
    ax.set(xlabel="words in the chosen response minus words in the rejected one", ylabel="user")
    return figure


def learning_curves(history: pd.DataFrame) -> Figure:
    """Loss and reward accuracy over training. `history`: columns `step`, `method`, `loss`, `accuracy`."""
    figure, (left, right) = _figure(9, 3.2, ncols=2)
    for i, (method, rows) in enumerate(history.groupby("method", sort=False)):
        for ax, column in ((left, "loss"), (right, "accuracy")):
            ax.plot(rows.step, rows[column], color=PALETTE[i], alpha=0.3, linewidth=1)
            smooth = rows[column].rolling(5, min_periods=1).mean()
            ax.plot(rows.step, smooth, color=PALETTE[i], label=method)
    left.set(xlabel="optimizer step", ylabel="DPO loss (nats)")
    right.set(xlabel="optimizer step", ylabel="training reward accuracy", ylim=(0, 1.02))
    right.axhline(0.5, color="black", linewidth=1, linestyle=":")
    figure.legend(
        *right.get_legend_handles_labels(), frameon=False, title="mean of 5 logged values", loc="outside right center"
    )
    return figure


def similarity(table: pd.DataFrame) -> Figure:
    """Heatmap of a symmetric similarity in [-1, 1]. `table`: users by users."""
    figure, ax = _figure(0.55 * len(table) + 2.2, 0.5 * len(table) + 1.2)
    sns.heatmap(
        table,
        cmap="PuOr",
        vmin=-1,
        vmax=1,
        annot=len(table) <= 16,
        fmt=".1f",
        square=True,
        ax=ax,
        annot_kws={"size": 8},
        cbar_kws={"label": "cosine similarity"},
    )
    ax.set(xlabel="user", ylabel="user")
    return figure


def accuracy_by_method(table: pd.DataFrame) -> Figure:
    """Held-out accuracy with 95% intervals.

    `table`: columns `split`, `method`, `accuracy`, `low`, `high`; rows of method "oracle" become a line.
    """
    splits = list(table.split.unique())
    figure, axes = _figure(4.6 * len(splits), 3.6, ncols=len(splits), sharey=True, squeeze=False)
    for ax, split in zip(axes[0], splits, strict=True):
        rows = table[table.split == split]
        oracle, rows = rows[rows.method == "oracle"], rows[rows.method != "oracle"]
        y = np.arange(len(rows))[::-1]
        error = _error(rows, "accuracy")
        colors = [PALETTE[0] if method.startswith("P-DPO") else "0.6" for method in rows.method]
        ax.barh(y, rows.accuracy, color=colors, height=0.65)
        ax.errorbar(rows.accuracy, y, xerr=error, fmt="none", ecolor="black", elinewidth=1, capsize=3)
        ax.set_yticks(y, rows.method)
        ax.axvline(0.5, color="black", linewidth=1, linestyle=":")
        if len(oracle):
            ax.axvline(oracle.accuracy.iloc[0], color=PALETTE[5], linewidth=1.5, label="oracle")
            ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1.0), borderaxespad=0.1)
        ax.set(xlabel=f"reward accuracy, {split} (95% interval)", xlim=(0, 1))
    return figure


def accuracy_by_user(table: pd.DataFrame) -> Figure:
    """Each user's held-out accuracy, with intervals.

    `table`: columns `user_id`, `method`, `accuracy`, `low`, `high`.
    """
    users = sorted(table.user_id.unique())
    figure, ax = _figure(6.5, min(0.4 * len(users), 30) + 1.3)
    methods = list(table.groupby("method", sort=False))
    for i, (method, rows) in enumerate(methods):
        y = [users.index(u) + 0.2 * (i - (len(methods) - 1) / 2) for u in rows.user_id]
        error = _error(rows, "accuracy")
        ax.errorbar(rows.accuracy, y, xerr=error, fmt="osD^v"[i % 5], color=PALETTE[i % 8], capsize=3, label=method)
    ax.set_yticks(range(len(users)), users if len(users) <= 100 else [""] * len(users))
    ax.invert_yaxis()
    ax.axvline(0.5, color="black", linewidth=1, linestyle=":")
    ax.set(xlabel="reward accuracy on held-out pairs (95% interval)", ylabel="user", xlim=(-0.02, 1.02))
    figure.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=3)
    return figure


def adaptation(table: pd.DataFrame) -> Figure:
    """Accuracy on unseen users against the number of their known pairs, with intervals.

    `table`: columns `k`, `method`, `accuracy`, `low`, `high`; methods that stand at k=0 only become lines.
    """
    figure, ax = _figure(6.5, 3.6)
    ks = sorted(table.k.unique())
    for i, (method, rows) in enumerate(table.groupby("method", sort=False)):
        if set(rows.k) == {0}:
            ax.axhline(
                rows.accuracy.iloc[0], color=PALETTE[i % 8], linestyle="--", linewidth=1.2, label=f"{method} (k = 0)"
            )
            continue
        error = _error(rows, "accuracy")
        x = [ks.index(k) + 0.06 * i for k in rows.k]
        ax.errorbar(x, rows.accuracy, yerr=error, color=PALETTE[i % 8], marker="osD^v"[i % 5], capsize=3, label=method)
    ax.set_xticks(range(len(ks)), [str(k) for k in ks])
    ax.axhline(0.5, color="black", linewidth=1, linestyle=":")
    ax.set(xlabel="known pairs of the user, k", ylabel="reward accuracy, test_unseen\n(95% interval)", ylim=(0, 1.02))
    figure.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=3)
    return figure


def pairs_learned(table: pd.DataFrame) -> Figure:
    """Held-out accuracy of user models against the pairs that each user gave in training, with intervals.

    `table`: columns `user_model`, `k`, `accuracy`, `low`, `high`; rows of user_model "oracle" become a line.
    """
    figure, ax = _figure(6.5, 3.6)
    for i, (name, rows) in enumerate(table[table.user_model != "oracle"].groupby("user_model", sort=False)):
        ax.plot(rows.k, rows.accuracy, color=PALETTE[i], marker="osD^v"[i % 5], label=name)
        ax.fill_between(rows.k, rows.low, rows.high, color=PALETTE[i], alpha=0.15, linewidth=0)
    for accuracy in table[table.user_model == "oracle"].accuracy:
        ax.axhline(accuracy, color="black", linewidth=1, linestyle="--", label="oracle")
    ax.axhline(0.5, color="black", linewidth=1, linestyle=":")
    ax.set(
        xlabel="training pairs of each user so far",
        ylabel="reward accuracy, test_seen\n(95% interval)",
        ylim=(None, 1.02),
    )
    figure.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=4)
    return figure


def user_map(table: pd.DataFrame) -> Figure:
    """Users in a plane, one panel a user model. `table`: columns `user_model`, `user_id`, `group`, `x`, `y`."""
    kinds = list(table.groupby("user_model", sort=False))
    figure, axes = _figure(4.2 * len(kinds) + 1.2, 3.8, ncols=len(kinds), squeeze=False)
    known = list(dict.fromkeys(table.group))
    for ax, (kind, rows) in zip(axes[0], kinds, strict=True):
        for group, part in rows.groupby("group", sort=False):
            i = known.index(group)
            ax.scatter(part.x, part.y, s=45, marker="osD^vPX*"[i % 8], color=PALETTE[i % 8], label=group)
        if len(rows) <= 30:
            for row in rows.itertuples():
                ax.annotate(row.user_id, (row.x, row.y), xytext=(4, 4), textcoords="offset points", fontsize=7)
        ax.margins(0.2)
        ax.set(title=kind, xlabel="first principal axis (no unit)", ylabel="second axis (no unit)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), frameon=False, title="type", loc="outside right upper")
    return figure


def swapped_utility(table: pd.DataFrame) -> Figure:
    """Heatmap: what every user's answers are worth to every user, less the judge's mean over all authors.

    `table`: columns `judge`, `author`, `utility`. A clear diagonal means that answers fit their own user.
    """
    means = table.pivot_table(index="judge", columns="author", values="utility", sort=False)
    centred = means.sub(means.mean(axis=1), axis=0)
    figure, ax = _figure(0.55 * len(means) + 2.6, 0.5 * len(means) + 1.4)
    limit = float(np.abs(centred.to_numpy()).max())
    sns.heatmap(
        centred,
        cmap="PuOr",
        center=0,
        vmin=-limit,
        vmax=limit,
        annot=len(means) <= 16,
        fmt=".1f",
        square=True,
        ax=ax,
        annot_kws={"size": 8},
        cbar_kws={"label": "true utility, less the row's mean\n(SD of attributes)"},
    )
    ax.set(xlabel="whom the answers were written for", ylabel="who judges them")
    return figure


# figure file -> (stage that leaves the table, table, function): how `prlhf figures` re-makes them without a model
FIGURES = {
    "tastes": ("01_data_preparation", "tastes", tastes),
    "users_and_pairs": ("01_data_preparation", "lengths", users_and_pairs),
    "lengths": ("01_data_preparation", "lengths", lengths),
    "agreement": ("01_data_preparation", "agreement", agreement),
    "response_map": ("01_data_preparation", "response_map", response_map),
    "word_clouds": ("01_data_preparation", "typical_words", word_clouds),
    "learning_curves": ("03_pdpo_training", "history", learning_curves),
    "similarity": ("03_pdpo_training", "similarity", similarity),
    "accuracy_by_method": ("05_evaluation", "accuracy_by_method", accuracy_by_method),
    "accuracy_by_user": ("05_evaluation", "accuracy_by_user", accuracy_by_user),
    "swapped": ("05_evaluation", "swapped", swapped_utility),
    "adaptation": ("06_new_users", "adaptation", adaptation),
    "pairs_learned": ("09_user_models", "pairs_learned", pairs_learned),
    "user_map": ("09_user_models", "user_map", user_map),
}
