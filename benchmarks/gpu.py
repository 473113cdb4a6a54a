"""What the kit does on a GPU, measured by one command in a few minutes.

Parts, best first; each has its share of the time, and what is left goes to what was not reached, then to more seeds:

1. `learn`: P-DPO (individual and cluster users) and its controls with SmolLM2-135M in bfloat16 on `dsp`,
   `hh_relabelled` (folders of `prlhf data prepare` in `--data`) and `simulated`: accuracy on held-out pairs.
2. `decode`: PAD and ARGS against `generate`, 128 new tokens, batches of 1, 8 and 64, and the scheme of PAD's authors
   (no cache) on a few tokens; SmolLM2, and random Llamas of the shapes of 1B and 8B.
3. `train`: a step of P-DPO against one of TRL's DPOTrainer at these shapes, LoRA and full, prompts of about 512 and 64
   tokens with responses of 64.
4. `notebooks`: 01, 03, 04 and 05 by papermill on a small setting.

Results are written after every measurement: started again with the same `--json`, it goes on with what is not there.
What fails (out of memory, over its limit, a dead process) is reported, and the next begins. `--tiny` runs every part in
miniature, on a CPU too. Times are medians of at least five after a warm-up, with the GPU synchronized. What the
measuring processes print is in `<json>.work/log.txt`.

    python benchmarks/gpu.py --minutes 9 --data data --json benchmarks/measured/gpu.json
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from datasets import Dataset, load_from_disk
from filelock import FileLock

import prlhf_kit as kit
from prlhf_kit.files import git_state, versions, write_json
from prlhf_kit.models.embedded import EMBEDDED

# what each part needs besides is imported there: it takes many seconds
sys.path.append(str(Path(__file__).parent))  # where a spawned process finds decoding.py

ROOT = Path(__file__).parent.parent
METHODS = ("individual", "cluster", "dpo", "pooled", "random_users", "dpo_text")
DATASETS = ("simulated", "dsp", "hh_relabelled")
CUDA = torch.cuda.is_available()


@dataclass
class Setting:
    """What is measured where: the real thing, or its miniature."""

    work: Path
    data: Path
    tiny: bool

    def __post_init__(self):
        self.repeats = 1 if self.tiny else 5
        self.model = str(self.work / "tiny_model") if self.tiny else EMBEDDED


@dataclass
class Job:
    """One measurement: `function(setting, **options)` gives a dict for the JSON, within `limit` seconds."""

    function: str
    limit: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "/".join([self.function, *map(str, self.options.values())])


def synchronized() -> float:
    """The time when all that the GPU was given is done."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gib() -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if CUDA else None


def fresh_memory() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# 1. Learning ---------------------------------------------------------------------------------------------------------


def pairs_of(setting: Setting, dataset: str, seed: int) -> dict[str, Dataset]:
    """Training and held-out pairs of seen users. Only `simulated` is drawn by the seed."""
    if dataset == "simulated":
        sizes = {"pairs_per_user": 4, "test_pairs_per_user": 3} if setting.tiny else {"pairs_per_user": 80}
        data = kit.data.load("simulated", seed=seed, **sizes)
    else:
        data = kit.data.load(setting.data / dataset)
    few = 8 if setting.tiny else None
    return {split: data[split].select(range(min(few or len(data[split]), len(data[split])))) for split in SPLITS}


SPLITS = ("train", "test_seen")


