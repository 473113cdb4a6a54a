"""Measures against values computed by hand, intervals, scoring, and the figures."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, load_from_disk

import prlhf_kit as kit
from prlhf_kit.data.attributes import ATTRIBUTES
from prlhf_kit.data.select import unique_prompts
from prlhf_kit.data.simulated import Population
from prlhf_kit.evaluation import accuracy as compare
from prlhf_kit.evaluation.accuracy import length_direction, ranked_right
from prlhf_kit.evaluation.intervals import intervals
from prlhf_kit.evaluation.statistics import cluster_bootstrap
from prlhf_kit.figures import data as data_figures, users as user_figures
from prlhf_kit.models.logprobs import add_reference_logps, completion_logps, save_with_reference, score_pairs
from prlhf_kit.training.controls import Control


def test_metrics_by_hand():
    assert ranked_right([1, 2, 2], [0, 2, 3]).tolist() == [1.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="1 of 2 reward differences are NaN"):
        ranked_right([1, np.nan], [0, 0])
    assert length_direction([5, 1], [1, 9]) == 1  # one each: a tie goes to longer
    assert length_direction([5, 1, 1], [1, 9, 9]) == -1


def test_accuracy_by_user_by_hand():
    ranked = pd.DataFrame({"user_id": ["b", "a", "b"], "mine": [1.0, 0.0, 0.0], "other": [1.0, 1.0, 1.0]})
    table = ranked.melt("user_id", var_name="method")
    table = intervals(table[table.method == "mine"].sort_values("user_id"), by=["method", "user_id"], cluster=None)
    assert table.user_id.tolist() == ["a", "b"]
    assert table.value.tolist() == [0.0, 0.5]
    assert table.low.isna().tolist() == [True, False]  # one pair says nothing of how far pairs differ
    assert table[["low", "high"]].to_numpy()[1].tolist() == [0.0, 1.0]
    assert table.n.tolist() == [1, 2]


def test_swapped_answers_by_hand():
    """Two opposite users, two prompts: on p both got what they like, on q both got the same text."""
    columns = list(ATTRIBUTES)
    weights = pd.DataFrame(0.0, index=["long", "short"], columns=columns)
    weights["length"] = [1.0, -1.0]
    ones = pd.Series(1.0, index=columns)
    people = Population(weights, {"long": "x", "short": "y"}, 0 * ones, ones, 1.0)
    texts = ["one two three", "one", "same", "same"]
    table = compare.swapped(people, ["long", "short", "long", "short"], ["p", "p", "q", "q"], texts)
    assert len(table) == 2 * 4
    others = table[table.judge != table.author].set_index(["judge", "prompt"]).own_wins
    assert others.to_dict() == {("long", "p"): 1.0, ("short", "p"): 1.0, ("long", "q"): 0.5, ("short", "q"): 0.5}
    assert (table[table.judge == table.author].own_wins == 0.5).all()
    judged = table.set_index(["judge", "author", "prompt"]).utility
    assert judged["long", "short", "p"] == pytest.approx(np.log(2))
    assert judged["short", "long", "p"] == pytest.approx(-np.log(4))


def test_cluster_bootstrap_by_hand_and_by_coverage():
    found = cluster_bootstrap([1, 1, 1, 0, 0], ["a", "a", "a", "b", "b"], resamples=20_000)
    # two clusters: both a (1/4), both b (1/4), one each (1/2, mean 3/5)
    assert found == (0.6, 0.0, 1.0, 5, 2)
    assert str(found) == "0.600 [0.000, 1.000]"
    with pytest.raises(AssertionError, match="at least one value"):
        cluster_bootstrap([], [])
    # 30 clusters of 5 with a shared cluster effect: the clustered interval covers, one that ignores users does not
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 5)
    covered, naive = 0, 0
    for i in range(300):
        values = rng.normal(size=30)[clusters] + 0.5 * rng.normal(size=150)
        ours = cluster_bootstrap(values, clusters, resamples=500, seed=i)
        independent = cluster_bootstrap(values, range(150), resamples=500, seed=i)
        covered += ours.low <= 0 <= ours.high
        naive += independent.low <= 0 <= independent.high
    assert 0.90 <= covered / 300 <= 0.98
    assert naive / 300 < 0.8


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "mistral"])
def test_scores_do_not_depend_on_batch_or_repetition(make_tiny, tokenizer, pairs, architecture):
    model = make_tiny(architecture, users=3, offsets=0.5)
    rows = [1, 2, 3] * 4
    one = score_pairs(model, tokenizer, pairs, rows, batch_size=1)
    many = score_pairs(model, tokenizer, pairs, rows, batch_size=8)
    pd.testing.assert_frame_equal(one, many, atol=1e-4)
    with pytest.raises(kit.ConditioningError, match=r"text of \d+ tokens .* exceeds the model's context of 256"):
        completion_logps(model, tokenizer, [*pairs["prompt"]][:1], [[{"role": "assistant", "content": "no " * 300}]])
    twice = completion_logps(model, tokenizer, [*pairs["prompt"]] * 2, [*pairs["chosen"]] * 2, rows * 2)
    assert twice[0] == pytest.approx([*one.chosen_logp] * 2, abs=1e-4)
    assert twice[1] == [*one.chosen_tokens] * 2


def test_log_prob_equals_the_sum_by_hand(make_tiny, tokenizer, pairs):
    model = make_tiny()
    row = pairs[3]
    ids = tokenizer.apply_chat_template(row["prompt"] + row["chosen"], return_tensors="pt", return_dict=True)[
        "input_ids"
    ]
    start = len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"])
    logps = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[start - 1 :]
    found, tokens = completion_logps(model, tokenizer, [row["prompt"]], [row["chosen"]])
    assert found[0] == pytest.approx(logps.sum().item(), abs=1e-4)
    assert tokens == [len(logps)]


def test_reference_that_comes_with_the_data_is_used(make_tiny, tokenizer, pairs, tmp_path):
    from training.conftest import make_trainer

    plain = make_trainer(make_tiny(users=3, offsets=0.5), tokenizer, pairs, tmp_path)
    known = add_reference_logps(pairs, make_tiny(), tokenizer)
    ours = make_trainer(make_tiny(users=3, offsets=0.5), tokenizer, known, tmp_path)
    losses = [t.compute_loss(t.model, t.data_collator(list(t.train_dataset))).item() for t in (plain, ours)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    with pytest.raises(ValueError, match="would cut it"):
        make_trainer(make_tiny(users=3), tokenizer, known, tmp_path, max_length=40)


def test_methods_side_by_side(make_tiny, tokenizer, pairs):
    """Each column against its definition, on a personalised model that differs from its base."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["user_model"])
    personal = get_peft_model(make_tiny(users=2, offsets=1.0), config).eval()
    controls = [Control(compare.VANILLA, make_tiny())]
    index = kit.UserIndex(["a", "b"])
    pairs = pairs.remove_columns("user_text").add_column("user_text", ["Be brief."] * len(pairs))
    long = compare.ranked_by_method(personal, controls, tokenizer, index, pairs, pairs)
    table = long.pivot(index="item", columns="method", values="value").loc[list(pairs["pair_id"])]
    assert (table[compare.VANILLA] == 0.5).all()  # the vanilla model is the reference: all rewards are equal
    strangers = table[np.array(pairs["user_id"]) == "c"]
    assert (strangers[compare.PERSONAL] == strangers[compare.GENERIC_ROW]).all()
    assert (table[compare.PERSONAL] != table[compare.GENERIC_ROW]).any()
    longer = compare.words(pairs["chosen"]) > compare.words(pairs["rejected"])
    assert (table[compare.LENGTH] == 1)[longer].all()
    assert compare.TEXT in table
    summary = intervals(long, users=("user_id", "nunique")).set_index("method").loc[compare.LENGTH]
    assert (summary.value, summary.n, summary.users) == (table[compare.LENGTH].mean(), 12, 3)
    assert compare.oracle({"test": pairs}).empty  # unknown for this data
    known = compare.oracle({"test": pairs.add_column("p_chosen", [0.2, 0.9] * 6)}).iloc[0]
    assert (known.value, known.low, known.high, known.n, known.users) == (pytest.approx(0.85),) * 3 + (12, 3)
    no_text = pairs.remove_columns("user_text").add_column("user_text", [None] * len(pairs))
    without = compare.ranked_by_method(personal, controls, tokenizer, index, no_text, pairs)
    assert compare.TEXT not in set(without.method)


