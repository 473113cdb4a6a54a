"""Figures of reward models (notebook 02): pure functions from a table to a matplotlib `Figure`."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from prlhf_kit.figures.data import word_clouds
from prlhf_kit.figures.style import PALETTE, error_bars, new_figure
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
    """Accuracy of every evaluation set over training, with 95% intervals, one panel a model.

    `table`: columns `model`, `set`, `step`, `accuracy`, `low`, `high`.
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
            ax.plot(part.step, part.accuracy, color=PALETTE[i % 8], marker="osD^vPX*"[i % 8], markersize=4, label=name)
            ax.fill_between(part.step, part.low, part.high, color=PALETTE[i % 8], alpha=0.08, linewidth=0)
        ax.axhline(0.5, color="black", linewidth=1, linestyle=":")
        ax.set(title=model, xlabel="optimizer step", ylabel="accuracy (95%)", ylim=(0, 1.02))
        ax.title.set_fontsize(9)
    handles = {h.get_label(): h for ax in axes.flat for h in ax.get_lines() if not h.get_label().startswith("_")}
    figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside right upper")
    return figure


def domain_heatmap(table: pd.DataFrame) -> Figure:
    """How often each domain's reward model ranks each domain's pairs as that domain does.

    In DSP a domain prefers its own responses to all others', so this is their win rate under each model.
    `table`: columns `model`, `pairs_of`, `accuracy`, `low`, `high`, `pairs`. A diagonal of high values: models prefer
    their own.
    """
    table = table.assign(
        note=[f"{r.accuracy:.2f}\n[{r.low:.2f}, {r.high:.2f}]\nn={r.pairs}" for r in table.itertuples()]
    )
    models, others = list(dict.fromkeys(table.model)), list(dict.fromkeys(table.pairs_of))
    cells = table.set_index(["model", "pairs_of"])
    values, notes = (cells[column].unstack().loc[models, others] for column in ("accuracy", "note"))
    figure, ax = new_figure(1.05 * len(values.columns) + 2.8, 0.7 * len(values) + 1.5)
    sns.heatmap(
        values,
        cmap="PuOr",
        vmin=0,
        vmax=1,
        annot=notes,
        fmt="",
        ax=ax,
        annot_kws={"size": 7},
        cbar_kws={"label": "share ranked as they prefer"},
    )
    ax.set(xlabel="whose held-out pairs", ylabel="whose reward model")
    return figure


def trade_off(table: pd.DataFrame) -> Figure:
    """General against customised accuracy over training, one line a strategy, intervals at its end.

    `table`: columns `strategy`, `point`, `custom`, `general`, and `_low` and `_high` of both.
    """
    figure, ax = new_figure(7.4, 4.2)
    for i, (strategy, rows) in enumerate(table.groupby("strategy", sort=False)):
        rows = rows.sort_values("point")
        ax.plot(rows.custom, rows.general, color=PALETTE[i % 8], linewidth=1.2, alpha=0.8)
        ax.plot(rows.custom[:-1], rows.general[:-1], color=PALETTE[i % 8], linestyle="", marker=".", markersize=5)
        end = rows.iloc[-1]
        x, y = ([[end[k] - end[f"{k}_low"]], [end[f"{k}_high"] - end[k]]] for k in ("custom", "general"))
        ax.errorbar(
            end.custom,
            end.general,
            xerr=x,
            yerr=y,
            color=PALETTE[i % 8],
            marker="osD^vPX*"[i % 8],
            markersize=7,
            capsize=3,
            elinewidth=0.8,
            label=strategy,
        )
    ax.axhline(0.5, color="black", linewidth=1, linestyle=":")
    ax.axvline(0.5, color="black", linewidth=1, linestyle=":")
    ax.set(xlabel="accuracy on the domain's own pairs (95% interval at the end)", ylabel="accuracy on general pairs")
    figure.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside right upper")
    return figure


def reliability(table: pd.DataFrame) -> Figure:
    """Reliability curves with 95% intervals. `table`: `model`, `confidence`, `accuracy`, `low`, `high`, `pairs`."""
    figure, ax = new_figure(6.4, 3.8)
    ax.plot([0.5, 1], [0.5, 1], color="black", linewidth=1, linestyle=":", label="perfect")
    for i, (model, rows) in enumerate(table.groupby("model", sort=False)):
        error = error_bars(rows, "accuracy")
        ax.errorbar(
            rows.confidence,
            rows.accuracy,
            yerr=error,
            color=PALETTE[i % 8],
            marker="osD^vPX*"[i % 8],
            capsize=3,
            markersize=5,
            label=model,
        )
    ax.set(xlabel="confidence of the preference", ylabel="accuracy (95% interval)", xlim=(0.49, 1.01), ylim=(0, 1.02))
    figure.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside right upper")
    return figure


