"""Speed of guided decoding, as ratios of times measured in one run.

Against transformers' own `generate` of the base (greedy, its KV cache), of the same number of new tokens:

- PAD with two models, the paper's form (the base, and a policy with its reference in one batch) and the released form;
- PAD with a shared base (policy, reference and base are one model with its adapter on and off);
- ARGS with k = 10 candidates;
- a job of many prompts: PAD as its authors published it, that is one prompt at a time, both models reading the whole
  text again for every token, until the limit, against batches with a cache;
- tokens a second in a batch of 8 against one at a time.

SmolLM2-135M-Instruct, whose end-of-text token is not let through, so that all write as much; `--model 1b` and `8b` are
randomly initialised Llamas of that size in bfloat16, for a GPU. Ways take turns, and medians count; the job is run
once, the authors' scheme on two of its prompts. `--growth` times PAD with a shared base at several lengths instead and
draws the times, `--memory` measures the peak of each way in a process of its own.

    python benchmarks/decoding.py --json benchmarks/decoding.json
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

import prlhf_kit as kit
from prlhf_kit.decoding.generate import ids_of
from prlhf_kit.decoding.readers import few_rows
from prlhf_kit.models.reward_model import pooled_by_mask
from prlhf_kit.models.rewards import SequenceReward

RATIOS = {  # name -> (ways whose times are added, divided by the added times of these)
    "pad_two_models_vs_sum": (["pad_two_models"], ["plain", "plain_policy"]),
    "pad_released_vs_sum": (["pad_released"], ["plain", "plain_policy"]),
    "pad_shared_vs_plain": (["pad_shared"], ["plain"]),
    "pad_shared_vs_plain_by_the_same_linear": (["pad_shared"], ["plain_few_rows"]),
    "args_vs_plain": (["args"], ["plain"]),
    "uncached_vs_ours": (["job_uncached"], ["job_ours"]),
}
ONCE = ("job_uncached", "job_ours")  # long
UNCACHED = 2  # prompts of the job that the authors' scheme answers; one at a time, so the rest would take as long each
WAYS = [*dict.fromkeys(way for above, below in RATIOS.values() for way in above + below), "pad_shared_batch_8"]
SIZES = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 49152, "tie_word_embeddings": True},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8},
}  # fmt: skip
QUESTION = (
    "Tell me about the history of the town of Delft, its churches and its canals, and about the painters who lived "
    "there. Please say which building I should see first when I come by train"
)


def random_model(size: str, device: str):
    """A Llama of one of `SIZES` with random weights, in bfloat16."""
    config = LlamaConfig(**{"vocab_size": 128256, "max_position_embeddings": 8192, "eos_token_id": 2, **SIZES[size]})
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


class Bench:
    """The models, loaded when a way asks for them, and the ways; all but the job answer `batch` prompts at once."""

    def __init__(self, size: str, tokens: int, prompts: int, batch: int = 1):
        self.size, self.tokens, self.prompts = size, tokens, prompts
        self.tokenizer = kit.load_tokenizer()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # three digits each, so that all have as many tokens
        texts = [f"{QUESTION} number {100 + i}." for i in range(max(batch, prompts))]
        self.job = [[{"role": "user", "content": text}] for text in texts]
        self.asked = self.job[:batch]
        self.length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        self.made: dict[str, object] = {}

    def model(self, name: str):
        """ "base", "policy" (another model), "personal" (with users and an adapter) or "reward"."""
        if name not in self.made:
            torch.manual_seed(0)
            self.made[name] = self._make(name)
        return self.made[name]

    def _make(self, name: str):
        if name == "reward":
            base = self.model("base")
            config = copy.deepcopy(base.config)
            config.num_labels = 1
            torch.set_default_dtype(base.dtype)
            try:
                with torch.device(self.device):  # an 8B model takes minutes to initialise on a CPU
                    model = pooled_by_mask(AutoModelForSequenceClassification.from_config(config)).eval()
            finally:
                torch.set_default_dtype(torch.float32)
            return SequenceReward(model, self.tokenizer)
        model = self._load()
        if name in ("base", "policy"):
            return model
        kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings(), 8))
        adapter = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], modules_to_save=["user_model"])
        return get_peft_model(model, adapter).eval()

    def _load(self):
        if self.size == "smollm2":
            return kit.load_model(dtype=torch.bfloat16 if self.device == "cuda" else torch.float32)
        return random_model(self.size, self.device)

    def decoder(self, base, guide) -> kit.GuidedDecoder:
        return kit.GuidedDecoder(base, self.tokenizer, guide, batch_size=64, **self.length)

    def run(self, way: str) -> float:
        """Seconds."""
        work = getattr(self, way)()
        if self.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if self.device == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - start
        return spent * self.prompts / min(UNCACHED, self.prompts) if way == "job_uncached" else spent

    def _plain(self, model):
        ids = torch.tensor([ids_of(self.tokenizer, prompt) for prompt in self.asked], device=self.device)
        options = {"attention_mask": torch.ones_like(ids), "pad_token_id": self.tokenizer.pad_token_id}
        return lambda: model.generate(ids, do_sample=False, **options, **self.length)

    def plain(self):
        return self._plain(self.model("base"))

    def plain_policy(self):
        return self._plain(self.model("policy"))

    def plain_few_rows(self):
        work = self.plain()

        def run():
            with few_rows(self.model("base"), len(self.asked)):
                work()

        return run

    def pad_two_models(self):
        guide = kit.PAD(self.model("policy"), tokenizer=self.tokenizer)
        decoder = self.decoder(self.model("base"), guide)
        return lambda: decoder.generate(self.asked, ["I like it short."] * len(self.asked))

    def pad_released(self):
        guide = kit.PAD(self.model("policy"), form="released", tokenizer=self.tokenizer)
        decoder = self.decoder(self.model("base"), guide)
        return lambda: decoder.generate(self.asked, ["I like it short."] * len(self.asked))

    def _shared(self, prompts):
        decoder = self.decoder(None, kit.PAD(self.model("personal"), kit.UserIndex(["ann", "bob"])))
        return lambda: decoder.generate(prompts, ["ann"] * len(prompts))

    def pad_shared(self):
        return self._shared(self.asked)

    def pad_shared_batch_8(self):
        return self._shared(self.job[:8])

    def args(self):
        decoder = self.decoder(self.model("base"), kit.ARGS(self.model("reward")))
        return lambda: decoder.generate(self.asked)

    def job_ours(self):
        guide = kit.PAD(self.model("policy"), form="released", tokenizer=self.tokenizer)
        decoder = self.decoder(self.model("base"), guide)
        return lambda: decoder.generate(self.job[: self.prompts], ["I like it short."] * self.prompts)

    def job_uncached(self):
        """The authors' scheme, from its description: nothing is kept from token to token, prompts come one by one."""
        base, policy = self.model("base"), self.model("policy")
        guide = kit.PAD(policy, form="released", tokenizer=self.tokenizer)

        @torch.inference_mode()
        def run():
            for prompt in self.job[: min(UNCACHED, self.prompts)]:
                told = guide.base_prompt(prompt, "I like it short.")
                text = torch.tensor([ids_of(self.tokenizer, told)], device=self.device)
                for _ in range(self.tokens):
                    top = base(text, use_cache=False).logits[0, -1].float().topk(10)
                    own, policys = (
                        scores.log_softmax(-1)
                        for scores in (top.values, policy(text, use_cache=False).logits[0, -1, top.indices].float())
                    )
                    score = own + (policys - own)
                    text = torch.cat([text, top.indices[score.argmax()].view(1, 1)], 1)

        return run


