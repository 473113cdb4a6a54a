"""The private names of TRL, PEFT and transformers that the kit uses: a new version that changes one fails here."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from transformers import PretrainedConfig, PreTrainedModel
from trl import DPOTrainer, RewardTrainer

from prlhf_kit.training.pdpo import PersonalizedDPOTrainer
from prlhf_kit.training.personal import PersonalizedTraining
from prlhf_kit.training.reward import PersonalizedRewardTrainer

ROOT = Path(__file__).parents[2]
OVERRIDDEN = {  # method -> parameters that it is called with
    (DPOTrainer, "_prepare_dataset"): ["self", "dataset", "processing_class", "args", "dataset_name"],
    (DPOTrainer, "_precompute_ref_logps"): ["self", "dataset", "name", "batch_size"],
    (RewardTrainer, "_prepare_dataset"): ["self", "dataset", "processing_class", "args", "dataset_name"],
}


@pytest.mark.parametrize(("where", "parameters"), OVERRIDDEN.items(), ids=str)
def test_methods_have_the_parameters_that_the_kit_relies_on(where, parameters):
    owner, name = where
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_contributing_lists_all_of_them():
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Private names")[1].split("\n## ")[0]
    listed = set(re.findall(r"`(?:\w+\.)*(_\w+)`", section))
    used = set()
    for kind in (PersonalizedTraining, PersonalizedDPOTrainer, PersonalizedRewardTrainer):
        theirs = {name for base in kind.__mro__ if not base.__module__.startswith("prlhf") for name in vars(base)}
        used |= {name for name in theirs & set(vars(kind)) if re.match("_[a-z]", name)}
    assert used == {name for _, name in OVERRIDDEN}
    known = {name for kind in (PreTrainedModel, PretrainedConfig, DPOTrainer, RewardTrainer) for name in dir(kind)}
    known |= {"_metrics", "_attn_implementation", "_name_or_path"}  # of objects, not of classes
    for folder in ("models", "training", "decoding", "evaluation"):
        for path in (ROOT / "prlhf_kit" / folder).glob("*.py"):
            found = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            used |= {name for name in found & known if re.match("_[a-z]", name)}
    assert used <= listed, "say in CONTRIBUTING.md why"