def learn(setting: Setting, dataset: str, method: str, seed: int) -> dict[str, Any]:
    """Train one method on all training pairs and rank the held-out ones by DPO's implicit reward."""
    from prlhf_kit.evaluation.accuracy import ranked_right
    from prlhf_kit.models.logprobs import REFERENCE, save_with_reference

    tokenizer = kit.load_tokenizer(setting.model)
    folder = setting.work / f"{dataset}-{seed}"
    with FileLock(f"{folder}.lock"):  # methods run side by side and share one reference
        base = kit.load_model(setting.model, torch.bfloat16 if CUDA else torch.float32)
        for split, pairs in pairs_of(setting, dataset, seed).items():
            save_with_reference(pairs, base, tokenizer, folder / split, batch_size=32)
        del base
    from prlhf_kit.training.controls import Control
    from prlhf_kit.training.recipe import Recipe, build_trainer

    users = method if method in ("individual", "cluster") else "individual"
    recipe = Recipe(
        model=setting.model,
        pairs=str(folder / "train"),
        out=str(setting.work / f"{dataset}-{seed}-{method}"),
        method="pdpo" if method == users else method,
        user_model=users,
        user_model_options={"num_tokens": 8, "seed": seed},
        adapter={"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        settings={
            "alpha": 0.5,
            "learning_rate": 2e-4,
            "user_learning_rate": 1e-2,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "num_train_epochs": 3 if dataset == "simulated" and not setting.tiny else 1,
            "per_device_train_batch_size": 16,
            "train_sampling_strategy": "group_by_length",
            "max_length": 1100,
            "save_strategy": "no",
            "logging_steps": 5,
            "report_to": "none",
            "seed": seed,
        },
    )
    trainer = build_trainer(recipe)
    start = synchronized()
    done = trainer.train()
    seconds = synchronized() - start
    label = "DPO" if method in ("dpo", "dpo_text") else "P-DPO"
    index = trainer.user_index if label == "P-DPO" else None
    held_out = load_from_disk(folder / "test_seen")
    scores = Control(label, trainer.model.eval(), index, method == "dpo_text").score(tokenizer, held_out, 32)
    gains = [
        scores[f"{side}_logp"] - held_out[column]
        for side, column in zip(("chosen", "rejected"), REFERENCE, strict=True)
    ]
    right = ranked_right(*gains)
    found = interval_of(right, held_out)
    seen = done.global_step * recipe.settings["per_device_train_batch_size"]
    return found | {
        "pairs_a_second": seen / seconds,
        "train_seconds": seconds,
        "train_pairs": len(trainer.train_dataset),
        "loss_last": [row["loss"] for row in trainer.state.log_history if "loss" in row][-3:],
        "peak_gib": peak_gib(),
        "right": "".join("0h1"[int(2 * one)] for one in right),  # h: a tie. One a held-out pair, in their order
    }


def interval_of(values, pairs: Dataset) -> dict[str, Any]:
    """Mean with its 95% interval by user and prompt."""
    from prlhf_kit.data.chat import prompt_text
    from prlhf_kit.evaluation.statistics import crossed_interval

    i = crossed_interval(values, pairs["user_id"], [prompt_text(prompt) for prompt in pairs["prompt"]])
    return {"mean": i.estimate, "low": i.low, "high": i.high, "n": i.n, "users": len(set(pairs["user_id"]))}


def learning_tables(setting: Setting, parts: dict[str, Any]) -> list[dict[str, Any]]:
    """For each dataset, seed and method the accuracy, and paired with them its difference from vanilla DPO."""
    from prlhf_kit.evaluation.accuracy import USER_LENGTH, length_rules

    rows = []
    ran = [(name.split("/")[1:], part) for name, part in parts.items() if name.startswith("learn/")]
    ran = [(key, part) for key, part in ran if part["status"] == "done"]
    rights = {tuple(key): [{"0": 0.0, "h": 0.5, "1": 1.0}[c] for c in part["right"]] for key, part in ran}
    for dataset, seed in dict.fromkeys((key[0], key[2]) for key, _ in ran):
        data = pairs_of(setting, dataset, int(seed))
        held_out = data["test_seen"]
        rule = length_rules(data["train"], held_out)[USER_LENGTH]
        rows.append(
            {"dataset": dataset, "seed": int(seed), "method": "length rule per user"} | interval_of(rule, held_out)
        )
        vanilla = rights.get((dataset, "dpo", seed))
        for method in METHODS:
            right = rights.get((dataset, method, seed))
            if right is None:
                continue
            row = {"dataset": dataset, "seed": int(seed), "method": method} | interval_of(right, held_out)
            if vanilla is not None and method != "dpo":
                gain = interval_of([a - b for a, b in zip(right, vanilla, strict=True)], held_out)
                row |= {"over_dpo": gain["mean"], "over_dpo_low": gain["low"], "over_dpo_high": gain["high"]}
            rows.append(row)
    return rows


# 2. Decoding ---------------------------------------------------------------------------------------------------------


