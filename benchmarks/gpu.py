"""What the kit does on a GPU, measured by one command in a few minutes.

Parts, best first; each has its share of the time, and what is left goes to what was not reached, then to more seeds:

0. `smoke`: one step and one answer of a toy model each, to see early what does not work on this GPU.
1. `learn`: P-DPO (individual and cluster users) and its controls with SmolLM2-135M in bfloat16 on `dsp`,
   `hh_relabelled` (folders of `prlhf data prepare` in `--data`) and `simulated`: accuracy on held-out pairs.
2. `decode`: PAD and ARGS against `generate`, batches of 1, 8 and 64, and the scheme of PAD's authors (no cache) on a
   few tokens; SmolLM2, and random Llamas of the shapes of 1B and 8B.
3. `train`: a step of P-DPO against one of TRL's DPOTrainer at these shapes, LoRA and full (all in bfloat16), prompts of
   about 512 and 64 tokens with responses of 64.
4. `notebooks`: 01, 03, 04 and 05 by papermill on a small setting.

Results are written after every measurement: started again with the same `--json`, it goes on with what is not there.
What fails (out of memory, over its limit, a dead process) is reported, and the next begins. `--tiny` runs every part in
miniature, on a CPU too. Times are medians after a warm-up, of five repeats where there is time for them (`repeats`),
with the GPU synchronized. What the measuring processes print is in `log.txt` in `--work`.

    python benchmarks/gpu.py --minutes 9 --data data --json benchmarks/measured/gpu.json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import tempfile
import threading
import time
import traceback
import uuid
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
METHODS = ("individual", "dpo", "pooled", "random_users", "cluster", "dpo_text")
DATASETS = ("simulated", "dsp", "hh_relabelled")
SPLITS = ("train", "test_seen")
CUDA = torch.cuda.is_available()
DTYPE = torch.bfloat16 if CUDA else torch.float32


@dataclass
class Setting:
    """What is measured where: the real thing, or its miniature."""

    work: Path
    data: Path
    tiny: bool

    def __post_init__(self):
        self.repeats = 1 if self.tiny else 5
        self.model = str(self.work / "tiny_model") if self.tiny else EMBEDDED

    def pairs_folder(self, dataset: str, seed: int) -> Path:
        """Only `simulated` is drawn by the seed."""
        return self.work / (f"{dataset}-{seed}" if dataset == "simulated" else dataset)


@dataclass
class Job:
    """One measurement: `function(setting, until, **options)` gives a dict for the JSON, within `limit` seconds."""

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
    return time.monotonic()


def peak_gib() -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if CUDA else None


def fresh_memory() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def step_times(until: float):
    """A callback with the seconds of each optimiser step, which ends the training at the time `until`."""
    from transformers import TrainerCallback

    class StepTimes(TrainerCallback):
        def __init__(self):
            self.seconds: list[float] = []

        def on_step_begin(self, *_, **__):
            self.start = synchronized()

        def on_step_end(self, args, state, control, **__):
            now = synchronized()
            self.seconds.append(now - self.start)
            control.should_training_stop |= now > until

    return StepTimes()


# 1. Learning ---------------------------------------------------------------------------------------------------------


def pairs_of(setting: Setting, dataset: str, seed: int) -> dict[str, Dataset]:
    """Training and held-out pairs of seen users."""
    if dataset == "simulated":
        sizes = {"pairs_per_user": 4, "test_pairs_per_user": 3} if setting.tiny else {"pairs_per_user": 80}
        data = kit.data.load("simulated", seed=seed, **sizes)
    else:
        data = kit.data.load(setting.data / dataset)
    most = 8 if setting.tiny else 10**9
    return {split: data[split].select(range(min(most, len(data[split])))) for split in SPLITS}


def reference(setting: Setting, until: float, dataset: str, seed: int) -> dict[str, Any]:
    """The reference's log-probs of all pairs, which the trainings share; and how far bfloat16 rounds them."""
    from prlhf_kit.models.logprobs import REFERENCE, save_with_reference, score_pairs

    tokenizer = kit.load_tokenizer(setting.model)
    base = kit.load_model(setting.model, DTYPE)
    start = synchronized()
    with FileLock(f"{setting.pairs_folder(dataset, seed)}.lock"):  # a training that needs it may make it, too
        for split, pairs in pairs_of(setting, dataset, seed).items():
            save_with_reference(pairs, base, tokenizer, setting.pairs_folder(dataset, seed) / split, batch_size=32)
    spent = synchronized() - start
    some = load_from_disk(setting.pairs_folder(dataset, seed) / "test_seen")
    some = some.select(range(min(100, len(some))))
    exact = score_pairs(base.float(), tokenizer, some, batch_size=32)
    rounded = [a - b for a, b in zip(some[REFERENCE[0]], some[REFERENCE[1]], strict=True)]
    off = (exact.chosen_logp - exact.rejected_logp - rounded).abs()
    return {"seconds": spent, "margin_error_nats": {"mean": off.mean(), "max": off.max(), "n": len(off)}}


