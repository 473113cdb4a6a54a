"""Every figure looks as it did; some show their numbers at their names.

Pictures are compared with those in `tests/figures/baseline` by pytest-mpl (root mean square of grey levels, with a
tolerance for other versions of FreeType). After a wanted change call pytest with
`--mpl-generate-path=tests/figures/baseline`, and look at what changed.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from figures.tables import TABLES, WIN_RATES
from prlhf_kit.evaluation import context, intervals
from prlhf_kit.figures import evaluation, style
from prlhf_kit.figures.index import FIGURES


def bars(ax):
    """(x, y) of every error bar's points, in order."""
    return [line.get_xydata().tolist() for line in ax.lines if line.get_marker() in style.MARKERS]


def labels(ax, axis="y"):
    return [label.get_text().replace("\n", " ") for label in getattr(ax, f"get_{axis}ticklabels")()]


@pytest.mark.mpl_image_compare(baseline_dir="baseline", savefig_kwargs={"dpi": 50}, style="default", tolerance=12)
@pytest.mark.parametrize("name", list(FIGURES))
def test_picture(name):
    figure = FIGURES[name][2](TABLES[name])
    assert not plt.get_fignums()  # drawn apart from pyplot: nothing leaks in a long session
    return figure


def test_numbers_stand_at_their_names():
    ax = FIGURES["accuracy_by_user"][2](TABLES["accuracy_by_user"]).axes[0]
    assert labels(ax) == ["a", "b"]
    assert bars(ax)[0] == [[0.2, 1], [0.6, 0]]
    ax = FIGURES["swapped"][2](TABLES["swapped"].iloc[::-1]).axes[0]
    assert labels(ax) == ["b", "a"]
    assert ax.collections[0].get_array().ravel().tolist() == [2, -2, -1, 1]


def test_win_matrix_has_both_sides_and_stars():
    oracle, longer = (ax for ax in FIGURES["win_matrix"][2](WIN_RATES).figure.axes if ax.get_title())
    cells = oracle.collections[0].get_array().reshape(3, 3)
    assert (cells[0, 1], cells[1, 0]) == (0.8, pytest.approx(0.2))
    assert cells.mask.diagonal().all()
    assert cells.mask[1, 2]  # never compared
    assert oracle.collections[0].get_clim() == longer.collections[0].get_clim()  # they share a colour bar
    assert [t.get_text() for t in oracle.texts] == ["0.80*", "0.60", "0.20*", "0.40"]
    assert [t.get_text() for t in longer.texts] == ["0.30", "0.70"]


@pytest.mark.parametrize(
    ("name", "column"), [("win_matrix", "win_rate"), ("agreement", "agreement"), ("domain_heatmap", "value")]
)
def test_cells_that_differ_by_little_are_told_apart(name, column):
    shown = TABLES[name].assign(**{column: 0.45 + 0.1 * (TABLES[name][column] > 0.6)})
    mesh = FIGURES[name][2](shown).axes[0].collections[0]
    assert mesh.get_clim()[1] - mesh.get_clim()[0] == pytest.approx(0.2)


def test_a_map_of_many_users_has_a_bounded_size():
    """At half an inch a cell, drawing that of 168 users took 23 GB."""
    many = pd.DataFrame(np.eye(200))
    assert max(FIGURES["similarity"][2](many).get_size_inches()) <= 14


def test_four_ways_have_their_order_and_controls_come_after_them():
    ax = FIGURES["four_way"][2](TABLES["four_way"]).axes[1]
    assert labels(ax) == [*context.FOUR_WAYS, "untrained", "length rule per user"]
    first = sorted((xy[0] for xy in bars(ax)), key=lambda xy: xy[1])[:4]
    assert first == [[pytest.approx(0.53 + 0.05 * i), i] for i in range(4)]


def test_names_are_those_of_the_tables():
    assert (evaluation.FOUR_WAYS, evaluation.ALL) == (context.FOUR_WAYS, intervals.ALL)


def test_the_same_table_gives_the_same_files_on_white(tmp_path):
    for name in ("one", "two"):
        style.save(FIGURES["win_matrix"][2](WIN_RATES), tmp_path / f"{name}.png")
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    assert plt.imread(tmp_path / "one.png")[0, 0].tolist() == [1, 1, 1, 1]  # readable on dark pages, too
    assert "fill: #ffffff" in (tmp_path / "one.svg").read_text()
