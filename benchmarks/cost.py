"""What P-DPO, scoring and generation cost on a GPU, by formulas, and how far these formulas can be trusted.

No GPU was at hand: the tables of `docs/scale.md` (`--markdown`) are these formulas with the assumptions below, not
measurements. What a CPU can tell of them is measured by `cost_check.py`, which runs without `--markdown`; parameters,
adapters, user tables and optimizer states are compared with real models in `tests/test_cost.py`.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/cost.py --json benchmarks/measured/cost.json
    python benchmarks/cost.py --markdown
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

# Assumptions ----------------------------------------------------------------------------------------------------------

GPUS = {"A100": (312e12, 2.04e12), "H100": (989e12, 3.35e12)}  # published: bfloat16 FLOP/s without sparsity, bytes/s
FLOP_SHARE = (0.2, 0.4)  # of the peak, that training reaches
BYTE_SHARE = (0.4, 0.7)  # of the bandwidth, that decoding reaches
LAYER = (
    0.3e-3,
    1e-3,
)  # seconds a layer and pass at least: Python and kernel launches, for `generate` without a compiler
PROMPT = RESPONSE = 200  # tokens
USER_TOKENS, RANK, BATCH, ANSWERS, NEW = 10, 16, 8, 32, 128
ALPHA = 0.5


@dataclass(frozen=True)
class Model:
    """A decoder of the Llama or Qwen2 family, by the numbers in its `config.json`."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    tied: bool
    bias: bool = False  # of the query, key and value maps

    @classmethod
    def of(cls, config) -> Model:
        """From a configuration of transformers."""
        return cls(
            config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads,
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            config.intermediate_size, config.vocab_size, config.tie_word_embeddings, config.model_type == "qwen2",
        )  # fmt: skip

    @property
    def maps(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's linear maps."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {"q": (self.width, queries), "k": (self.width, keys), "v": (self.width, keys)}
        mlp = {"gate": (self.width, self.mlp), "up": (self.width, self.mlp), "down": (self.mlp, self.width)}
        return attention | {"o": (queries, self.width)} | mlp

    @property
    def body(self) -> int:
        """Weights of all linear maps in the layers."""
        return self.layers * sum(i * o for i, o in self.maps.values())

    @property
    def head(self) -> int:
        """Weights of the LM head."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.width
        biases = self.layers * sum(self.maps[name][1] for name in "qkv") if self.bias else 0
        return self.body + norms + biases + self.head * (1 if self.tied else 2)


MODELS = {
    "SmolLM2-135M": Model(30, 576, 9, 3, 64, 1536, 49152, True),
    "Llama-3.2-1B": Model(16, 2048, 32, 8, 64, 8192, 128256, True),
    "Qwen2.5-7B": Model(28, 3584, 28, 4, 128, 18944, 152064, False, True),
    "Llama-3.1-8B": Model(32, 4096, 32, 8, 128, 14336, 128256, False),
}
EVERY_MAP = ("q", "k", "v", "o", "gate", "up", "down")  # PEFT's "all-linear"

# FLOPs of a pair -----------------------------------------------------------------------------------------------------


def flops(
    model: Model, prompt: int, response: int, user_tokens: int = 0, train: str | None = None, shared: bool = True,
    rank: int = 0, targets: tuple[str, ...] = EVERY_MAP, checkpointing: bool = False,
) -> float:  # fmt: skip
    """FLOPs of one pass over a pair, two responses of `response` tokens: forward, with `train` backward too.

    A multiplication and an addition are two. Attention scores are counted for every two tokens of a row, since the
    mask is dense.

    Args:
        train: "lora" or "frozen" (weights get no gradient), "full" (they do), None: forward only.
        shared: the prompt once for both responses, as in `training/prompt_once.py`.
        rank, targets: of the adapter.
        checkpointing: activations are computed again in the backward pass.
    """
    rows, length = (1, user_tokens + prompt + 2 * response) if shared else (2, user_tokens + prompt + response)
    linear = 2 * model.body * rows * length
    attention = 4 * model.layers * model.heads * model.head_dim * rows * length**2
    head = 2 * model.head * 2 * response
    own = 2 * adapter(model, rank, targets) * rows * length
    forward = linear + attention + head + own
    if train is None:
        return forward
    # attention: four products, and the scores again. Head: TRL's fused one computes the logits again.
    backward = linear * (2 if train == "full" else 1) + 2.5 * attention + head * (3 if train == "full" else 2) + 2 * own
    return forward + backward + (linear + attention + own if checkpointing else 0)


def training_flops(model: Model, prompt: int, response: int, user_tokens: int, alpha: float, **options) -> float:
    """FLOPs of a pair in one epoch of P-DPO: a pass for the user, one for the generic user, the reference once."""
    passes = 1 if alpha in (0, 1) else 2
    return passes * flops(model, prompt, response, user_tokens, **options) + flops(
        model, prompt, response, shared=False
    )


# Bytes ----------------------------------------------------------------------------------------------------------------


def adapter(model: Model, rank: int, targets: tuple[str, ...] = EVERY_MAP) -> int:
    """Numbers of a LoRA adapter."""
    return model.layers * sum(rank * sum(model.maps[name]) for name in targets)


def user_table(kind: str, users: int, num_tokens: int, width: int, of: int = 16) -> int:
    """Numbers of a user model, the generic user's included; `of`: clusters or rank."""
    vector = num_tokens * width
    return {
        "individual": (users + 1) * vector + vector,
        "cluster": (users + 1) * of + of * vector,
        "low_rank": (users + 1) * of + (of + 1) * vector,
    }[kind]


def training_bytes(numbers: int, copies: int = 4) -> int:
    """Bytes of float32 numbers that are trained: value, gradient, two of Adam; user models and what else PEFT saves
    whole have a fifth, the untrained value."""
    return 4 * copies * numbers


def activation_bytes(
    model: Model, rows: int, length: int, train: str = "lora", precision: int = 2,
    targets: tuple[str, ...] = EVERY_MAP, rank: int = 0, layers: int | None = None,
) -> int:  # fmt: skip
    """Bytes that one pass over `rows` rows of `length` tokens keeps for the backward pass in transformers' own layers.

    A norm keeps its input in float32; attention its queries, its keys and values (repeated for all heads) and its
    output; the MLP three products; an adapter what the maps under it read, below float32 in a copy for each map; whole
    weights that are trained what all maps read, and the norms' outputs before their weights. The mask is dense.

    Args:
        precision: bytes a number.
        layers: so many only; None: all.
    """
    kept = 8 * model.width + precision * (4 * model.heads * model.head_dim + 3 * model.mlp)
    if train == "full":
        kept += precision * (4 * model.width + model.mlp)
    elif train == "lora":
        if precision == 4:  # one tensor serves all maps that read it, and attention's output is kept anyway
            shared = {"q": "q", "k": "q", "v": "q", "gate": "gate", "up": "gate", "down": "down"}
            read = {shared[name] for name in targets if name in shared}
        else:
            read = set(targets)
        kept += precision * (sum(model.maps[name][0] for name in read) + rank * len(targets))
    last = 4 * model.width  # the norm before the head
    layers = model.layers if layers is None else layers
    return rows * length * (layers * kept + last) + rows * length**2 * precision


def training_peak(model: Model, train: str, checkpointing: bool, batch: int = BATCH) -> dict[str, float]:
    """Bytes on a GPU in a step of P-DPO, of the users' table apart."""
    length, passes = USER_TOKENS + PROMPT + 2 * RESPONSE, 1 if ALPHA in (0, 1) else 2
    if train == "full":
        weights = training_bytes(model.parameters) + 2 * model.parameters  # and autocast's bfloat16 copies
    else:
        weights = 2 * model.parameters + training_bytes(adapter(model, RANK))
    kept = activation_bytes(model, batch, length, train, rank=RANK, layers=1 if checkpointing else None)
    if checkpointing:  # every layer's input, in both passes, and all of one layer
        kept += passes * model.layers * batch * length * model.width * (4 if train == "full" else 2)
    else:
        kept *= passes  # both passes' graphs wait for the backward
    # the reference, 16 texts at once: logits in bfloat16, in float32, and their log-softmax
    return {"weights": weights, "activations": kept, "reference": 10 * 16 * RESPONSE * model.vocabulary}


# Seconds --------------------------------------------------------------------------------------------------------------


def training_hours(model: Model, pairs: int, gpu: str) -> tuple[float, float]:
    """Least and most hours of an epoch of P-DPO with LoRA: the FLOPs, or what launching all layers takes at least."""
    work = training_flops(model, PROMPT, RESPONSE, USER_TOKENS, ALPHA, train="lora", rank=RANK) * pairs
    passes = (4 if 0 < ALPHA < 1 else 2) * pairs / BATCH + 2 * pairs / 16  # forward and backward; the reference
    bounds = zip(reversed(FLOP_SHARE), LAYER, strict=True)
    found = [max(work / (GPUS[gpu][0] * share), passes * model.layers * layer) / 3600 for share, layer in bounds]
    return found[0], found[1]


def generation_seconds(model: Model, answers: int, gpu: str, rows: int = 1) -> tuple[float, float]:
    """Least and most seconds to write `answers` answers of `NEW` tokens, `ANSWERS` at once, weights in bfloat16.

    Args:
        rows: texts that are read for an answer: 1, PAD with a shared base 3 (base, policy, reference).
    """
    peak, bandwidth = GPUS[gpu]
    batch = ANSWERS * rows
    cache = 4 * model.layers * model.kv_heads * model.head_dim * (PROMPT + NEW / 2)  # bytes of a text, keys and values
    read, work = 2 * model.parameters + batch * cache, 2 * (model.body + model.head) * batch
    found = []
    for some, most, layer in zip(reversed(BYTE_SHARE), reversed(FLOP_SHARE), LAYER, strict=True):
        step = max(read / (bandwidth * some), work / (peak * most), model.layers * layer)
        prompts = 2 * model.body * PROMPT * batch / (peak * most)
        found.append((NEW * step + prompts) * answers / ANSWERS)
    return found[0], found[1]


# seconds of the demo on one CPU core, those among them that are not the model's, and passes of the model on a GPU, all
# counted from the defaults; a backward pass counts as a pass. 06, 08 and 09 are not in the demo.
NOTEBOOKS = {
    "02_reward_models": (474, 60, 140),
    "03_pdpo_training": (846, 13, 360),
    "04_pad_decoding": (1230, 22, 6300),
    "05_evaluation": (623, 34, 900),
    "06_new_users": (None, 15, 1400),
    "08_community_context": (None, 30, 1100),
    "09_user_models": (None, 20, 580),
}


def notebook_seconds(name: str) -> tuple[float, float]:
    """Least and most seconds of a notebook with its default data on a GPU: the CPU's part, and launching the layers."""
    _, own, passes = NOTEBOOKS[name]
    layers = MODELS["SmolLM2-135M"].layers
    return own + passes * layers * LAYER[0], own + passes * layers * LAYER[1]


# Tables ---------------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


MEASURED = Path(__file__).parent / "measured" / "cost.json"  # of cost_check.py, as it stands on the page
CHANGED = {
    "response_twice": "responses twice as long",
    "alpha_half": "alpha = 0.5 in place of 1",
    "whole_model": "all weights in place of LoRA on q and v",
    "prompt_twice": "the prompt (192 words) twice in place of once",
    "wider": "width 768 in place of 384",
}


def number(value: float) -> str:
    """Two digits, as in 0.012, 1.2 or 120."""
    text = f"{value:.2g}"
    return f"{float(text):.0f}" if value >= 10 else text if "e" not in text else f"{value:.4f}"


def span(bounds: tuple[float, float]) -> str:
    low, high = map(number, bounds)
    return low if low == high else f"{low} to {high}"


def size(count: float) -> str:
    """Bytes as MB or GB."""
    return f"{number(count / 1e9)} GB" if count >= 1e9 else f"{number(count / 1e6)} MB"


def tables() -> dict[str, str]:
    """The tables of `docs/scale.md`, by name, in Markdown."""
    found = {}
    rows = []
    for name, model in MODELS.items():
        work = training_flops(model, PROMPT, RESPONSE, USER_TOKENS, ALPHA, train="lora", rank=RANK)
        hours = [span(training_hours(model, pairs, "H100")) for pairs in (10_000, 100_000, 1_000_000)]
        rows.append([name, number(work / 1e12), *hours, span(training_hours(model, 100_000, "A100"))])
    pairs_of = ["10k pairs, H100", "100k pairs, H100", "1M pairs, H100", "100k pairs, A100"]
    found["hours"] = table(["GPU hours", "TFLOP a pair", *pairs_of], rows)
    rows = []
    for name, model in MODELS.items():
        for train, checkpointing in (("lora", False), ("lora", True), ("full", True)):
            peak = training_peak(model, train, checkpointing)
            most = max(peak["weights"] + peak["activations"], 2 * model.parameters + peak["reference"])
            label = f"{train}, checkpointing" if checkpointing else train
            rows.append([name, label, *(size(peak[k]) for k in ("weights", "activations", "reference")), size(most)])
    kinds = ["weights, optimizer", "activations", "logits of the reference", "peak"]
    found["memory"] = table(["memory", "trained", *kinds], rows)
    rows = []
    for name, model in MODELS.items():
        for users in (10, 1_000, 100_000):
            own = [user_table(kind, users, USER_TOKENS, model.width) for kind in ("individual", "low_rank", "cluster")]
            rows.append([name, f"{users:,}", *(f"{size(training_bytes(n, 5))} ({size(4 * n)})" for n in own)])
    found["users"] = table(["user model", "users", "individual", "low-rank, r = 16", "cluster, K = 16"], rows)
    rows = []
    for name, model in MODELS.items():
        cache = 4 * model.layers * model.kv_heads * model.head_dim
        ways = [span(tuple(s / 60 for s in generation_seconds(model, 10_000, "H100", texts))) for texts in (1, 3)]
        full = 3 * ANSWERS * cache * (PROMPT + NEW)
        rows.append([name, size(2 * model.parameters), size(cache * (PROMPT + NEW)), size(full), *ways])
    costs = ["weights", "cache of a text", "cache of PAD's batch", "minutes, generation", "minutes, PAD"]
    found["generation"] = table(["10,000 answers", *costs], rows)
    rows = [
        [f"`{name}`", "" if known[0] is None else f"{known[0]} s", f"{known[1]} s", f"{known[2]:,}",
         f"{span(notebook_seconds(name))} s"]
        for name, known in NOTEBOOKS.items()
    ]  # fmt: skip
    heads = ["one CPU core, measured", "of it not the model's", "passes of the model", "one GPU, estimated"]
    found["notebooks"] = table(["notebook, default data", *heads], rows)
    ratios = json.loads(MEASURED.read_text())["ratios"]
    rows = [
        [text, *(f"{ratios[f'{name}_{kind}']:.2f}" for kind in ("measured", "predicted", "kept_bytes_vs_formula"))]
        for name, text in CHANGED.items()
    ]
    found["measured"] = table(["what is changed", "time, measured", "by the FLOPs", "kept bytes / formula"], rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/scale.md, measure nothing")
    parser.add_argument("--json", type=Path, help="where to write the ratios (the last table: measured/cost.json)")
    args = parser.parse_args()
    if args.markdown:
        print("\n\n".join(tables().values()))
        return
    from cost_check import measure  # needs torch

    measure(args.repeats, args.json)


if __name__ == "__main__":
    main()
