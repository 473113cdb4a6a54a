"""Figures of reward models (notebooks 02 and 02b): pure functions from a table to a matplotlib `Figure`."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from prlhf_kit.figures.style import PALETTE, crossed, legend, matrix, new_figure, reference_line, side_by_side
from prlhf_kit.figures.users import adaptation


def domain_heatmap(table: pd.DataFrame) -> Figure:
    """How often each domain's reward model ranks each domain's pairs as that domain does.

    In DSP a domain prefers its own responses to all others', so this is their win rate under each model.
    `table`: intervals by `model` and `pairs_of`. A diagonal of high values: models prefer their own.
    """
    texts = [f"{r.value:.2f}\n[{r.low:.2f}, {r.high:.2f}]\nn={r.n}" for r in table.itertuples()]
    cells = table.assign(note=texts).set_index(["model", "pairs_of"])
    models, others = list(dict.fromkeys(table.model)), list(dict.fromkeys(table.pairs_of))
    values, notes = (cells[column].unstack().loc[models, others] for column in ("value", "note"))
    style: dict[str, Any] = {"notes": notes, "fmt": "", "annot_kws": {"size": 7}, "cell": (1.05, 0.7)}
    return matrix(values, "share ranked as they prefer", 0.5, "whose held-out pairs", "whose reward model", **style)


def trade_off(table: pd.DataFrame) -> Figure:
    """General against customised accuracy, one line a strategy, over training or from a strong to a weak penalty.

    `table`: intervals by `strategy`, `of` ("custom", "general") and `point` of a training, whose end is drawn large,
    with its intervals; or, in the order of the path, with `chosen`: which setting is.
    """
    if "chosen" not in table:
        table = table.sort_values("point", kind="stable")
        table = table.assign(chosen=table.point == table.groupby("strategy").point.transform("max"))
    figure, ax = new_figure(7.4, 4.2)
    for i, (strategy, rows) in enumerate(table.groupby("strategy", sort=False)):
        custom, general = (rows[rows.of == of] for of in ("custom", "general"))
        ax.plot(custom.value, general.value, ".-", color=PALETTE[i % 8], markersize=5, linewidth=1.2, alpha=0.8)
        x, y = (part[part.chosen].head(1) for part in (custom, general))
        crossed(ax, x, y, i, markersize=8, capsize=3, elinewidth=0.8, label=strategy)
    reference_line(ax, 0.5, vertical=False)
    reference_line(ax, 0.5)
    n = {of: table.n[table.of == of].iloc[0] for of in ("custom", "general")}
    xlabel = f"accuracy on the domains' own pairs (n = {n['custom']}, 95% intervals)"
    ax.set(xlabel=xlabel, ylabel=f"accuracy on general pairs (n = {n['general']})")
    legend(figure, ncols=3)
    return figure


def heads(table: pd.DataFrame) -> Figure:
    """Accuracy of heads on frozen features, one panel a split.

    `table`: intervals by `split`, `features` and `method`; rows whose features are "" become lines.
    """
    splits = list(dict.fromkeys(table.split))
    figure, axes = new_figure(4.4 * len(splits) + 1.4, 3.8, ncols=len(splits), sharey=True, squeeze=False)
    kinds = list(dict.fromkeys(table.method[table.features != ""]))
    for ax, split in zip(axes[0], splits, strict=True):
        rows = table[table.split == split]
        fitted = rows[rows.features != ""]
        sets = list(dict.fromkeys(fitted.features))
        side_by_side(ax, fitted, "method", "features", sets, 0.13, kinds=kinds, upright=True)
        for style, line in zip(("--", "-.", "-"), rows[rows.features == ""].itertuples(), strict=False):
            color, style = (PALETTE[5], "-") if line.method == "oracle" else ("0.3", style)
            ax.axhline(line.value, label=line.method, color=color, linewidth=1.3, linestyle=style)
        reference_line(ax, 0.5, vertical=False)
        ax.set_xticks(range(len(sets)), sets, rotation=15, ha="right")
        ax.set(xlabel="features", ylabel=f"accuracy, {split} (95%)", ylim=(0, 1.02), xlim=(-0.5, len(sets) - 0.5))
    legend(figure, "outside right upper")
    return figure


def new_users(table: pd.DataFrame) -> Figure:
    """`adaptation` of those that know how users differ, encoders and low-rank heads, beside pooled ones."""
    return adaptation(table[table.method.str.startswith(("pooled", "low_rank", "encoder", "variational"))])
