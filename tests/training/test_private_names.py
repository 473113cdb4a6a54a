"""The private names of TRL, PEFT and transformers that the kit uses are listed with their reasons."""

import ast
import re
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel
from trl import DPOTrainer, RewardTrainer

from prlhf_kit.training.pdpo import PersonalizedDPOTrainer
from prlhf_kit.training.personal import PersonalizedTraining
from prlhf_kit.training.reward import PersonalizedRewardTrainer

ROOT = Path(__file__).parents[2]


def test_contributing_lists_all_of_them():
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Private names")[1].split("\n## ")[0]
    listed = set(re.findall(r"`(?:\w+\.)*(_\w+)`", section))
    used = set()
    for kind in (PersonalizedTraining, PersonalizedDPOTrainer, PersonalizedRewardTrainer):
        theirs = {name for base in kind.__mro__ if not base.__module__.startswith("prlhf") for name in vars(base)}
        used |= {name for name in theirs & set(vars(kind)) if re.match("_[a-z]", name)}
    assert used == {"_prepare_dataset", "_precompute_ref_logps"}
    known = {name for kind in (PreTrainedModel, PretrainedConfig, DPOTrainer, RewardTrainer) for name in dir(kind)}
    known |= {"_metrics", "_attn_implementation", "_name_or_path"}  # of objects, not of classes
    for folder in ("models", "training", "decoding", "evaluation"):
        for path in (ROOT / "prlhf_kit" / folder).glob("*.py"):
            found = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            used |= {name for name in found & known if re.match("_[a-z]", name)}
    assert used <= listed, "say in CONTRIBUTING.md why"