def decode(setting: Setting, size: str, batch: int) -> dict[str, Any]:
    """Seconds of guided decoding beside `generate`, ways in turn; of the scheme without a cache, seconds a token."""
    from decoding import Bench

    tokens, uncached = (8, 2) if setting.tiny else (128, 4)
    bench = Bench(size, tokens, prompts=1, batch=batch)
    ways = ["plain", "pad_shared", "pad_two_models", "args"]
    seconds: dict[str, list[float]] = {}
    memory, errors = {}, {}
    for repeat in range(setting.repeats + 1):
        for way in [way for way in ways if way not in errors]:
            fresh_memory()
            before = torch.cuda.memory_allocated() / 2**30 if CUDA else 0
            try:
                spent = bench.run(way)
            except torch.OutOfMemoryError as error:
                errors[way] = str(error).splitlines()[0]
                continue
            if repeat:  # the first loads models and warms up
                seconds.setdefault(way, []).append(spent)
                memory[way] = peak_gib() and peak_gib() - before
    if batch == 1 and not errors:
        bench.length = {"max_new_tokens": uncached, "min_new_tokens": uncached}
        bench.tokens = uncached
        bench.run("job_uncached")
        seconds["uncached"] = [bench.run("job_uncached") * tokens / uncached for _ in range(setting.repeats)]
    medians = {way: statistics.median(all_of) for way, all_of in seconds.items()}
    ratios = {f"{way}_vs_plain": medians[way] / medians["plain"] for way in medians if way != "plain"}
    if {"uncached", "pad_two_models"} <= set(medians):
        ratios["uncached_vs_two_models"] = medians["uncached"] / medians["pad_two_models"]
    return {
        "seconds": medians,
        "tokens_a_second": {way: batch * tokens / s for way, s in medians.items()},
        "gib_beyond_weights": memory,
        "ratios": ratios,
        "new_tokens": tokens,
        "errors": errors,
    }


# 3. Training ---------------------------------------------------------------------------------------------------------


def train(setting: Setting, size: str, weights: str, prompt_tokens: int) -> dict[str, Any]:
    """A step of vanilla DPO by TRL, and of P-DPO with and without prompts shared by both responses."""
    from prlhf_kit.data.schema import record

    ways = {
        "vanilla": None,
        "alpha_1": {"alpha": 1.0},
        "alpha_1_prompt_twice": {"alpha": 1.0, "share_prompt": False},
        "alpha_0.5": {"alpha": 0.5},
    }
    batch = 2 if setting.tiny else 4 if size == "8b" and prompt_tokens > 64 else 8
    steps = 2 if setting.tiny else 8
    response = 8 if setting.tiny else 64
    pairs = Dataset.from_list(
        [
            record(f"p{i}", f"u{i % 4}", "tea " * (prompt_tokens - 10), "yes " * response, "no " * response)
            for i in range(batch * steps)
        ]
    )
    found, memory, errors = {}, {}, {}
    for way, options in ways.items():
        fresh_memory()
        try:
            times = time_steps(setting, size, weights, pairs, batch, options)
        except torch.OutOfMemoryError as error:
            errors[way] = str(error).splitlines()[0]
            continue
        # two steps warm up
        found[way], memory[way] = statistics.median(times[2:] or times), peak_gib()
    ratios = {
        f"{way}_vs_vanilla": found[way] / found["vanilla"] for way in found if "vanilla" in found and way != "vanilla"
    }
    return {
        "seconds_a_step": found,
        "pairs_a_second": {way: batch / s for way, s in found.items()},
        "peak_gib": memory,
        "ratios": ratios,
        "batch": batch,
        "steps": max(steps - 2, 1),
        "errors": errors,
    }


def time_steps(setting: Setting, size: str, weights: str, pairs: Dataset, batch: int, options: dict | None):
    """Seconds of each optimiser step; `options` of P-DPO, None: TRL's DPOTrainer."""
    from decoding import random_model
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class StepTimes(TrainerCallback):
        def __init__(self):
            self.seconds: list[float] = []

        def on_step_begin(self, *_, **__):
            self.start = synchronized()

        def on_step_end(self, *_, **__):
            self.seconds.append(synchronized() - self.start)

    model = random_model(size, "cuda" if CUDA else "cpu")
    tokenizer = kit.load_tokenizer(setting.model)
    adapter = LoraConfig(r=8, target_modules="all-linear") if weights == "lora" else None
    shared = {
        "output_dir": str(setting.work / "steps"),
        "per_device_train_batch_size": batch,
        "num_train_epochs": 1,
        "max_length": None,
        "precompute_ref_log_probs": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "use_cpu": not CUDA,
        "bf16": CUDA,
    }
    if options is None:
        columns = pairs.select_columns(["prompt", "chosen", "rejected"])
        trainer = DPOTrainer(
            model, None, DPOConfig(**shared), train_dataset=columns, processing_class=tokenizer, peft_config=adapter
        )
    else:
        users = kit.UserIndex(sorted(set(pairs["user_id"])))
        kit.condition(model, kit.IndividualUserModel(len(users), model.get_input_embeddings().weight, 8))
        args = kit.PersonalizedDPOConfig(**shared, **options)
        trainer = kit.PersonalizedDPOTrainer(model, args, pairs, None, tokenizer, users, adapter)
    times = StepTimes()
    trainer.add_callback(times)
    trainer.train()
    return times.seconds


# 4. Notebooks --------------------------------------------------------------------------------------------------------