def heads(table: pd.DataFrame) -> Figure:
    """Accuracy of heads on frozen features with 95% intervals, one panel a split.

    `table`: columns `split`, `features`, `head`, `accuracy`, `low`, `high`; rows whose features are "" become lines.
    """
    splits = list(dict.fromkeys(table.split))
    figure, axes = new_figure(4.4 * len(splits) + 1.4, 3.8, ncols=len(splits), sharey=True, squeeze=False)
    kinds = list(dict.fromkeys(table[table.features != ""]["head"]))
    for ax, split in zip(axes[0], splits, strict=True):
        rows = table[table.split == split]
        sets = list(dict.fromkeys(rows[rows.features != ""].features))
        for i, kind in enumerate(kinds):
            part = rows[(rows["head"] == kind) & (rows.features != "")]
            x = [sets.index(name) + 0.13 * (i - (len(kinds) - 1) / 2) for name in part.features]
            error = error_bars(part, "accuracy")
            ax.errorbar(
                x, part.accuracy, yerr=error, fmt="osD^vPX*"[i % 8], color=PALETTE[i % 8], capsize=3, label=kind
            )
        styles = {"oracle": {"color": PALETTE[5], "linewidth": 1.5}}
        for style, line in zip(("--", "-.", "-"), rows[rows.features == ""].itertuples(), strict=False):
            look = styles.get(str(line.head), {"color": "0.3", "linewidth": 1.2, "linestyle": style})
            ax.axhline(line.accuracy, label=line.head, **look)
        ax.axhline(0.5, color="black", linewidth=1, linestyle=":")
        ax.set_xticks(range(len(sets)), sets, rotation=15, ha="right")
        ax.set(xlabel="features", ylabel=f"accuracy, {split} (95%)", ylim=(0, 1.02), xlim=(-0.5, len(sets) - 0.5))
    figure.legend(*axes[0][0].get_legend_handles_labels(), frameon=False, loc="outside right upper")
    return figure


def visible(table: pd.DataFrame) -> Figure:
    """What features can see. `table`: columns `features`, `attribute`, `r2`."""
    values = table.pivot_table(index="features", columns="attribute", values="r2", sort=False)
    figure, ax = new_figure(0.95 * len(values.columns) + 2.6, 0.55 * len(values) + 1.5)
    sns.heatmap(
        values.clip(lower=0),
        cmap="viridis",
        vmin=0,
        vmax=1,
        annot=values,
        fmt=".2f",
        ax=ax,
        annot_kws={"size": 8},
        cbar_kws={"label": "cross-validated R²\nof a linear map"},
    )
    ax.set(xlabel="attribute of the response", ylabel="features")
    return figure


def head_trade_off(table: pd.DataFrame) -> Figure:
    """General against customised accuracy of heads on frozen features, from a strong to a weak penalty.

    `table`: columns `strategy`, `custom`, `general`, `_low` and `_high` of both, `custom_pairs`, `general_pairs`, and
    `chosen`: the setting that cross-validation prefers, which is drawn large, with 95% intervals.
    """
    figure, ax = new_figure(7.4, 4.2)
    for i, (strategy, rows) in enumerate(table.groupby("strategy", sort=False)):
        ax.plot(rows.custom, rows.general, color=PALETTE[i % 8], marker=".", markersize=5, linewidth=1.2, alpha=0.8)
        best = rows[rows.chosen].iloc[0]
        x, y = ([[best[k] - best[f"{k}_low"]], [best[f"{k}_high"] - best[k]]] for k in ("custom", "general"))
        ax.errorbar(
            best.custom,
            best.general,
            xerr=x,
            yerr=y,
            color=PALETTE[i % 8],
            marker="osD^vPX*"[i % 8],
            markersize=8,
            capsize=3,
            elinewidth=0.8,
            label=strategy,
        )
    ax.axhline(0.5, color="black", linewidth=1, linestyle=":")
    ax.axvline(0.5, color="black", linewidth=1, linestyle=":")
    ax.set(
        xlabel=f"accuracy on the domains' own pairs (n = {table.custom_pairs.iloc[0]})",
        ylabel=f"accuracy on general pairs (n = {table.general_pairs.iloc[0]})",
    )
    figure.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=3)
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
