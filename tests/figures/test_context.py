"""Figures of the reader in the prompt: the numbers of their tables; looks as in `test_evaluation_figures.py`."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from figures.test_evaluation import bars, looks
from prlhf_kit.commands import FIGURES
from prlhf_kit.data.context import CONTEXTS
from prlhf_kit.evaluation import context, intervals, options
from prlhf_kit.figures import context as figures

COMMUNITIES = ["askculinary", "AskHistorians and historiography", "ExplainLikeImFive", "legaladvice (United Kingdom)",
               "changemyview"]  # fmt: skip
DATASETS = ["dsp", "hh_relabelled", "prefeval", "simulated"]


def with_interval(table, value="value", width=0.06):
    return table.assign(low=(table[value] - width).clip(0, 1), high=(table[value] + width).clip(0, 1))


def labels(ax):
    return [label.get_text().replace("\n", " ") for label in ax.get_yticklabels()]


def four_ways(datasets):
    methods = [*context.FOUR_WAYS, "untrained", "length rule per user"]
    rows = [(d, m, 0.4 + 0.05 * i + 0.03 * j, 342, 5) for j, d in enumerate(datasets) for i, m in enumerate(methods)]
    table = with_interval(pd.DataFrame(rows, columns=["dataset", "method", "value", "n", "users"]))
    return table.assign(chance=np.where(table.dataset == "prefeval", 0.25, 0.5))


@looks
def test_four_way_of_four_datasets():
    table = four_ways(DATASETS)
    figure = figures.four_way(table.sample(frac=1, random_state=1).sort_values("dataset"))
    assert [ax.get_title(loc="left") for ax in figure.axes] == [f"{d}: 342 items, 5 users" for d in DATASETS]
    ax = figure.axes[2]
    assert set(labels(ax)) == set(table.method)
    assert labels(ax)[:4] == [*context.FOUR_WAYS]  # in this order whatever the table's
    assert [xy[0] for xy in bars(ax)][:4] == [[pytest.approx(0.46 + 0.05 * i), i] for i in range(4)]
    assert ax.lines[-1].get_xdata()[0] == 0.25
    assert figure.axes[0].lines[-1].get_xdata()[0] == 0.5
    return figure


@looks
def test_four_way_of_one_dataset():
    return figures.four_way(four_ways(["dsp"]))


def matrix(communities=COMMUNITIES):
    rows = [(a, c, 0.35 + 0.5 * (a == c) + 0.02 * i, 71 + i, a == c) for i, a in enumerate(communities)
            for c in [*reversed(communities), "none"]]  # fmt: skip
    return pd.DataFrame(rows, columns=["community", "context", "value", "n", "right"])


@looks
def test_context_heatmap():
    figure = figures.context_heatmap(matrix())
    ax = figure.axes[0]
    cells = ax.collections[0].get_array().reshape(5, 6)
    assert cells[:, 1:].diagonal().tolist() == pytest.approx([0.85 + 0.02 * i for i in range(5)])
    assert cells[:, 0].tolist() == pytest.approx([0.35 + 0.02 * i for i in range(5)])
    assert [patch.get_xy() for patch in ax.patches] == [(i + 1, i) for i in range(5)]  # frames
    assert labels(ax) == [f"{name} (n={71 + i})" for i, name in enumerate(COMMUNITIES)]
    assert [label.get_text().replace("\n", " ") for label in ax.get_xticklabels()] == ["none", *COMMUNITIES]
    return figure


@looks
def test_context_heatmaps_of_two_datasets():
    small = matrix(["harmless", "helpful"]).assign(dataset="hh_relabelled")
    return figures.context_heatmap(pd.concat([small, matrix().assign(dataset="dsp")]))


@looks
def test_option_accuracy():
    rows = [(m, c, r, 0.3 + 0.1 * i + 0.15 * (c != "none") - 0.1 * j) for i, m in enumerate(["untrained", "SFT", "DPO"])
            for c in ("none", "user_text") for j, r in enumerate(options.RULES)]  # fmt: skip
    rows += [("P-DPO, with the words of the user beside", "none", options.LIKELIHOOD, 0.8)]
    table = with_interval(pd.DataFrame(rows, columns=["method", "context", "rule", "value"])).assign(chance=0.25)
    figure = figures.option_accuracy(table)
    ax = figure.axes[0]
    assert labels(ax) == [
        "untrained",
        "SFT",
        "DPO",
        "P-DPO, with the words of the user beside",
        options.SHORTEST,
        options.LONGEST,
    ]
    right, none, rules = bars(ax)
    assert [x for x, _ in right] == pytest.approx([0.45, 0.55, 0.65])
    assert [x for x, _ in none] == pytest.approx([0.3, 0.4, 0.5, 0.8])
    assert rules == [[pytest.approx(0.1), 4], [pytest.approx(0.0), 5]]
    assert ax.lines[-1].get_xdata()[0] == 0.25
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["right", "none"]
    return figure


def of_contexts(datasets):
    rows = [(d, m, c, 0.5 + 0.1 * i - 0.05 * j, 171) for d in datasets for i, m in enumerate(["SFT", "DPO", "P-DPO"])
            for j, c in enumerate(("true", "none", "random", "shuffled"))]  # fmt: skip
    return with_interval(pd.DataFrame(rows, columns=["dataset", "method", "context", "value", "n"])).assign(chance=0.5)


@looks
def test_by_context():
    figure = figures.by_context(of_contexts(["dsp"]).drop(columns="dataset"))
    right, none, random, shuffled = bars(figure.axes[0])
    assert [x for x, _ in right] == pytest.approx([0.5, 0.6, 0.7])
    assert [x for x, _ in shuffled] == pytest.approx([0.35, 0.45, 0.55])
    assert [y for _, y in none] == sorted(y for _, y in none)
    assert right[0][1] < none[0][1] < random[0][1] < shuffled[0][1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["right", "none", "random", "shuffled"]
    return figure


@looks
def test_by_context_of_two_datasets():
    return figures.by_context(of_contexts(["dsp", "hh_relabelled"]))


@looks
def test_community_win_rates():
    pairs = [("contextual", "plain"), ("right context", "random context")]
    rows = [("oracle", a, b, c, 0.9 - 0.12 * i - 0.1 * j, 0.01 if i < 2 else 0.4) for j, (a, b) in enumerate(pairs)
            for i, c in enumerate([*COMMUNITIES, "all"])]  # fmt: skip
    table = pd.DataFrame(rows, columns=["judge", "system_a", "system_b", "community", "win_rate", "p_holm"])
    table = with_interval(pd.concat([table, table[:3].assign(judge="longer", p_holm=np.nan)]), "win_rate", 0.1)
    figure = figures.community_win_rates(table)
    oracle, longer = figure.axes
    assert labels(oracle) == [*COMMUNITIES, "all"]
    first, hollow = bars(oracle)[:2]
    assert [x for x, _ in first] == pytest.approx([0.9 - 0.12 * i for i in range(6)])
    assert hollow == first[2:]  # not significant
    assert bars(longer)[0] == bars(longer)[1]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["contextual over plain", "right context over random context"]
    return figure


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.four_way(four_ways(DATASETS)), lambda: figures.context_heatmap(matrix()),
        lambda: figures.by_context(of_contexts(DATASETS)),
    ],
)  # fmt: skip
def test_labels_neither_overlap_nor_leave_the_picture(draw):
    figure = draw()
    figure.draw_without_rendering()
    for ax in figure.axes:
        boxes = [label.get_window_extent() for label in ax.get_yticklabels() if label.get_text()]
        for one, other in pairwise(boxes):
            assert not one.overlaps(other)
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_the_command_makes_them():
    assert set(figures.FIGURES) <= set(FIGURES)
    assert {stage for stage, _, _ in figures.FIGURES.values()} == {"08_community_context"}


def test_names_are_those_of_the_tables():
    for name in ("LIKELIHOOD", "SHORTEST", "LONGEST"):
        assert getattr(figures, name) == getattr(options, name)
    assert (figures.FOUR_WAYS, figures.NONE, figures.ALL) == (context.FOUR_WAYS, context.NONE, intervals.ALL)
    assert set(figures.CONTEXTS) == set(CONTEXTS)


def test_figures_need_no_torch():
    code = "import sys, prlhf_kit.figures.context; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