SMALL = {
    "01_data_preparation": {"dataset_options": {"pairs_per_user": 20, "test_pairs_per_user": 10}},
    "03_pdpo_training": {"batch_size": 16},
    "04_pad_decoding": {"n_prompts": 1, "max_new_tokens": 24, "persrm_pairs": 48, "weights": [0.0, 1.0], "top_ks": [2]},
    "05_evaluation": {"n_prompts": 2, "max_new_tokens": 24, "policy_pairs": 8, "policy_weights": [0.0, 1.0]},
}
TINY = {
    "01_data_preparation": {
        "dataset_options": {"pairs_per_user": 4, "test_pairs_per_user": 3, "adapt_pairs_per_user": 1},
        "max_prompt_tokens": 128,
    },
    "03_pdpo_training": {"save_steps": 100},
}


def notebooks(setting: Setting) -> dict[str, Any]:
    """Seconds of each notebook by papermill."""
    from prlhf_kit.runs.notebook import run_notebook

    seconds = {}
    for name, options in (TINY if setting.tiny else SMALL).items():
        model = {"model": setting.model}
        done = run_notebook(ROOT / "notebooks" / f"{name}.ipynb", setting.work / "run", options | model)
        if done["status"] != "completed":
            raise RuntimeError(f"notebook {name}: {done['error']}")
        seconds[name] = done["seconds"]
    return {"seconds": seconds}


# The order of work ---------------------------------------------------------------------------------------------------


def learning(tiny: bool, seed: int) -> list[Job]:
    datasets, methods = (DATASETS[:1], ("individual", "dpo")) if tiny else (DATASETS, METHODS)
    return [Job("learn", 150, {"dataset": d, "method": m, "seed": seed}) for d in datasets for m in methods]


def plan(tiny: bool) -> list[tuple[float, int, list[Job]]]:
    """Share of the time, jobs side by side, and the jobs of each part, best first."""
    if tiny:  # nothing is timed for its own sake, so all goes side by side
        jobs = [Job("notebooks", 300), *learning(tiny, 0), Job("decode", 150, {"size": "tiny", "batch": 1})]
        return [(1.0, 2, [*jobs, Job("train", 150, {"size": "tiny", "weights": "lora", "prompt_tokens": 32})])]
    sizes = [("1b", 8), ("8b", 1), ("smollm2", 1), ("1b", 1), ("8b", 8), ("1b", 64), ("smollm2", 8), ("8b", 64)]
    decoded = [Job("decode", 150, {"size": size, "batch": batch}) for size, batch in [*sizes, ("smollm2", 64)]]
    trained = [("1b", "lora", 512), ("8b", "lora", 512), ("1b", "lora", 64), ("1b", "full", 512)]
    trained += [("8b", "lora", 64), ("8b", "full", 512), ("1b", "full", 64), ("8b", "full", 64)]
    steps = [Job("train", 90, {"size": s, "weights": w, "prompt_tokens": p}) for s, w, p in trained]
    # a small model leaves most of a GPU idle, so trainings of part 1 run side by side
    return [(0.45, 3, learning(tiny, 0)), (0.2, 1, decoded), (0.2, 1, steps), (0.15, 1, [Job("notebooks", 200)])]


def serve(connection, setting: Setting) -> None:
    """In a process of its own: does the jobs that come in, until none comes."""
    log = os.open(setting.work / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 4))
    while job := connection.recv():
        try:
            fresh_memory()
            connection.send(("done", globals()[job.function](setting, **job.options)))
        except Exception as error:  # whatever it is, it is reported, and this process ends with it
            traceback.print_exc()
            connection.send(("failed", {"error": f"{type(error).__name__}: {error}"[-1500:]}))


class Worker:
    """A process that does one job after the other. Where one fails, the next gets a new process."""

    def __init__(self, setting: Setting):
        context = multiprocessing.get_context("spawn")  # CUDA does not outlive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, setting), daemon=False)
        self.process.start()
        theirs.close()

    def do(self, job: Job, limit: float) -> tuple[str, dict[str, Any]]:
        self.connection.send(job)
        try:
            if self.connection.poll(limit):
                return self.connection.recv()
            return "stopped", {"error": f"not done in {limit:.0f} s"}
        except EOFError:
            self.process.join(5)
            return "failed", {"error": f"its process died with exit code {self.process.exitcode}"}

    def close(self, patience: float = 0) -> None:
        if patience and self.process.is_alive():
            self.connection.send(None)
            self.process.join(patience)
        self.process.kill()
        self.process.join()