def learn(setting: Setting, until: float, dataset: str, method: str, seed: int) -> dict[str, Any]:
    """Train one method on all training pairs and rank the held-out ones by DPO's implicit reward."""
    from prlhf_kit.evaluation.accuracy import ranked_right
    from prlhf_kit.models.logprobs import REFERENCE
    from prlhf_kit.training.controls import LABELS, Control
    from prlhf_kit.training.recipe import Recipe, build_trainer

    start = time.monotonic()
    tokenizer = kit.load_tokenizer(setting.model)
    folder = setting.pairs_folder(dataset, seed)
    if not (folder / "test_seen").exists():
        reference(setting, until, dataset, seed)
    users = method if method in ("individual", "cluster") else "individual"
    batch = 16 if dataset == "simulated" else 32
    recipe = Recipe(
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
            "per_device_train_batch_size": batch,
            "max_length": 1100,
            "save_strategy": "no",
            "logging_steps": 5,
            "report_to": "none",
            "seed": seed,
        },
    )
    out = setting.work / f"{dataset}-{seed}-{method}"
    trainer = build_trainer(recipe, setting.model, load_from_disk(folder / "train"), out)
    # a third of what is left is kept for the held-out pairs
    times = step_times(until - (until - time.monotonic()) / 3)
    trainer.add_callback(times)
    fresh_memory()
    trainer.train()
    peak = peak_gib()
    personalized = trainer.args.personalized
    index = trainer.user_index if personalized else None
    held_out = load_from_disk(folder / "test_seen")
    control = Control(LABELS.get(method, method), trainer.model.eval(), index)
    scores = control.score(tokenizer, held_out, batch_size=32)
    chosen, rejected = (
        scores[f"{side}_logp"] - held_out[column]
        for side, column in zip(("chosen", "rejected"), REFERENCE, strict=True)
    )
    right = ranked_right(chosen, rejected)
    return {
        **interval_of(right, dataset, held_out),
        "seconds": time.monotonic() - start,
        "seconds_a_step": statistics.median(times.seconds),
        "pairs_a_second": batch / statistics.median(times.seconds),
        "steps": len(times.seconds),
        "steps_planned": trainer.state.max_steps,
        "train_pairs": len(trainer.train_dataset),
        "loss_last": [row["loss"] for row in trainer.state.log_history if "loss" in row][-3:],
        "peak_gib": peak,
        "right": "".join("0h1"[int(2 * one)] for one in right),  # h: a tie. One a held-out pair, in their order
    }


def interval_of(values, dataset: str, pairs: Dataset) -> dict[str, Any]:
    """Mean with its 95% interval: by user and prompt where users were drawn; domains and objectives are fixed, so
    there by prompt."""
    from prlhf_kit.data.chat import prompt_text
    from prlhf_kit.evaluation.statistics import crossed_interval

    prompts = [prompt_text(prompt) for prompt in pairs["prompt"]]
    drawn = dataset == "simulated"
    i = crossed_interval(values, pairs["user_id"], prompts) if drawn else crossed_interval(values, prompts)
    clustered = "user and prompt" if drawn else "prompt"
    return {"mean": i.estimate, "low": i.low, "high": i.high, "n": i.n, "clustered_by": clustered}


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
        key = {"dataset": dataset, "seed": int(seed)}
        rows.append(key | {"method": "length rule per user"} | interval_of(rule, dataset, held_out))
        vanilla = rights.get((dataset, "dpo", seed))
        for method in METHODS:
            right = rights.get((dataset, method, seed))
            if right is None:
                continue
            row = key | {"method": method} | interval_of(right, dataset, held_out)
            if vanilla is not None and method != "dpo":
                gain = interval_of([a - b for a, b in zip(right, vanilla, strict=True)], dataset, held_out)
                row |= {"over_dpo": gain["mean"], "over_dpo_low": gain["low"], "over_dpo_high": gain["high"]}
            rows.append(row)
    return rows


