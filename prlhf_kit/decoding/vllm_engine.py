"""vLLM (Kwon et al. 2023, arXiv 2309.06180) as the engine of `respond`, personalised models included.

vLLM loads models from folders, so the model is written to one first, its adapter merged in and its user model left out:
vLLM's LoRA knows no `modules_to_save`. A user's soft tokens then come with each prompt, as `prompt_embeds`
`[T_u + L, d_model]`. vLLM decodes prompts that come as embeddings since 0.11, and takes transformers 5, which this kit
needs, since 0.19.1.

Written to vLLM's documented interface (docs.vllm.ai and the sources of `LLM`, `SamplingParams`, `TokensPrompt`,
`EmbedsPrompt` and `CompletionOutput`), and tested against a stand-in of it that decodes with transformers
(`tests/test_vllm_engine.py`). It was **not run** with vLLM itself: speed, memory and vLLM's own numerics (its kernels
add in another order, so greedy answers may part where two tokens are nearly equally likely) are not measured.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedTokenizerBase

from prlhf_kit.decoding.generate import (
    DecodingError,
    Prompt,
    Written,
    encode_prompts,
    identity,
    switched_off,
    until_end,
)
from prlhf_kit.files import unfinished, write_json
from prlhf_kit.models.conditioning import causal_lm, embed_with_users, user_models
from prlhf_kit.models.embedded import cache_dir
from prlhf_kit.models.preference_head import has_head
from prlhf_kit.models.saving import is_users

WRITTEN = "vllm.json"  # in a folder for vLLM: whose weights it holds
# transformers' options and vLLM's, with transformers' own defaults
OPTIONS: dict[str, tuple[str, Any]] = {
    "max_new_tokens": ("max_tokens", None),
    "min_new_tokens": ("min_tokens", 0),
    "repetition_penalty": ("repetition_penalty", 1.0),
    "stop_strings": ("stop", None),
}
SAMPLING: dict[str, tuple[str, Any]] = {
    "temperature": ("temperature", 1.0),
    "top_k": ("top_k", 50),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
}
# what says nothing of the answer, or is said otherwise
ELSEWHERE = {
    "do_sample",
    "use_cache",
    "max_length",
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "early_stopping",
    "cache_implementation",
    "transformers_version",
}


def require_vllm() -> Any:
    """The module `vllm`. Raises `DecodingError` where it is not installed."""
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise DecodingError(
            f"engine='vllm' needs vLLM, which can't be imported here ({error}). Install it on a machine with a GPU "
            "(`pip install 'vllm>=0.19.1'`, or this kit's extra `prlhf_kit[vllm]`), or use engine='transformers', "
            "whose answers have the same form."
        ) from error


def write_for_vllm(model, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write `model` as vLLM loads it, and leave it as it was: its adapters merged into a copy, without the user model.

    Nothing is done where `folder` holds these weights already. What it holds is a whole model or nothing.

    Raises:
        DecodingError: `folder` holds something else, the base is quantized, so that merging would round it, or a
            preference head stands behind the model.
    """
    folder, weights = Path(folder), identity(model)
    if has_head(model):
        raise DecodingError("vLLM knows no preference head, and this model has one. Use engine='transformers'.")
    if isinstance(model, PeftModel) and getattr(causal_lm(model), "is_quantized", False):
        raise DecodingError(
            "the adapter can't be merged into a quantized base without rounding. Load the base in full precision, or "
            "use engine='transformers'."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            marker = folder / WRITTEN
            found = json.loads(marker.read_text())["weights"] if marker.is_file() else "no model of respond's"
            if found != weights:
                raise DecodingError(f"{folder} holds {found}, expected {weights} or no such folder. Choose another.")
            return folder
        plain = model
        if isinstance(model, PeftModel):
            copied: Any = copy.deepcopy(model)  # merging and unmerging would round the weights of `model`
            plain = copied.unload() if switched_off(model) else copied.merge_and_unload()
        staging = unfinished(folder)
        state = {name: value for name, value in plain.state_dict().items() if not is_users(name)}
        plain.save_pretrained(staging, state_dict=state)
        tokenizer.save_pretrained(staging)
        write_json(staging / WRITTEN, {"weights": weights})
        staging.rename(folder)
    return folder


@dataclass(frozen=True)
class VLLM:
    """A model that vLLM has loaded; `load_vllm` makes one.

    Args:
        llm: vLLM's `LLM`.
        weights: `identity` of the model.
    """

    llm: Any = field(repr=False)
    weights: str

    def write(
        self,
        model,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        user_rows: Sequence[int] | None,
        config: GenerationConfig,
        seed: int,
    ) -> list[Written]:
        """As `generate.write_batch`. A request has a seed of its own, so that its answer depends on no other's."""
        params = require_vllm().SamplingParams
        options = sampling_options(model, config)
        requests = [
            prompt_for_vllm(model, tokenizer, prompt, None if user_rows is None else user_rows[i])
            for i, prompt in enumerate(prompts)
        ]
        outputs = self.llm.generate(requests, [params(**options, seed=seed + i) for i in range(len(prompts))])
        written = []
        for output in outputs:
            [one] = output.outputs
            ids, _ = until_end(list(one.token_ids), config)
            text = tokenizer.decode(ids, skip_special_tokens=True).strip()  # as transformers' answers are read
            written.append(Written(text, len(ids), one.finish_reason != "length"))
        return written


def load_vllm(model, tokenizer: PreTrainedTokenizerBase, folder: str | Path | None = None, **options: object) -> VLLM:
    """`model` in vLLM, for several calls of `respond`.

    The model itself stays needed, for the user tokens. It may be on the CPU: vLLM takes nine tenths of the GPU's memory
    unless `gpu_memory_utilization` says otherwise.

    Args:
        folder: where to write the model (`write_for_vllm`); None: in the cache, by its weights.
        options: of vLLM's `LLM`, e.g. `gpu_memory_utilization=0.5, tensor_parallel_size=2`.

    Raises:
        DecodingError: no vLLM, or a model that can't be written for it.
    """
    vllm, weights = require_vllm(), identity(model)
    folder = write_for_vllm(model, tokenizer, folder or cache_dir() / "vllm" / weights)
    # the cache of beginnings must not take one user's embeddings for another's; not tried with vLLM, so it is off
    users = {"enable_prompt_embeds": True, "enable_prefix_caching": False} if user_models(model) else {}
    dtype = str(causal_lm(model).dtype).removeprefix("torch.")
    # "vllm": no defaults from the model's generation config, since `sampling_options` says everything
    return VLLM(
        vllm.LLM(model=str(folder), **{"dtype": dtype, "generation_config": "vllm", **users, **options}), weights
    )


@torch.inference_mode()
def prompt_for_vllm(model, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, user_row: int | None) -> dict[str, Any]:
    """vLLM's `TokensPrompt`, or for a user its `EmbedsPrompt`: `[T_u + L, d_model]`, on the CPU."""
    inputs = encode_prompts(tokenizer, [prompt], model.get_input_embeddings().weight.device)
    if user_row is None:
        return {"prompt_token_ids": inputs["input_ids"][0].tolist()}
    [embeds] = embed_with_users(model, torch.tensor([user_row]), **inputs)["inputs_embeds"]
    return {"prompt_embeds": embeds.to(causal_lm(model).dtype).cpu()}


def sampling_options(model, config: GenerationConfig, users: bool = False) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams` that mean what `config` means to transformers, defaults included: those of
    the model's own generation config, then transformers' (top_k = 50, for instance).

    Args:
        users: prompts come as embeddings.

    Raises:
        DecodingError: an option that vLLM has no counterpart of, by name.
    """
    own = causal_lm(model).generation_config
    given = {name: value for c in (own, config) for name, value in vars(c).items() if value is not None}
    for name, value in given.items():
        neutral = value is False or (type(value) in (int, float) and value in (0, 1) and not name.endswith("_id"))
        if name not in {*OPTIONS, *SAMPLING, *ELSEWHERE} and not name.startswith("_") and not neutral:
            raise DecodingError(
                f"vLLM has no counterpart of {name}={value!r}; it knows {', '.join([*OPTIONS, *SAMPLING])}. Leave it "
                "out (or, if it is the model's own, set it to None in model.generation_config), or use "
                "engine='transformers'."
            )
    asked = OPTIONS | (SAMPLING if config.do_sample else {})
    found = {theirs: given.get(name, default) for name, (theirs, default) in asked.items()}
    if users and found["repetition_penalty"] != 1:
        raise DecodingError(
            f"repetition_penalty={found['repetition_penalty']}: vLLM takes a user's prompt as embeddings, whose tokens "
            "it does not know and can't count. Leave the penalty out, or use engine='transformers'."
        )
    greedy = {} if config.do_sample else {"temperature": 0.0}
    return {**found, **greedy, "stop_token_ids": list(config.eos_token_id)}
