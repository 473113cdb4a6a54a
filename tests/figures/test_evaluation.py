"""Every figure of the evaluation: it shows the numbers of its table, and looks as it did.

Pictures are compared with those in `tests/figures/baseline` by pytest-mpl (root mean square of grey levels, with a
tolerance for other versions of FreeType). After a wanted change call pytest with
`--mpl-generate-path=tests/figures/baseline`, and look at what changed.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from prlhf_kit.figures import evaluation as evaluation_figures, style as style_figures, users as user_figures

SYSTEMS = ["P-DPO, user", "vanilla DPO", "untrained"]


def looks(test):
    return pytest.mark.mpl_image_compare(
        baseline_dir="baseline", savefig_kwargs={"dpi": 50}, style="default", tolerance=12
    )(test)


def bars(ax):
    """(x, y) of every error bar's points, in order."""
    return [line.get_xydata().tolist() for line in ax.lines if line.get_marker() in style_figures.MARKERS]


@pytest.fixture
def rates():
    rows = [("oracle", "P-DPO, user", "vanilla DPO", 0.8, 0.01), ("oracle", "P-DPO, user", "untrained", 0.6, 0.3),
            ("longer", "P-DPO, user", "vanilla DPO", 0.3, np.nan)]  # fmt: skip
    return pd.DataFrame(rows, columns=["judge", "system_a", "system_b", "win_rate", "p_holm"])


@looks
def test_win_matrix(rates):
    figure = evaluation_figures.win_matrix(rates)
    oracle, longer = (ax for ax in figure.axes if ax.get_title())
    cells = oracle.collections[0].get_array()
    assert cells.reshape(3, 3)[0, 1] == 0.8
    assert cells.reshape(3, 3)[1, 0] == pytest.approx(0.2)
    assert cells.mask.reshape(3, 3).diagonal().all()
    assert cells.mask.reshape(3, 3)[1, 2]  # never compared
    assert [t.get_text() for t in oracle.texts if t.get_text()] == ["0.80*", "0.60", "0.20*", "0.40"]
    assert [t.get_text() for t in longer.texts if t.get_text()] == ["0.30", "0.70"]
    return figure


@looks
def test_ratings():
    table = pd.DataFrame({"judge": ["oracle"] * 3 + ["longer"], "system": [*SYSTEMS, SYSTEMS[0]],
                          "rating": [1100.0, 950.0, 950.0, 900.0], "low": 880.0, "high": 1150.0})  # fmt: skip
    figure = evaluation_figures.ratings(table)
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == SYSTEMS
    assert [x for x, _ in bars(ax)[0]] == [1100, 950, 950]
    return figure


@looks
def test_dimensions():
    rows = [("m", "formal", 1.0, 0.5, 1.5), ("m", "casual", -0.5, -1.0, 0.2), ("o", "formal", 0.0, -0.1, 0.1)]
    table = pd.DataFrame(rows, columns=["method", "dimension", "value", "low", "high"])
    figure = evaluation_figures.dimensions(table.assign(unit="reward gained"))
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["formal", "casual"]
    assert [y for _, y in bars(ax)[0]] == [1.0, -0.5]
    return figure


@looks
def test_reward_front():
    both = {"reward": [0.0, 1.0, 0.8, -0.2, 0.7, 0.5, 0.2, 1.4, 1.0],
            "coherence": [0.5, 0.6, 0.4, 0.4, 0.5, 0.3, 0.6, 0.7, 0.5]}  # fmt: skip
    parts = [pd.DataFrame({"guide": "PAD", "weight": [0.0, 1.0, 3.0], "measure": measure, "value": numbers[:3],
                           "low": numbers[3:6], "high": numbers[6:], "front": [False, True, False]})
             for measure, numbers in both.items()]  # fmt: skip
    figure = evaluation_figures.reward_front(pd.concat(parts, ignore_index=True))
    ax = figure.axes[0]
    assert ax.lines[0].get_xydata().tolist() == [[0, 0.5], [1, 0.6], [0.8, 0.4]]
    assert ax.collections[-1].get_offsets().tolist() == [[1, 0.6]]  # the ring
    assert [t.get_text() for t in ax.texts] == ["0", "1", "3"]
    return figure


@looks
def test_length_against_win():
    table = pd.DataFrame({"comparison": ["against a", "against a", "against b"], "user_id": ["u", "v", "u"],
                          "longer": [-3.0, 2.0, 5.0], "win_rate": [0.2, 0.5, 1.0]})  # fmt: skip
    figure = evaluation_figures.length_against_win(table)
    assert [c.get_offsets().tolist() for c in figure.axes[0].collections] == [[[-3, 0.2], [2, 0.5]], [[5, 1.0]]]
    return figure


