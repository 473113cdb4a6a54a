"""How far the formulas of `cost.py` can be trusted: what a CPU can tell.

Trainings in pairs that differ in one thing: the ratio of their times on one core, beside the ratio of their FLOPs; the
bytes that are kept for the backward pass, beside the formula's; and what a decoder layer costs at least a pass, however
thin. The steps take turns, medians count; times are the process's own, so that others on the machine count little.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/cost.py --json benchmarks/measured/cost.json
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from cost import Model, activation_bytes, flops, main
from datasets import Dataset
from peft import LoraConfig
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import prlhf_kit as kit
from prlhf_kit.data.schema import record
from prlhf_kit.files import now, write_json

PLAIN = {"prompt": 64, "response": 64, "width": 384, "alpha": 1.0, "train": "lora", "share_prompt": True}
CHANGES: dict[str, dict] = {
    "response_twice": {"response": 128},
    "alpha_half": {"alpha": 0.5},
    "whole_model": {"train": "full"},
    "prompt_twice": {"prompt": 192, "share_prompt": False},  # against the same prompt, shared
    "wider": {"width": 768},
}


class Step:
    """A training step of P-DPO on two pairs, with a small Llama of random weights."""

    def __init__(
        self, prompt: int, response: int, width: int, alpha: float, train: str, share_prompt: bool, tokenizer=None
    ):  # fmt: skip
        tokenizer = tokenizer or kit.load_tokenizer()
        words = [f" yes{' yes' * (response - 2)}", f" no{' no' * (response - 2)}"]
        rows = [record(str(i), "ab"[i], " tea" * prompt, words[0], words[1]) for i in range(2)]
        pairs = Dataset.from_list(rows)
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            pairs = pairs.add_column(name, [-1.0, -1.0])
        torch.manual_seed(0)
        sizes = {"hidden_size": width, "intermediate_size": 8 * width // 3, "num_attention_heads": width // 64,
                 "num_key_value_heads": width // 128}  # fmt: skip
        config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=6, tie_word_embeddings=True, **sizes)
        model = LlamaForCausalLM(config)
        kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings().weight, 8))
        adapter_of = LoraConfig(r=8, target_modules=["q_proj", "v_proj"]) if train == "lora" else None
        settings = {"alpha": alpha, "share_prompt": share_prompt, "report_to": "none", "use_cpu": True,
                    "per_device_train_batch_size": 2, "max_length": None, "save_strategy": "no"}  # fmt: skip
        with tempfile.TemporaryDirectory() as out:
            args = kit.PersonalizedDPOConfig(output_dir=out, disable_tqdm=True, **settings)
            index = kit.UserIndex(["a", "b"])
            self.trainer = kit.PersonalizedDPOTrainer(
                model, args, pairs, None, tokenizer, index, peft_config=adapter_of
            )
        self.trainer.model.train()
        self.batch = next(iter(self.trainer.get_train_dataloader()))
        self.model, self.train, self.alpha, self.shared = Model.of(config), train, alpha, share_prompt
        self.prompt, self.response = (len(self.trainer.train_dataset[c][0]) for c in ("prompt_ids", "chosen_ids"))

    def loss(self):
        return self.trainer.compute_loss(self.trainer.model, dict(self.batch))

    def seconds(self) -> float:
        """Of forward and backward."""
        start = time.process_time()
        self.loss().backward()
        spent = time.process_time() - start
        self.trainer.model.zero_grad()
        return spent

    def flops(self) -> float:
        """What the formula says."""
        options = {
            "train": self.train,
            "shared": self.shared,
            "rank": 8 * (self.train == "lora"),
            "targets": ("q", "v"),
        }
        passes = 1 if self.alpha in (0, 1) else 2
        return 2 * passes * flops(self.model, self.prompt, self.response, 8, **options)

    def kept(self) -> tuple[int, float]:
        """Bytes that are kept for the backward pass: counted, and by the formula."""
        own = {p.untyped_storage().data_ptr() for p in self.trainer.model.parameters()}
        seen = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other takes its place
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss()
        counted = sum(count for place, (count, _) in seen.items() if place not in own)
        rows, length = (2, 8 + self.prompt + 2 * self.response) if self.shared else (4, 8 + self.prompt + self.response)
        passes = 1 if self.alpha in (0, 1) else 2
        return counted, passes * activation_bytes(self.model, rows, length, self.train, 4, ("q", "v"), 8)


def layer_seconds(repeats: int = 20) -> float:
    """Seconds a layer of one token's pass with a cache, where the model is so thin that only Python and calls cost."""
    size = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=32, **size)).eval()
    cache, spent = DynamicCache(config=model.config), []
    with torch.inference_mode():
        for _ in range(repeats):
            start = time.process_time()
            model(input_ids=torch.ones(1, 1, dtype=torch.long), past_key_values=cache)
            spent.append(time.process_time() - start)
    return statistics.median(spent) / 32


def cpu() -> str:
    """The processor's name, where Linux tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def check(repeats: int) -> dict[str, float]:
    """Ratios of times, measured and predicted, of kept bytes, and what a layer costs at least."""
    ratios = {}
    for name, change in CHANGES.items():
        below = PLAIN | {"prompt": change["prompt"]} if "prompt" in change else PLAIN
        steps = [Step(**below), Step(**(PLAIN | change))]
        spent = [[step.seconds() for step in steps] for _ in range(repeats + 1)][1:]  # one to warm up
        ratios[f"{name}_measured"] = statistics.median(above / plain for plain, above in spent)
        ratios[f"{name}_predicted"] = steps[1].flops() / steps[0].flops()
        ratios[f"{name}_kept_bytes_vs_formula"] = (kept := steps[1].kept())[0] / kept[1]
        texts = [f"{key} {ratios[f'{name}_{key}']:.2f}" for key in ("measured", "predicted", "kept_bytes_vs_formula")]
        rate = steps[1].flops() / statistics.median(above for _, above in spent) / 1e9
        print(f"{name}: {', '.join(texts)}; {rate:.0f} GFLOP/s", flush=True)
    return ratios


def measure(repeats: int, file: Path | None) -> None:
    """Print the check, and write it to `file`."""
    ratios = check(repeats)
    layer = layer_seconds()
    print(f"a layer costs at least {layer * 1e3:.2f} ms a pass")
    if file:
        machine = {"platform": platform.platform(), "cpu": cpu(), "cpus": os.cpu_count(),
                   "threads": torch.get_num_threads(), "python": platform.python_version(),
                   "torch": torch.__version__, "milliseconds_a_layer": layer * 1e3}  # fmt: skip
        n = {"pairs": 2, "repeats": repeats}
        write_json(file, {"measured": now(), "ratios": ratios, "machine": machine, "n": n})


if __name__ == "__main__":
    main()
