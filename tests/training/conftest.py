"""What several files of trainings use."""

from conftest import TARGETS
from peft import LoraConfig

import prlhf_kit as kit

SETTINGS = {
    "report_to": "none",
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "logging_steps": 1,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "save_strategy": "no",
}


def make_trainer(model, tokenizer, pairs, tmp_path, architecture="llama", evaluate=None, adapter=None, **config):
    args = kit.PersonalizedDPOConfig(str(tmp_path), **{**SETTINGS, "user_learning_rate": 1e-2, **config})
    adapter = adapter or LoraConfig(target_modules=TARGETS[architecture])
    return kit.PersonalizedDPOTrainer(model, args, pairs, evaluate, tokenizer, peft_config=adapter)