# 2. Decoding ---------------------------------------------------------------------------------------------------------

MODELS_OF = {
    "plain": ["base"],
    "pad_shared": ["personal"],
    "pad_two_models": ["base", "policy"],
    "args": ["base", "reward"],
}


def decode(setting: Setting, until: float, size: str, batch: int, tokens: int) -> dict[str, Any]:
    """Seconds of guided decoding beside `generate`, ways in turn; of the scheme without a cache, on few tokens."""
    from decoding import Bench

    uncached = 2 if setting.tiny else 4
    bench = Bench(size, tokens, prompts=1, batch=batch)
    seconds: dict[str, list[float]] = {way: [] for way in MODELS_OF}
    memory, errors = {}, {}
    for repeat in range(setting.repeats + 1):  # the first loads models and warms up
        if repeat > 1 and time.monotonic() > until:
            break
        for way in MODELS_OF:
            if way in errors:
                continue
            fresh_memory()
            before = torch.cuda.memory_allocated() / 2**30 if CUDA else 0
            try:
                spent = bench.run(way)
            except torch.OutOfMemoryError as error:
                errors[way] = str(error).splitlines()[0]
                continue
            if repeat:
                seconds[way].append(spent)
                memory[way] = peak_gib() and peak_gib() - before
    medians = {way: statistics.median(all_of) for way, all_of in seconds.items() if all_of}
    plain = medians.get("plain", math.nan)
    found = {
        "seconds": medians,
        "tokens_a_second": {way: batch * tokens / s for way, s in medians.items()},
        "gib_beyond_weights": memory,
        "weights_gib": {way: sum(gib_of(bench.model(name)) for name in MODELS_OF[way]) for way in medians},
        "ratios": {f"{way}_vs_plain": medians[way] / plain for way in medians if way != "plain"},
        "repeats": min(map(len, seconds.values())),
        "new_tokens": tokens,
        "errors": errors,
    }
    if batch == 1 and "pad_two_models" in medians:
        bench.tokens, bench.length = uncached, {"max_new_tokens": uncached, "min_new_tokens": uncached}
        bench.run("job_uncached")
        times = [bench.run("job_uncached") for _ in range(setting.repeats)]
        # what a token costs without a cache grows with the text, so this is less than the whole answer would take
        found["uncached_seconds_a_token"] = statistics.median(times) / uncached
        a_token = medians["pad_two_models"] / tokens
        found["ratios"]["uncached_vs_two_models_a_token"] = found["uncached_seconds_a_token"] / a_token
    return found


def gib_of(model) -> float:
    """The memory of a model's weights."""
    return sum(p.numel() * p.element_size() for p in getattr(model, "model", model).parameters()) / 2**30


# 3. Training ---------------------------------------------------------------------------------------------------------

WAYS = {
    "vanilla": None,
    "alpha_1": {"alpha": 1.0},
    "alpha_1_prompt_twice": {"alpha": 1.0, "share_prompt": False},
    "alpha_0.5": {"alpha": 0.5},
}


