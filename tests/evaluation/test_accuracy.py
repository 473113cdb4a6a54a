"""Measures against values computed by hand: accuracy, its spread over users, swapped answers."""

import numpy as np
import pandas as pd
import pytest
from conftest import with_lora
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import prlhf_kit as kit
from prlhf_kit.data.attributes import ATTRIBUTES
from prlhf_kit.data.schema import record
from prlhf_kit.data.simulated import Population
from prlhf_kit.evaluation import accuracy as compare
from prlhf_kit.evaluation.accuracy import by_implicit_reward, length_rules
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.training.controls import Control


def test_implicit_reward_by_hand():
    anchor = pd.DataFrame({"pair_id": ["p", "q"], "chosen_logp": [-10.0, -5.0], "rejected_logp": [-20.0, -5.0]})
    scores = pd.DataFrame({"pair_id": ["q", "p", "p", "p"], "chosen_logp": [-4.0, -9.0, -12.0, -11.0]})
    scores["rejected_logp"] = [-4.5, -18.0, -21.0, -21.0]
    # gains of chosen and rejected: 1 and .5; 1 and 2; -2 and -1; -1 and -1
    assert by_implicit_reward(scores, anchor).tolist() == [1, 0, 0, 0.5]
    assert by_implicit_reward(scores[:2], anchor).tolist() == [1, 0]  # by pair, not by place
    nearly = scores.assign(rejected_logp=scores.rejected_logp + 0.0005)  # rounding apart
    assert by_implicit_reward(nearly, anchor).tolist() == [1, 0, 0, 0.5]
    assert by_implicit_reward(nearly.assign(chosen_logp=nearly.chosen_logp + 0.002), anchor).tolist() == [1, 0, 0, 1]
    with pytest.raises(ValueError, match="1 of 4 reward differences are NaN"):
        by_implicit_reward(scores, anchor[1:].assign(pair_id="p"))


def test_length_rules_by_hand():
    def pairs(*rows):
        return Dataset.from_list([record(f"{i}", u, "Q?", "w " * c, "w " * r) for i, (u, c, r) in enumerate(rows)])

    train = pairs(("a", 2, 1), ("a", 3, 1), ("b", 1, 4))
    found = length_rules(train, pairs(("a", 1, 5), ("b", 1, 5), ("zoe", 5, 1)))
    assert found[compare.LENGTH].tolist() == [0, 0, 1]  # the pooled direction
    assert found[compare.USER_LENGTH].tolist() == [0, 1, 1]  # and that for users without pairs
    assert length_rules(pairs(("a", 2, 1), ("a", 1, 9)), train)[compare.LENGTH].tolist() == [1, 1, 0]  # a tie: longer


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
    others = table[table.judge != table.author].set_index(["judge", "prompt"])
    assert others.own_wins.to_dict() == {("long", "p"): 1, ("short", "p"): 1, ("long", "q"): 0.5, ("short", "q"): 0.5}
    assert (table[table.judge == table.author].own_wins == 0.5).all()
    assert others.utility["short", "p"] == pytest.approx(-np.log(4))


def test_methods_side_by_side(make_tiny, tokenizer, pairs):
    """Each column against its definition, on a personalised model that differs from its base."""
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
    assert compare.oracle({"test": pairs}).empty  # unknown for this data
    known = compare.oracle({"test": pairs.add_column("p_chosen", [0.2, 0.9] * 6)}).iloc[0]
    assert (known.value, known.low, known.high, known.n, known.users) == (pytest.approx(0.85),) * 3 + (12, 3)
    no_text = pairs.remove_columns("user_text").add_column("user_text", [None] * len(pairs))
    without = compare.ranked_by_method(personal, controls, tokenizer, index, no_text, pairs)
    assert compare.TEXT not in set(without.method)


def test_spread_by_hand():
    """Users a (3 of 4 right), b (1 of 2), c (0 of 2)."""
    table = pd.DataFrame({"user_id": list("aaaabbcc"), "prompt": list("pqpqpqpq"), "value": [1, 1, 1, 0, 1, 0, 0, 0]})
    found = compare.spread(table.assign(split="s", method="m")).set_index("of")
    assert found.value.to_dict() == pytest.approx(
        {"worst user": 0, "10th percentile": 0.1, "median user": 0.5, "best user": 0.75}
    )
    assert (found.user_id["worst user"], found.user_id["best user"]) == ("c", "a")
    assert found.n.to_dict() == {"worst user": 2, "best user": 4, "10th percentile": 8, "median user": 8}
    six = pd.DataFrame({"user_id": list("abcdef"), "prompt": list("pqrstu"), "value": [0, 1, 0, 1, 1, 1.0]})
    found = compare.spread(six.assign(split="s", method="m")).set_index("of")
    assert 0 == found.low["median user"] < found.high["median user"] == 1
    assert np.isnan(found.low["worst user"])  # of one prompt


def test_general_sets_are_ranked_by_likelihood(make_tiny, tokenizer, pairs):
    personal, base, index = with_lora(make_tiny(users=2, offsets=1.0)), make_tiny(), kit.UserIndex(["a", "b"])
    controls, sets = [Control(compare.VANILLA, base)], {"all": pairs, "few": pairs.select(range(3))}
    table = compare.general_ranks(personal, controls, tokenizer, index, sets)
    found = table[table.set == "all"].pivot(index="item", columns="method", values="value").loc[list(pairs["pair_id"])]
    for method, model, rows in (
        (compare.UNTRAINED, base, None),
        (compare.VANILLA, base, None),
        (compare.GENERIC_ROW, personal, [0] * len(pairs)),
        ("P-DPO, a user in turn", personal, [1, 2] * (len(pairs) // 2)),
    ):
        assert found[method].tolist() == compare.likelier(score_pairs(model, tokenizer, pairs, rows)).tolist()
    assert table.groupby("set").item.nunique().to_dict() == {"all": len(pairs), "few": 3}
    with pytest.raises(ValueError, match="the general set 'none' has no pair left"):
        compare.general_ranks(None, [], None, None, {"none": pairs.select([])})


def test_new_users_beside_methods_that_know_nothing_of_them():
    def rows(method, values, **more):
        return [dict(method=method, user_id=f"u{i}", prompt="q", item=i, value=v, **more) for i, v in enumerate(values)]

    ranked = pd.DataFrame(
        rows(compare.GENERIC_ROW, [0, 0, 1], k=0) + rows("fitted", [1, 0, 1], k=2) + rows("fitted", [1] * 3, k=8)
    )
    scores = rows(compare.VANILLA, [0, 0, 1], split="test_unseen") + rows(compare.VANILLA, [1] * 3, split="test_seen")
    scores += rows(compare.GENERIC_ROW, [1, 0, 0], split="test_unseen") + rows(
        "untrained", [1] * 3, split="test_unseen"
    )
    found = compare.new_user_gaps(ranked, pd.DataFrame(scores)).set_index(["k", "one", "other"]).difference
    assert found.round(6).to_dict() == {
        (2, "fitted", compare.VANILLA): pytest.approx(1 / 3, abs=1e-5),
        (2, "fitted", compare.GENERIC_ROW): pytest.approx(1 / 3, abs=1e-5),
        (8, "fitted", compare.VANILLA): pytest.approx(2 / 3, abs=1e-5),
        (8, "fitted", compare.GENERIC_ROW): pytest.approx(2 / 3, abs=1e-5),
    }