def run_jobs(jobs: list[Job], side_by_side: int, until: float, end: float, setting: Setting, keep: Callable) -> None:
    """Begin the jobs in order, none after `until`; what still runs at `end` is stopped."""
    left = deque(jobs)

    def work():
        worker = None
        while left and time.monotonic() < until:
            try:
                job = left.popleft()
            except IndexError:
                break
            worker = worker or Worker(setting)
            start = time.monotonic()
            status, found = worker.do(job, min(job.limit, end - start))
            keep(job, {"status": status, "seconds_in_all": round(time.monotonic() - start, 1)} | found)
            if status != "done":
                worker.close()
                worker = None
        if worker:
            worker.close(patience=5)

    threads = [threading.Thread(target=work) for _ in range(min(side_by_side, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def machine() -> dict[str, Any]:
    found = {"platform": platform.platform(), "cpus": os.cpu_count(), "versions": versions()}
    if CUDA:
        gpu = torch.cuda.get_device_properties(0)
        found |= {"gpu": gpu.name, "gpu_gib": round(gpu.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        driver = Path("/proc/driver/nvidia/version")
        found["driver"] = driver.read_text().splitlines()[0] if driver.exists() else None
    return found


def commit() -> Any:
    """Of the checkout, or of the bundle that this came in."""
    bundle = ROOT / "bundle.json"
    return json.loads(bundle.read_text())["commit"] if bundle.exists() else git_state()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="all of it ends after so long")
    parser.add_argument(
        "--json", type=Path, default=Path("gpu.json"), help="where results go, and what is done is read from"
    )
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="where dsp and hh_relabelled lie, prepared")
    parser.add_argument("--parts", nargs="+", help="only these: learn, decode, train, notebooks")
    parser.add_argument("--tiny", action="store_true", help="every part in miniature, to see that it runs")
    args = parser.parse_args()
    begun = time.monotonic()
    setting = Setting(args.json.with_suffix(".work").resolve(), args.data.resolve(), args.tiny)
    setting.work.mkdir(parents=True, exist_ok=True)
    where = {"tiny": args.tiny, "machine": machine()}
    results: dict[str, Any] = {"ratios": {}, "n": {}, "commit": commit(), **where, "parts": {}}
    if args.json.exists():
        old = json.loads(args.json.read_text())
        if {key: old.get(key) for key in where} != where:
            print(f"{args.json} was measured elsewhere, or by other versions. Choose another --json.", file=sys.stderr)
            return 2
        results = old
    if args.tiny and not Path(setting.model).exists():
        from decoding import random_model

        random_model("tiny", "cpu").float().save_pretrained(setting.model)
        kit.load_tokenizer().save_pretrained(setting.model)
    lock = threading.Lock()

    def keep(job: Job, found: dict[str, Any]) -> None:
        with lock:
            results["parts"][job.name] = found
            for name, ratio in found.get("ratios", {}).items():
                results["ratios"][f"{job.name}/{name}"] = ratio
            write_json(args.json, results)
        shown = found.get("error") or json.dumps(
            {k: found[k] for k in ("mean", "low", "high", "ratios", "seconds") if k in found}
        )
        print(f"{time.monotonic() - begun:4.0f} s  {job.name}: {found['status']}. {shown}", flush=True)

    def to_do(jobs: list[Job]) -> list[Job]:
        ended = {name for name, part in results["parts"].items() if part["status"] == "done"}
        chosen = [job for job in jobs if not args.parts or job.function in args.parts]
        return [job for job in chosen if job.name not in ended and job.name not in tried]

    end = begun + 60 * args.minutes
    tried: set[str] = set()
    until = begun
    parts = plan(args.tiny)
    for share, side_by_side, jobs in parts:
        until += share * 60 * args.minutes
        run_jobs(to_do(jobs), side_by_side, until, end, setting, keep)
    tried = {name for name, part in results["parts"].items() if part["status"] != "done"}
    for _, side_by_side, jobs in parts:  # what was not reached
        run_jobs(to_do(jobs), side_by_side, end - 15, end, setting, keep)
    for seed in [] if args.tiny else range(1, 10):
        run_jobs(to_do(learning(args.tiny, seed)), parts[0][1], end - 15, end, setting, keep)
    results["learning"] = learning_tables(setting, results["parts"])
    results["n"] = {
        name: {k: part[k] for k in ("n", "batch", "steps") if k in part} for name, part in results["parts"].items()
    }
    write_json(args.json, results)
    for row in results["learning"]:
        print("  ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    wrong = {name: part["error"] for name, part in results["parts"].items() if part["status"] != "done"}
    print(f"{len(results['parts']) - len(wrong)} done, {len(wrong)} not: {', '.join(wrong) or '-'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