def train(setting: Setting, until: float, size: str, weights: str, prompt_tokens: int) -> dict[str, Any]:
    """A step of vanilla DPO by TRL, and of P-DPO with and without prompts shared by both responses."""
    from prlhf_kit.data.schema import record

    batch = 2 if setting.tiny else 4 if size == "8b" and prompt_tokens > 64 else 8
    steps, warm_up = (2, 1) if setting.tiny else (8, 3)
    response = 8 if setting.tiny else 64
    texts = ["tea " * (prompt_tokens - 10), "yes " * response, "no " * response]
    pairs = Dataset.from_list([record(f"p{i}", f"u{i % 4}", *texts) for i in range(batch * steps)])
    found, memory, errors, roads = {}, {}, {}, {}
    for way, options in WAYS.items():
        if found and time.monotonic() > until:
            break
        fresh_memory()
        try:
            times, trainer = time_steps(setting, size, weights, pairs, batch, options)
        except torch.OutOfMemoryError as error:
            errors[way] = str(error).splitlines()[0]
            continue
        found[way], memory[way] = statistics.median(times[warm_up:]), peak_gib()
        if options is not None:  # where sharing does not give the same numbers on this GPU, the trainer turns it off
            collator = trainer.data_collator
            roads[way] = {"share_prompt": collator.longest > 0}
        del trainer
    vanilla = found.get("vanilla", math.nan)
    return {
        "seconds_a_step": found,
        "pairs_a_second": {way: batch / s for way, s in found.items()},
        "peak_gib": memory,
        "ratios": {f"{way}_vs_vanilla": found[way] / vanilla for way in found if way != "vanilla"},
        "roads": roads,
        "batch": batch,
        "repeats": steps - warm_up,
        "dtype": str(DTYPE),
        "errors": errors,
    }


def time_steps(setting: Setting, size: str, weights: str, pairs: Dataset, batch: int, options: dict | None):
    """Seconds of each optimiser step, and the trainer; `options` of P-DPO, None: TRL's DPOTrainer."""
    from decoding import random_model
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer
    from trl.trainer import dpo_trainer

    # TRL names its cache of the reference by a hash of all weights in float32: minutes of an 8B model, for nothing here
    dpo_trainer.hash_module = lambda _: uuid.uuid4().hex
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
        trainer = DPOTrainer(
            model,
            args=DPOConfig(**shared),
            train_dataset=pairs.select_columns(["prompt", "chosen", "rejected"]),
            processing_class=tokenizer,
            peft_config=adapter,
        )
    else:
        users = kit.UserIndex(sorted(set(pairs["user_id"])))
        kit.condition(model, kit.IndividualUserModel(len(users), model.get_input_embeddings(), 8))
        args = kit.PersonalizedDPOConfig(**shared, **options)
        trainer = kit.PersonalizedDPOTrainer(model, args, pairs, None, tokenizer, users, adapter)
    times = step_times(math.inf)
    trainer.add_callback(times)
    trainer.train()
    return times.seconds, trainer


def smoke(setting: Setting, until: float) -> dict[str, Any]:
    """Every way of parts 2 and 3 once on a toy model."""
    toy = Setting(setting.work, setting.data, True)
    toy.model = EMBEDDED
    return {"decode": decode(toy, until, "tiny", 2, 4), "train": train(toy, until, "tiny", "lora", 32)}


# 4. Notebooks --------------------------------------------------------------------------------------------------------

SMALL = {
    "01_data_preparation": {"dataset_options": {"pairs_per_user": 20, "test_pairs_per_user": 10}},
    "03_pdpo_training": {"batch_size": 16},
    "04_pad_decoding": {"n_prompts": 1, "max_new_tokens": 24, "weights": [0.0, 1.0]},
    "04b_persrm": {"n_prompts": 1, "max_new_tokens": 24, "persrm_pairs": 48, "weights": [0.0, 1.0]},
    "05_evaluation": {"policy_pairs": 8, "policy_weights": [0.0, 1.0]},
    "05b_answers_and_judges": {"n_prompts": 2, "max_new_tokens": 24},
}
TINY = {
    "01_data_preparation": {
        "dataset_options": {"pairs_per_user": 4, "test_pairs_per_user": 3, "adapt_pairs_per_user": 1},
        "max_prompt_tokens": 128,
    },
}


def notebooks(setting: Setting, until: float) -> dict[str, Any]:
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
    """P-DPO and vanilla DPO on every dataset come before the other controls."""
    datasets, methods = (DATASETS[:1], METHODS[:2]) if tiny else (DATASETS, METHODS)
    limits = {"simulated": 120, "dsp": 240, "hh_relabelled": 150}
    return [
        Job("learn", limits[d], {"dataset": d, "method": m, "seed": seed})
        for two in (methods[i : i + 2] for i in range(0, len(methods), 2))
        for d in datasets
        for m in two
    ]


def references(tiny: bool, seed: int) -> list[Job]:
    datasets = DATASETS[:1] if tiny or seed else DATASETS  # the others are the same whatever the seed
    return [Job("reference", 200, {"dataset": d, "seed": seed}) for d in datasets]


