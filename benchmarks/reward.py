"""Speed of reward models, as ratios of times measured in one run.

Scoring the two responses of each pair: batches by length (`SequenceReward`) against batches in the order of the data,
padded to their longest; and against one text at a time. Training: the kit's trainer with and without the LM term, and
grouped by length, against TRL's RewardTrainer on the same token ids, as it comes (gradient checkpointing) and without
checkpointing.

SmolLM2-135M-Instruct, LoRA r = 8 on q and v, `simulated`. Each way runs in a process of its own, one after the other.

    python benchmarks/reward.py --json benchmarks/reward.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RATIOS = {  # name -> (slower or compared with, against which)
    "score_in_order_vs_by_length": ("score_in_order", "score_by_length"),
    "score_one_by_one_vs_by_length": ("score_one_by_one", "score_by_length"),
    "train_ours_vs_trl": ("train_ours", "train_trl"),
    "train_ours_vs_trl_default": ("train_ours", "train_trl_default"),
    "train_ours_grouped_vs_trl": ("train_ours_grouped", "train_trl"),
    "train_ours_lm_vs_trl": ("train_ours_lm", "train_trl"),
}
WAYS = list(dict.fromkeys(way for pair in RATIOS.values() for way in pair))


def run(way: str, pairs: int, batch_size: int) -> None:
    import prlhf_kit as kit

    data = kit.data.load("simulated", pairs_per_user=-(-pairs // 8))["train"].shuffle(seed=0).select(range(pairs))
    print(json.dumps((score if way.startswith("score") else train)(way, data, batch_size)))


def score(way: str, data, batch_size: int) -> float:
    import torch

    import prlhf_kit as kit
    from prlhf_kit.models.embedded import EMBEDDED
    from prlhf_kit.models.reward_model import new_reward_model
    from prlhf_kit.models.rewards import SequenceReward
    from prlhf_kit.models.tokenize import encode, padded

    model, tokenizer = new_reward_model(EMBEDDED), kit.load_tokenizer()
    texts = {str(r): (p, r) for c in ("chosen", "rejected") for p, r in zip(data["prompt"], data[c], strict=True)}
    prompts, responses = zip(*texts.values(), strict=True)  # each once
    start = time.perf_counter()
    if way == "score_by_length":
        SequenceReward(model, tokenizer, batch_size=batch_size).score(prompts, responses)
        return time.perf_counter() - start
    size = 1 if way == "score_one_by_one" else batch_size
    ids_of = [encode(tokenizer, p, r)[0] for p, r in zip(prompts, responses, strict=True)]
    with torch.inference_mode():
        for first in range(0, len(ids_of), size):
            ids, mask = padded(ids_of[first : first + size], tokenizer.pad_token_id)
            model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    return time.perf_counter() - start


def train(way: str, data, batch_size: int) -> float:
    import torch
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    import prlhf_kit as kit
    from prlhf_kit.models.embedded import EMBEDDED
    from prlhf_kit.models.reward_model import new_reward_model
    from prlhf_kit.training.config import PersonalizedRewardConfig
    from prlhf_kit.training.reward import PersonalizedRewardTrainer

    model, tokenizer = new_reward_model(EMBEDDED, lm_head=way == "train_ours_lm"), kit.load_tokenizer()
    adapter = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["q_proj", "v_proj"], modules_to_save=["score"])
    gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as out:
        plain = {"output_dir": out, "report_to": "none", "num_train_epochs": 2, "learning_rate": 1e-4,
                 "max_length": 512, "per_device_train_batch_size": batch_size, "save_strategy": "no",
                 "logging_steps": 1000, "disable_tqdm": True, "use_cpu": not gpu, "bf16": gpu}  # fmt: skip
        start = time.perf_counter()
        if way.startswith("train_trl"):
            args = RewardConfig(gradient_checkpointing=way == "train_trl_default", dataloader_pin_memory=gpu, **plain)
            columns = data.select_columns(["prompt", "chosen", "rejected"])
            RewardTrainer(model, args, train_dataset=columns, processing_class=tokenizer, peft_config=adapter).train()
        else:
            if way == "train_ours_lm":
                plain["lm_loss_coeff"] = 0.1
            if way == "train_ours_grouped":
                plain["train_sampling_strategy"] = "group_by_length"
            args = PersonalizedRewardConfig(**plain)
            PersonalizedRewardTrainer(model, args, data, None, tokenizer, peft_config=adapter).train()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--json", type=Path, help="where to write the ratios")
    parser.add_argument("--run", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return run(args.run, args.pairs, args.batch_size)
    found: dict[str, list[float]] = {way: [] for way in args.ways}
    size = ["--pairs", str(args.pairs), "--batch-size", str(args.batch_size)]
    for repeat in range(args.repeats):
        for way in args.ways:
            line = [sys.executable, __file__, "--run", way, *size]
            env = os.environ | {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
            done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True, env=env)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{repeat + 1}: {way}: {found[way][-1]:.1f} s", flush=True)
    time_of = {way: statistics.median(runs) for way, runs in found.items()}
    ratios = {}
    for name, (above, below) in RATIOS.items():
        if above in time_of and below in time_of:
            ratios[name] = time_of[above] / time_of[below]
            print(f"{name}: {ratios[name]:.2f}")
    if args.json:
        machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
        n = {"pairs": args.pairs, "epochs": 2, "batch_size": args.batch_size, "repeats": args.repeats}
        args.json.write_text(json.dumps({"ratios": ratios, "machine": machine, "n": n}, indent=1))


if __name__ == "__main__":
    main()