@looks
def test_fairness():
    table = pd.DataFrame({"user_id": ["worst", "middle", "best"], "group": ["g", "h", "g"], "value": [-0.2, 0.1, 0.5],
                          "low": [-0.5, np.nan, 0.3], "high": [0.1, np.nan, 0.7], "unit": "gained"})  # fmt: skip
    figure = evaluation_figures.fairness(table)
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["worst", "middle", "best"]
    assert bars(ax) == [[[-0.2, 0], [0.5, 2]], [[0.1, 1]]]
    return figure


@looks
def test_position_bias():
    table = pd.DataFrame(
        {
            "judge": ["fair", "first"] * 2,
            "measure": ["prefers the first"] * 2 + ["orders disagree"] * 2,
            "value": [0.0, 1.0, 0.1, 1.0],
            "low": [-0.1, 1.0] * 2,
            "high": [0.1, 1.0] * 2,
        }
    )
    figure = evaluation_figures.position_bias(table)
    left, right = figure.axes
    assert bars(left)[0] == [[0, 0], [1, 1]]
    assert [bar.get_width() for bar in right.patches] == [10, 100]
    return figure


@looks
def test_policy_accuracy():
    table = pd.DataFrame({"method": "PAD", "weight": [0.0, 1.0] * 2, "of": ["steered model"] * 2 + ["reward alone"] * 2,
                          "value": [0.5, 0.6, 0.9, 0.9], "low": [0.4, 0.5, 0.85, 0.85],
                          "high": [0.6, 0.8, 0.95, 0.95]})  # fmt: skip
    figure = evaluation_figures.policy_accuracy(table)
    ax = figure.axes[0]
    assert bars(ax)[0] == [[0, 0.5], [1, 0.6]]
    assert 0.9 in [line.get_ydata()[0] for line in ax.lines]
    return figure


@looks
def test_tax():
    table = pd.DataFrame({"set": ["helpful", "harmless"], "one": "P-DPO", "difference": [-0.1, 0.02],
                          "low": [-0.2, -0.05], "high": [0.0, 0.1]})  # fmt: skip
    figure = evaluation_figures.alignment_tax(table)
    assert bars(figure.axes[0]) == [[[-0.1, 0], [0.02, 1]]]
    return figure


@looks
def test_accuracy_by_method():
    table = pd.DataFrame({"split": "test_seen", "method": ["P-DPO, user", "vanilla DPO", "oracle"],
                          "value": [0.8, 0.5, 0.9], "low": [0.7, 0.4, 0.9], "high": [0.85, 0.6, 0.9]})  # fmt: skip
    figure = user_figures.accuracy_by_method(table)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.8, 0.5]
    return figure


@looks
def test_accuracy_by_user():
    users = pd.DataFrame({"user_id": ["b", "a"], "method": "m", "value": [0.2, 0.6], "low": 0.1, "high": 0.9})
    figure = user_figures.accuracy_by_user(users)
    assert bars(figure.axes[0])[0] == [[0.2, 1], [0.6, 0]]
    return figure


@looks
def test_adaptation():
    table = pd.DataFrame({"k": [0, 1, 4, 1, 4], "method": ["generic row"] + ["nearest"] * 2 + ["fitted"] * 2,
                          "value": [0.5, 0.6, 0.8, 0.55, 0.85], "low": 0.45, "high": 0.9})  # fmt: skip
    figure = user_figures.adaptation(table)
    assert [y for _, y in bars(figure.axes[0])[0]] == [0.6, 0.8]
    return figure


def test_figures_are_readable_on_light_and_dark_pages(tmp_path, rates):
    """Their background is white and opaque, as PNG and as vector, whatever is behind it."""
    figure = evaluation_figures.win_matrix(rates)
    figure.savefig(tmp_path / "f.png")
    assert plt.imread(tmp_path / "f.png")[0, 0].tolist() == [1, 1, 1, 1]
    figure.savefig(tmp_path / "f.svg")
    assert "fill: #ffffff" in (tmp_path / "f.svg").read_text()


def test_the_same_table_gives_the_same_files(tmp_path, rates):
    for name in ("one", "two"):
        style_figures.save(evaluation_figures.win_matrix(rates), tmp_path / f"{name}.png")
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()


def test_many_systems_stay_readable(rates):
    """Judges are stacked, and the ninth series does not look as the first."""
    many = pd.DataFrame([("j", f"s{i}", f"s{k}", 0.5, 1.0) for i in range(9) for k in range(i)],
                        columns=["judge", "system_a", "system_b", "win_rate", "p_holm"])  # fmt: skip
    figure = evaluation_figures.win_matrix(pd.concat([many, many.assign(judge="other")]))
    tops = [ax.get_position().y1 for ax in figure.axes if ax.get_title()]
    assert tops[0] != tops[1]
    assert style_figures.marker_of(8) != style_figures.marker_of(0)