def plan(tiny: bool) -> list[tuple[float, int, list[Job]]]:
    """Share of the time, jobs side by side, and the jobs of each part, best first."""
    if tiny:  # nothing is timed for its own sake, so all goes side by side
        jobs = [
            *references(tiny, 0),
            Job("notebooks", 300),
            Job("decode", 150, {"size": "tiny", "batch": 1, "tokens": 8}),
            Job("train", 150, {"size": "tiny", "weights": "lora", "prompt_tokens": 32}),
            *learning(tiny, 0),
        ]
        return [(1.0, 2, jobs)]
    decoded = [("1b", 8), ("8b", 8), ("smollm2", 1), ("1b", 1), ("8b", 1), ("1b", 64), ("smollm2", 8), ("8b", 64)]
    trained = [("1b", "lora", 512), ("8b", "lora", 512), ("135m", "lora", 64), ("1b", "lora", 64), ("1b", "full", 512)]
    trained += [("8b", "lora", 64), ("8b", "full", 512), ("1b", "full", 64), ("8b", "full", 64), ("135m", "lora", 512)]
    # a small model leaves most of a GPU idle, so trainings of part 1 run side by side
    return [
        (0.05, 1, [Job("smoke", 90)]),
        (0.1, 3, references(tiny, 0)),
        (0.35, 4, learning(tiny, 0)),
        # 8b takes half as many tokens, for the time's sake
        (
            0.2,
            1,
            [
                Job("decode", 110, {"size": size, "batch": batch, "tokens": 64 if size == "8b" else 128})
                for size, batch in [*decoded, ("smollm2", 64)]
            ],
        ),
        (0.2, 1, [Job("train", 90, {"size": s, "weights": w, "prompt_tokens": p}) for s, w, p in trained]),
        (0.1, 1, [Job("notebooks", 200)]),
    ]


