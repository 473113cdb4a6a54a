"""Figures of reward models (notebook 02): pure functions from a table to a matplotlib `Figure`."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from prlhf_kit.figures.data import word_clouds
from prlhf_kit.figures.style import (
    PALETTE,
    draw_intervals,
    error_bars,
    heatmap,
    legend,
    marker_of,
    new_figure,
    reference_line,
    series_positions,
)
from prlhf_kit.figures.users import adaptation


def stages(table: pd.DataFrame) -> Figure:
    """The scheme of DSP: base LM -> general -> customised reward fine-tuning, one customised model a domain.

    `table`: columns `kind` ("domain" or "general") and `name`, of each model's domain and each general set.
    """
    domains, general = (table.name[table.kind == kind].tolist() for kind in ("domain", "general"))
    shown = domains if len(domains) <= 6 else [*domains[:5], f"... {len(domains)} in all"]
    figure, ax = new_figure(9, max(2.2, 0.55 * len(shown) + 0.9))
    ax.set(xlim=(0, 12), ylim=(-0.6, len(shown) - 0.4))
    ax.axis("off")
    middle = (len(shown) - 1) / 2

    def box(x: float, y: float, width: float, text: str, color: str) -> None:
        style = "round,pad=0.02,rounding_size=0.1"
        ax.add_patch(FancyBboxPatch((x, y - 0.3), width, 0.6, boxstyle=style, facecolor=color, alpha=0.35, linewidth=0))
        ax.text(x + width / 2, y, text, ha="center", va="center", fontsize=9)

    def arrow(x0: float, y0: float, x1: float, y1: float) -> None:
        ax.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "->", "color": "0.3"})

    box(0.1, middle, 2.0, "base LM", PALETTE[4])
    box(4.2, middle, 2.6, "general\nreward model", PALETTE[1])
    arrow(2.2, middle, 4.1, middle)
    ax.text(3.15, middle + 0.12, "GRFT", ha="center", va="bottom", fontsize=9, weight="bold")
    ax.text(3.15, middle - 0.15, ",\n".join(general[:3]), ha="center", va="top", fontsize=7)
    for y, domain in enumerate(reversed(shown)):
        box(9.0, y, 2.8, domain, PALETTE[2])
        arrow(6.9, middle, 8.9, y)
    ax.text(7.6, middle + 0.45 * max(middle, 0.6) + 0.1, "CRFT", ha="center", va="bottom", fontsize=9, weight="bold")
    return figure


def curves(table: pd.DataFrame) -> Figure:
    """Accuracy of every evaluation set over training, one panel a model.

    `table`: intervals by `model`, `set` and `step`.
    """
    models = list(table.groupby("model", sort=False))
    columns = min(3, len(models))
    lines = -(-len(models) // columns)
    figure, axes = new_figure(3.6 * columns + 1.2, 2.7 * lines, nrows=lines, ncols=columns, squeeze=False, sharey=True)
    names = list(dict.fromkeys(table.set))
    for ax in axes.flat[len(models) :]:
        ax.axis("off")
    for ax, (model, rows) in zip(axes.flat, models, strict=False):
        for name, part in rows.groupby("set", sort=False):
            i = names.index(name)
            ax.plot(part.step, part.value, color=PALETTE[i % 8], marker=marker_of(i), markersize=4, label=name)
            ax.fill_between(part.step, part.low, part.high, color=PALETTE[i % 8], alpha=0.08, linewidth=0)
        reference_line(ax, 0.5, vertical=False)
        ax.set(title=model, xlabel="optimizer step", ylabel="accuracy (95%)", ylim=(0, 1.02))
        ax.title.set_fontsize(9)
    handles = {h.get_label(): h for ax in axes.flat for h in ax.get_lines() if not h.get_label().startswith("_")}
    figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside right upper")
    return figure


def domain_heatmap(table: pd.DataFrame) -> Figure:
    """How often each domain's reward model ranks each domain's pairs as that domain does.

    In DSP a domain prefers its own responses to all others', so this is their win rate under each model.
    `table`: intervals by `model` and `pairs_of`. A diagonal of high values: models prefer their own.
    """
    texts = [f"{r.value:.2f}\n[{r.low:.2f}, {r.high:.2f}]\nn={r.n}" for r in table.itertuples()]
    cells = table.assign(note=texts).set_index(["model", "pairs_of"])
    models, others = list(dict.fromkeys(table.model)), list(dict.fromkeys(table.pairs_of))
    values, notes = (cells[column].unstack().loc[models, others] for column in ("value", "note"))
    figure, ax = new_figure(1.05 * len(values.columns) + 2.8, 0.7 * len(values) + 1.5)
    heatmap(ax, values, "share ranked as they prefer", 0, 1, notes, fmt="", annot_kws={"size": 7})
    ax.set(xlabel="whose held-out pairs", ylabel="whose reward model")
    return figure


def _both_ways(ax: Axes, row: pd.DataFrame, i: int, size: float, label: Any) -> None:
    """One mark with intervals along both axes. `row`: its intervals by `of`, "custom" and "general"."""
    x, y = row[row.of == "custom"], row[row.of == "general"]
    style: dict[str, Any] = {
        "fmt": f"{marker_of(i)}-",
        "color": PALETTE[i % 8],
        "markersize": size,
        "capsize": 3,
        "elinewidth": 0.8,
    }
    ax.errorbar(x.value, y.value, xerr=error_bars(x, "value"), yerr=error_bars(y, "value"), label=label, **style)


def trade_off(table: pd.DataFrame) -> Figure:
    """General against customised accuracy over training, one line a strategy, intervals at its end.

    `table`: intervals by `strategy`, `point` and `of` ("custom", "general").
    """
    figure, ax = new_figure(7.4, 4.2)
    for i, (strategy, rows) in enumerate(table.groupby("strategy", sort=False)):
        wide = rows.pivot(index="point", columns="of", values="value")
        ax.plot(wide.custom, wide.general, color=PALETTE[i % 8], linewidth=1.2, alpha=0.8)
        ax.plot(wide.custom[:-1], wide.general[:-1], color=PALETTE[i % 8], linestyle="", marker=".", markersize=5)
        _both_ways(ax, rows[rows.point == rows.point.max()], i, 7, strategy)
    reference_line(ax, 0.5, vertical=False)
    reference_line(ax, 0.5)
    ax.set(xlabel="accuracy on the domain's own pairs (95% interval at the end)", ylabel="accuracy on general pairs")
    legend(figure, ax, "outside right upper")
    return figure


def reliability(table: pd.DataFrame) -> Figure:
    """Reliability curves. `table`: intervals by `model` and `confidence`."""
    figure, ax = new_figure(6.4, 3.8)
    ax.plot([0.5, 1], [0.5, 1], color="black", linewidth=1, linestyle=":", label="perfect")
    for i, (model, rows) in enumerate(table.groupby("model", sort=False)):
        line: dict[str, Any] = {"fmt": f"{marker_of(i)}-", "markersize": 5, "label": model}
        draw_intervals(ax, rows, rows.confidence, i, upright=True, **line)
    ax.set(xlabel="confidence of the preference", ylabel="accuracy (95% interval)", xlim=(0.49, 1.01), ylim=(0, 1.02))
    legend(figure, ax, "outside right upper")
    return figure


def heads(table: pd.DataFrame) -> Figure:
    """Accuracy of heads on frozen features, one panel a split.

    `table`: intervals by `split`, `features` and `method`; rows whose features are "" become lines.
    """
    splits = list(dict.fromkeys(table.split))
    figure, axes = new_figure(4.4 * len(splits) + 1.4, 3.8, ncols=len(splits), sharey=True, squeeze=False)
    kinds = list(dict.fromkeys(table[table.features != ""].method))
    for ax, split in zip(axes[0], splits, strict=True):
        rows = table[table.split == split]
        sets = list(dict.fromkeys(rows[rows.features != ""].features))
        for i, kind in enumerate(kinds):
            part = rows[(rows.method == kind) & (rows.features != "")]
            x = series_positions(sets, part.features, i, len(kinds), 0.13)
            draw_intervals(ax, part, x, i, upright=True, label=kind)
        styles = {"oracle": {"color": PALETTE[5], "linewidth": 1.5}}
        for style, line in zip(("--", "-.", "-"), rows[rows.features == ""].itertuples(), strict=False):
            look = styles.get(str(line.method), {"color": "0.3", "linewidth": 1.2, "linestyle": style})
            ax.axhline(line.value, label=line.method, **look)
        reference_line(ax, 0.5, vertical=False)
        ax.set_xticks(range(len(sets)), sets, rotation=15, ha="right")
        ax.set(xlabel="features", ylabel=f"accuracy, {split} (95%)", ylim=(0, 1.02), xlim=(-0.5, len(sets) - 0.5))
    legend(figure, axes[0][0], "outside right upper")
    return figure


def visible(table: pd.DataFrame) -> Figure:
    """What features can see. `table`: columns `features`, `attribute`, `r2`."""
    values = table.pivot_table(index="features", columns="attribute", values="r2", sort=False)
    figure, ax = new_figure(0.95 * len(values.columns) + 2.6, 0.55 * len(values) + 1.5)
    heatmap(ax, values.clip(lower=0), "cross-validated R²\nof a linear map", 0, 1, values, cmap="viridis", fmt=".2f")
    ax.set(xlabel="attribute of the response", ylabel="features")
    return figure


def head_trade_off(table: pd.DataFrame) -> Figure:
    """General against customised accuracy of heads on frozen features, from a strong to a weak penalty.

    `table`: intervals by `strategy`, `strength` and `of` ("custom", "general"), in the order of the path, and `chosen`:
    the setting that cross-validation prefers, which is drawn large, with its intervals.
    """
    figure, ax = new_figure(7.4, 4.2)
    for i, (strategy, rows) in enumerate(table.groupby("strategy", sort=False)):
        custom, general = (rows.value[rows.of == of] for of in ("custom", "general"))
        ax.plot(custom, general, color=PALETTE[i % 8], marker=".", markersize=5, linewidth=1.2, alpha=0.8)
        _both_ways(ax, rows[rows.chosen].groupby("of").head(1), i, 8, strategy)
    reference_line(ax, 0.5, vertical=False)
    reference_line(ax, 0.5)
    custom_n, general_n = (table.n[table.of == of].iloc[0] for of in ("custom", "general"))
    ax.set(
        xlabel=f"accuracy on the domains' own pairs (n = {custom_n})",
        ylabel=f"accuracy on general pairs (n = {general_n})",
    )
    legend(figure, ax, ncols=3)
    return figure


STAGE = "02_reward_models"


def new_users(table: pd.DataFrame) -> Figure:
    """Accuracy on new users by the pairs they gave, of pooled and low-rank heads: the others can't learn of them.

    `table`: as in `figures.adaptation`.
    """
    return adaptation(table[table.method.str.startswith(("pooled", "low_rank"))])


FIGURES = {
    "reward_stages": (STAGE, "reward_stages", stages),
    "reward_new_users": (STAGE, "new_users", new_users),
    "reward_word_clouds": (STAGE, "typical_words", word_clouds),
    "reward_curves": (STAGE, "curves", curves),
    "domain_heatmap": (STAGE, "domain_heatmap", domain_heatmap),
    "trade_off": (STAGE, "trade_off", trade_off),
    "reliability": (STAGE, "reliability", reliability),
    "reward_heads": (STAGE, "reward_heads", heads),
    "visible": (STAGE, "visible", visible),
    "head_trade_off": (STAGE, "head_trade_off", head_trade_off),
}