def test_unique_prompts_are_seeded():
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": t}] for t in "abcab"]})
    drawn = unique_prompts(data, 2, seed=1)
    assert len(drawn) == 2
    assert drawn == unique_prompts(data, 2, seed=1)
    assert len(unique_prompts(data, 9)) == 3


def test_figures_show_the_data_they_were_given():
    history = pd.DataFrame({"step": [1, 2], "method": "m", "loss": [0.7, 0.5], "accuracy": [0.5, 1.0]})
    left, _ = user_figures.learning_curves(history).axes
    assert left.lines[0].get_ydata().tolist() == [0.7, 0.5]
    judged = pd.DataFrame(
        {"judge": ["b", "b", "a", "a"], "author": ["b", "a", "b", "a"], "prompt": "p", "utility": [3.0, 1.0, 0.0, 4.0]}
    )
    heatmap = user_figures.swapped_utility(judged).axes[0]
    assert [label.get_text() for label in heatmap.get_yticklabels()] == ["b", "a"]
    assert heatmap.collections[0].get_array().ravel().tolist() == [1, -1, -2, 2]
    data_figures.tastes(pd.DataFrame({"length": [1.0, -1.0]}, index=["a", "b"]))
    user_figures.similarity(pd.DataFrame(torch.eye(2).numpy(), index=["a", "b"], columns=["a", "b"]))
    data_figures.lengths(
        pd.DataFrame({"split": "train", "user_id": ["a", "a"], "chosen_words": [1, 2], "rejected_words": [3, 1]})
    )
    assert not plt.get_fignums()  # drawn apart from pyplot: nothing leaks in a long session


def test_the_reference_is_computed_once_and_appears_whole(make_tiny, tokenizer, pairs, tmp_path):
    (tmp_path / ".pairs-1-unfinished").mkdir()  # an earlier attempt was killed; `prlhf runs gc` takes it away
    save_with_reference(pairs, make_tiny(), tokenizer, tmp_path / "pairs")
    assert load_from_disk(tmp_path / "pairs").to_list() == add_reference_logps(pairs, make_tiny(), tokenizer).to_list()
    save_with_reference(pairs, None, tokenizer, tmp_path / "pairs")  # it is there: no model is asked
    assert {path.name for path in tmp_path.iterdir()} == {".pairs-1-unfinished", "pairs"}