def serve(connection, setting: Setting) -> None:
    """In a process of its own: does the jobs that come in, until none comes."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with the process that started it, even where that is killed
    log = os.open(setting.work / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 6))
    while (asked := connection.recv()) is not None:
        job, limit = asked
        until = time.monotonic() + 0.8 * limit  # then it should come to an end by itself, with what it has
        try:
            fresh_memory()
            connection.send(("done", globals()[job.function](setting, until, **job.options)))
        except Exception as error:  # whatever it is, it is reported, and this process ends with it
            traceback.print_exc()
            told = {"error": f"{type(error).__name__}: {error}"[-1000:], "traceback": traceback.format_exc()[-2000:]}
            connection.send(("failed", told))


class Worker:
    """A process that does one job after the other. Where one fails, the next gets a new process."""

    def __init__(self, setting: Setting):
        context = multiprocessing.get_context("spawn")  # CUDA does not outlive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, setting), daemon=False)
        self.process.start()
        theirs.close()

    def do(self, job: Job, limit: float) -> tuple[str, dict[str, Any]]:
        try:
            self.connection.send((job, limit))
            if self.connection.poll(limit):
                return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            return "failed", {"error": f"its process died with exit code {self.process.exitcode}"}
        return "stopped", {"error": f"not done in {limit:.0f} s"}

    def close(self, patience: float = 0) -> None:
        if patience and self.process.is_alive():
            self.connection.send(None)
            self.process.join(patience)
        self.process.kill()
        self.process.join()


def run_jobs(
    jobs: list[Job], side_by_side: int, until: float, end: float, setting: Setting, keep: Callable[[Job, dict], None]
) -> None:
    """Begin the jobs in order, none after `until`; what still runs at `end` is cut off."""
    left = deque(jobs)

    def work():
        worker = None
        while time.monotonic() < until:
            try:
                job = left.popleft()
            except IndexError:
                break
            start = time.monotonic()
            limit = min(job.limit, end - start)
            try:
                worker = worker or Worker(setting)
                status, found = worker.do(job, limit)
            except Exception as error:  # a job that can't even begin ends no other
                status, found = "failed", {"error": f"{type(error).__name__}: {error}"}
            if status == "stopped" and limit < job.limit:
                status = "cut"
            keep(job, {"status": status, "seconds_in_all": round(time.monotonic() - start, 1)} | found)
            if status != "done" and worker:
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


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="all of it ends after so long")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="results, and what is done already")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="where dsp and hh_relabelled lie, prepared")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir(), "prlhf_gpu"), help="for what is between"
    )
    parser.add_argument("--parts", nargs="+", help="only these: smoke, reference, learn, decode, train, notebooks")
    parser.add_argument("--tiny", action="store_true", help="every part in miniature, to see that it runs")
    args = parser.parse_args()
    begun = time.monotonic()
    setting = Setting(args.work.resolve(), args.data.resolve(), args.tiny)
    setting.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"ratios": {}, "n": {}, "tiny": args.tiny, "machine": machine(), "parts": {}}
    if args.json.exists():
        old = json.loads(args.json.read_text())
        for key in ("gpu", "versions"):
            if (old["tiny"], old["machine"].get(key)) != (args.tiny, results["machine"].get(key)):
                message = "was measured on another GPU or by other versions. Choose another --json."
                print(f"{args.json} {message}", file=sys.stderr)
                return 2
        results = old
    absent = [] if args.tiny else [d for d in DATASETS[1:] if not (setting.data / d).is_dir()]
    for name in absent:
        print(f"{setting.data / name} is not there (`prlhf data prepare {name}`): it is left out")
    if args.tiny and not Path(setting.model).exists():
        from decoding import random_model

        random_model("tiny", "cpu").float().save_pretrained(setting.model)
        kit.load_tokenizer().save_pretrained(setting.model)
    lock, code = threading.Lock(), commit()

    def keep(job: Job, found: dict[str, Any]) -> None:
        with lock:
            results["parts"][job.name] = found = finite(found | {"commit": code})
            for name, ratio in found.get("ratios", {}).items():
                results["ratios"][f"{job.name}/{name}"] = ratio
            write_json(args.json, results)
        shown = {key: found[key] for key in ("mean", "low", "high", "n", "ratios", "seconds") if key in found}
        told = found.get("error") or json.dumps(shown)
        print(f"{time.monotonic() - begun:4.0f} s  {job.name}: {found['status']}. {told}", flush=True)

    def to_do(jobs: list[Job], again: bool = True) -> list[Job]:
        """What is not done, what was never tried first."""
        asked = [job for job in jobs if not args.parts or job.function in args.parts]
        asked = [job for job in asked if job.options.get("dataset") not in absent]
        tried = {name: part["status"] for name, part in results["parts"].items()}
        left = [job for job in asked if tried.get(job.name) != "done" and (again or job.name not in tried)]
        return sorted(left, key=lambda job: job.name in tried)

    end = begun + 60 * args.minutes
    until = begun
    parts = plan(args.tiny)
    for share, side_by_side, jobs in parts:
        until += share * 60 * args.minutes
        run_jobs(to_do(jobs), side_by_side, until, min(end, until + 30), setting, keep)
    for name in [name for name, part in results["parts"].items() if part["status"] == "cut"]:
        del results["parts"][name]
    for _, side_by_side, jobs in parts:  # what was not reached, or cut off at the end of its share
        run_jobs(to_do(jobs, again=False), side_by_side, end - 30, end, setting, keep)
    for seed in [] if args.tiny else range(1, 10):
        run_jobs(to_do(references(args.tiny, seed)), 1, end - 60, end, setting, keep)
        run_jobs(to_do(learning(args.tiny, seed), again=False), 4, end - 60, end, setting, keep)
    results["n"] = {
        name: {key: part[key] for key in ("n", "batch", "steps", "repeats") if key in part}
        for name, part in results["parts"].items()
    }
    try:
        results["learning"] = finite(learning_tables(setting, results["parts"]))
    except Exception as error:  # what was measured is not lost for a table
        results["learning"] = []
        print(f"no table of the trainings: {type(error).__name__}: {error}", file=sys.stderr)
    write_json(args.json, results)
    for row in results["learning"]:
        print("  ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    states = [part["status"] for part in results["parts"].values()]
    wrong = [name for name, part in results["parts"].items() if part["status"] in ("failed", "stopped")]
    print(
        f"{states.count('done')} done, {states.count('cut')} cut off at the end, failed: {', '.join(wrong) or 'none'}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