def growth(bench: Bench, lengths: list[int], repeats: int, figure: Path | None) -> dict[int, float]:
    """Seconds by new tokens, of PAD with a shared base."""
    found = {}
    for n in lengths:
        bench.length = {"max_new_tokens": n, "min_new_tokens": n}
        found[n] = statistics.median(bench.run("pad_shared") for _ in range(repeats))
        print(f"{n} new tokens: {found[n]:.2f} s, {1000 * found[n] / n:.1f} ms a token", flush=True)
    if figure:
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(5, 3.5), layout="constrained")
        ax = canvas.subplots()
        ax.plot(list(found), list(found.values()), "o-", label="PAD, shared base, batch 1")
        slope = found[lengths[0]] / lengths[0]
        ax.plot(lengths, [slope * n for n in lengths], "--", color="0.5", label=f"{1000 * slope:.0f} ms a token")
        ax.set(xlabel="new tokens", ylabel="seconds", title=f"{bench.size} on {bench.device}", ylim=0)
        ax.legend()
        canvas.savefig(figure, dpi=150)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["smollm2", *SIZES], default="smollm2")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens")
    parser.add_argument("--prompts", type=int, default=16, help="of the job")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--growth", type=int, nargs="+", help="time these numbers of new tokens instead")
    parser.add_argument("--figure", type=Path, help="where to draw the growth")
    parser.add_argument("--memory", action="store_true", help="measure the peak memory of each way instead")
    parser.add_argument("--json", type=Path, help="where to write the ratios")
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    bench = Bench(args.model, args.tokens, args.prompts)
    if args.growth:
        growth(bench, args.growth, args.repeats, args.figure)
        return
    if args.peak_of:
        bench.run(args.peak_of)
        gpu = bench.device == "cuda"
        peak = torch.cuda.max_memory_allocated() if gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(peak))
        return
    if args.memory:
        peaks = {}
        for way in dict.fromkeys(["plain", *args.ways]):
            line = [sys.executable, __file__, "--peak-of", way, "--model", args.model, "--tokens", str(args.tokens)]
            done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
            peaks[way] = json.loads(done.stdout.splitlines()[-1])
            print(f"{way}: peak {peaks[way] / 2**20:.0f} MiB, {peaks[way] / peaks['plain']:.2f} x plain")
        return
    times: dict[str, list[float]] = {way: [] for way in args.ways}
    for way in args.ways:
        if way not in ONCE:
            bench.run(way)  # the first run of each does not count
    for repeat in range(args.repeats):
        for way in args.ways:
            if way not in ONCE or repeat == 0:
                times[way].append(bench.run(way))
                print(f"{repeat + 1}: {way}: {times[way][-1]:.2f} s", flush=True)
    time_of = {way: statistics.median(runs) for way, runs in times.items()}
    ratios = {}
    for name, (above, below) in RATIOS.items():
        if {*above, *below} <= set(time_of):
            ratios[name] = sum(time_of[way] for way in above) / sum(time_of[way] for way in below)
    if {"pad_shared", "pad_shared_batch_8"} <= set(time_of):
        ratios["tokens_a_second_batch_8_vs_1"] = 8 * time_of["pad_shared"] / time_of["pad_shared_batch_8"]
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    if args.json:
        gpu = torch.cuda.get_device_name() if bench.device == "cuda" else None
        machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(),
                   "gpu": gpu, "python": platform.python_version(), "torch": torch.__version__}  # fmt: skip
        length = len(ids_of(bench.tokenizer, bench.asked[0]))
        n = {"model": args.model, "new_tokens": args.tokens, "prompt_tokens": length, "job": args.prompts, "top_k": 10,
             "repeats": args.repeats, "repeats_of_the_job": 1, "prompts_uncached": UNCACHED}  # fmt: skip
        args.json.write_text(json.dumps({"ratios": ratios, "machine": machine, "n": n}, indent=1))


if __name__ == "__main__":
    main()
