"""Speed and memory of P-DPO: vanilla TRL DPO, the kit, and P-RLHF's scheme, on the same pairs in one run.

(a) `vanilla`: TRL's DPOTrainer without users, its reference computed once (`precompute_ref_log_probs`).
(b) `ours`: the kit at alpha = 0.5; `ours_alpha1` at alpha = 1; and `ours` with each prompt computed twice.
    `vanilla_long`, `ours_alpha1_long`: prompts of 400 tokens and responses of 40.
(c) `prlhf_scheme`: every pair twice, for its user and for the generic one, all as rows of one batch, and the
    reference computed in every step (arXiv 2402.05133; written from this description).

SmolLM2-135M-Instruct, LoRA r = 8 on q and v, 10 user tokens, two epochs, no checkpointing, the reference's time
included. Each way runs in a process of its own, one after the other, `--repeats` times; times are medians.

    python benchmarks/pdpo.py --json benchmarks/pdpo.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = {
    "vanilla": {},
    "ours": {},
    "ours_alpha1": {"alpha": 1.0},
    "prlhf_scheme": {"share_prompt": False, "alpha": 1.0, "precompute_ref_log_probs": False},
    "ours_prompt_twice": {"share_prompt": False},
    "vanilla_long": {},
    "ours_alpha1_long": {"alpha": 1.0},
}


def with_lengths(pairs, tokenizer, prompt: int, response: int):
    """`pairs` with their texts repeated and cut to so many tokens."""

    def text(message, n):
        ids = (tokenizer(message["content"] + " ", add_special_tokens=False)["input_ids"] * n)[:n]
        return [message | {"content": tokenizer.decode(ids)}]

    lengths = {"prompt": prompt, "chosen": response, "rejected": response}
    return pairs.map(lambda row: {name: text(row[name][-1], n) for name, n in lengths.items()})


def run(way: str, pairs: int, batch_size: int) -> None:
    import torch
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    import prlhf_kit as kit
    from prlhf_kit.training.pdpo import PersonalizedDPOTrainer  # noqa: F401  (imported before the clock starts)

    class TwiceCollator:
        """Every pair for its user and, as another row of the batch, for the generic user."""

        def __init__(self, collator):
            self.collator = collator

        def __call__(self, examples):
            return self.collator([*examples, *({**example, "user_row": 0} for example in examples)])

    class PRLHFScheme(kit.PersonalizedDPOTrainer):
        """At alpha = 0.5, the mean over the doubled batch is P-DPO's loss."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.data_collator = TwiceCollator(self.data_collator)

    data = kit.data.load("simulated", pairs_per_user=-(-pairs // 8))["train"].select(range(pairs))
    model, tokenizer = kit.load_model(device=None), kit.load_tokenizer()
    if way.endswith("_long"):
        data = with_lengths(data, tokenizer, 400, 40)
    adapter = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
    with tempfile.TemporaryDirectory() as out:
        options = {
            "output_dir": out, "report_to": "none", "num_train_epochs": 2, "per_device_train_batch_size": batch_size,
            "save_strategy": "no", "logging_steps": 1000, "gradient_checkpointing": False, "max_length": None,
            "precompute_ref_log_probs": True, "disable_tqdm": True, **WAYS[way],
        }  # fmt: skip
        start = time.perf_counter()
        if way.startswith("vanilla"):
            dpo = DPOConfig(bf16=torch.cuda.is_available(), use_cpu=not torch.cuda.is_available(), **options)
            pair_columns = data.select_columns(["prompt", "chosen", "rejected"])
            trainer = DPOTrainer(
                model, args=dpo, train_dataset=pair_columns, processing_class=tokenizer, peft_config=adapter
            )
        else:
            users = kit.UserIndex(sorted(set(data["user_id"])))
            kit.condition(model, kit.IndividualUserModel(len(users), model.get_input_embeddings(), 10))
            trainer_class = PRLHFScheme if way == "prlhf_scheme" else kit.PersonalizedDPOTrainer
            trainer = trainer_class(
                model, kit.PersonalizedDPOConfig(**options), data, None, tokenizer, users, peft_config=adapter
            )
        trainer.train()
        seconds = time.perf_counter() - start
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps([seconds, memory]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--json", type=Path, help="where to write the ratios")
    parser.add_argument("--run", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return run(args.run, args.pairs, args.batch_size)
    found: dict[str, list[list[float]]] = {way: [] for way in args.ways}
    size = ["--pairs", str(args.pairs), "--batch-size", str(args.batch_size)]
    for repeat in range(args.repeats):
        for way in args.ways:
            line = [sys.executable, __file__, "--run", way, *size]
            env = os.environ | {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
            done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True, env=env)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            seconds, memory = found[way][-1]
            print(
                f"{repeat + 1}: {way}: {2 * args.pairs / seconds:.2f} pairs/s, peak memory {memory:.2f} GiB", flush=True
            )
    time_of = {way: statistics.median(s for s, _ in runs) for way, runs in found.items()}
    memory_of = {way: max(m for _, m in runs) for way, runs in found.items()}
    pairs_of = {
        "ours_vs_vanilla": ("ours", "vanilla"),
        "ours_alpha1_vs_vanilla": ("ours_alpha1", "vanilla"),
        "ours_alpha1_long_vs_vanilla_long": ("ours_alpha1_long", "vanilla_long"),
        "prlhf_scheme_vs_ours": ("prlhf_scheme", "ours"),
        "ours_prompt_twice_vs_ours": ("ours_prompt_twice", "ours"),
    }
    ratios = {}
    for name, (above, below) in pairs_of.items():
        if above in found and below in found:
            ratios[name] = time_of[above] / time_of[below]
            ratios[f"{name}_memory"] = memory_of[above] / memory_of[below]
            print(f"{name}: time {ratios[name]:.2f}, peak memory {ratios[f'{name}_memory']:.2f}")
    if args.json:
        machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
        n = {"pairs": args.pairs, "epochs": 2, "batch_size": args.batch_size, "repeats": args.repeats}
        args.json.write_text(json.dumps({"ratios": ratios, "machine": machine, "n": n}, indent=1))


if __name__ == "__main__":
    main()
