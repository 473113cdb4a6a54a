"""Recipes of reward models: stages, processes, contexts, and the sets of the notebook."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import DatasetDict

import prlhf_kit as kit
from prlhf_kit.data.context import Contexts, context_of, people_of
from prlhf_kit.data.dsp import listwise
from prlhf_kit.data.schema import SchemaError
from prlhf_kit.models.reward_model import load_reward_model
from prlhf_kit.models.rewards import SequenceReward
from prlhf_kit.models.tokenize import encode
from prlhf_kit.training import reward_stages
from prlhf_kit.training.reward import EVALUATIONS
from prlhf_kit.training.reward_stages import RewardRecipe, build_reward_trainer, train_reward
from training.test_reward import LORA, SETTINGS


def recipe(settings=None, **more):
    return RewardRecipe(**{"adapter": LORA, "settings": SETTINGS | (settings or {}), **more})


def test_stages_go_on_from_each_other(base, pairs, tmp_path):
    """CRFT starts from exactly GRFT's model, and a training from another start is not taken for it."""
    one, held_out, grft = recipe({"lm_loss_coeff": 0.1, "eval_strategy": "epoch"}), {"own": pairs}, tmp_path / "grft"
    train_reward(one, base, pairs, grft, held_out)
    general, _ = load_reward_model(str(grft))
    start = build_reward_trainer(one, str(grft), pairs, tmp_path / "crft", held_out).model.eval()
    ids = torch.randint(5, 100, (2, 9))
    assert torch.equal(start(input_ids=ids).logits, general(input_ids=ids).logits)
    found = train_reward(one, str(grft), pairs, tmp_path / "crft", held_out)
    assert found.step.unique().tolist() == [0, 3]
    trained, _ = load_reward_model(str(tmp_path / "crft"))
    assert not torch.equal(trained(input_ids=ids).logits, general(input_ids=ids).logits)
    frozen = dict(general.get_base_model().model.named_parameters())
    for name, p in trained.get_base_model().model.named_parameters():
        if "lora" not in name:
            assert torch.equal(p, frozen[name]), name
    with pytest.raises(ValueError, match="an earlier stage is trained further as it is"):
        build_reward_trainer(replace(one, adapter=None), str(grft), pairs, tmp_path / "x", held_out)
    with pytest.raises(ValueError, match="pooling"):  # the same folder, another pooling
        train_reward(replace(one, pooling="mean"), base, pairs, grft, held_out)
    with pytest.raises(ValueError, match="starts_from"):
        train_reward(one, base, pairs, tmp_path / "crft", held_out)


def test_two_processes_equal_one(base, pairs, tmp_path):
    """By a recipe in a file, after `sharded.py` has compared FSDP's model with a whole one."""
    pairs.save_to_disk(tmp_path / "pairs")
    evaluated = {"lm_loss_coeff": 0.1, "eval_strategy": "epoch", "per_device_eval_batch_size": 5}
    half = recipe(
        evaluated | {"per_device_train_batch_size": 2}, user_model="individual", user_model_options={"num_tokens": 2}
    )
    one = train_reward(
        replace(half, settings=SETTINGS | evaluated), base, pairs, tmp_path / "one", evaluation={"own": pairs}
    )
    folders = {"pairs": str(tmp_path / "pairs"), "evaluation": {"own": str(tmp_path / "pairs")}}
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({**vars(half), **folders, "model": base, "out": str(tmp_path / "two")}))
    line = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "sharded.py", str(file)]
    where = {"cwd": Path(__file__).parents[1], "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    done = subprocess.run([sys.executable, "-m", *line], capture_output=True, text=True, timeout=300, **where)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same" in done.stderr
    two = pd.read_parquet(tmp_path / "two" / EVALUATIONS)
    assert one.sort_values(["step", "row"]).right.tolist() == two.sort_values(["step", "row"]).right.tolist()
    assert len(two) == 2 * len(pairs)  # no pair twice, though 5 does not divide 12
    models = [load_reward_model(str(tmp_path / out))[0] for out in ("one", "two")]
    rewards = [SequenceReward(model, kit.load_tokenizer(base)) for model in models]
    found = [reward.score(pairs["prompt"], pairs["chosen"]).tolist() for reward in rewards]
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("kind", ["true", "choices"])
def test_the_context_is_read_and_recorded(base, pairs, tmp_path, kind):
    """By several sets, of pairs and (where no choices are told) of lists, and by what is held out."""
    told = recipe(context=kind, choices=1, settings={"max_length": None})
    sets, out = {"pairs": pairs} | ({"lists": listwise(pairs)} if kind == "true" else {}), tmp_path / "rm"
    built = build_reward_trainer(told, base, sets, out, {"own": pairs})
    contexts, tokenizer = Contexts(kind, people_of(pairs), earlier=[pairs], k=1), kit.load_tokenizer(base)
    for rows in (built.train_dataset, built.eval_dataset["own"]):
        assert len(rows) % len(pairs) == 0
        for row in rows:
            pair = pairs[row["row"]]
            prompt = contexts.put(pair["prompt"], pair["user_id"])
            said = {"true": f"community: {pair['user_id']}.", "choices": "Rather than: "}[kind]
            assert said in prompt[0]["content"]
            assert row["text_ids"] == [encode(tokenizer, prompt, pair[side])[0] for side in ("chosen", "rejected")]
    if kind == "choices":
        with pytest.raises(SchemaError, match=r"a set lacks \['pair_id', 'chosen', 'rejected'\]"):
            build_reward_trainer(told, base, listwise(pairs), out)
    else:
        train_reward(told, base, sets, out, {"own": pairs})
        assert context_of(out, people_of(pairs)).config == contexts.config


def test_sets_of_the_notebook(pairs, tokenizer, capsys):
    data = DatasetDict(train=pairs, test_seen=pairs)

    def sets(names=("a", "b"), general=("x", "y"), max_length=200):
        sizes = {"n_custom": 3, "n_general": 6, "n_test": 20}
        sources = dict.fromkeys(general, data)
        return reward_stages.stage_sets(data, "user_id", names, sources, ["y"], tokenizer, max_length, **sizes, seed=0)

    found = sets()
    numbers = {"a": 3, "b": 3, "a/test": 4, "b/test": 4, "x/test": 12, "y/test": 20, reward_stages.GENERAL: 6}
    assert {name: len(part) for name, part in found.items()} == numbers
    assert set(found["a/test"]["user_id"]) == {"a"}
    for wrong, message_ in (
        ({"names": ["law"]}, r"no user_id of a training pair 'law'\. There are: a, b, c"),
        ({"max_length": 5}, "Raise max_length"),
        ({"general": ["y"]}, "none is left to train on"),
    ):
        with pytest.raises(ValueError, match=message_):
            sets(**wrong)
    assert "12 of 12 rows are longer than max_length=5: left out" in capsys.readouterr().out
    assert [plan.grft for plan in reward_stages.STRATEGIES.values()][2:5] == ["grft", "grft", "grft-lm0.1"]
