"""Personalised generation: one batch may hold different prompts for different users."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from prlhf_kit.files import short_hash
from prlhf_kit.models import hub
from prlhf_kit.models.conditioning import embed_with_users, user_model_of

Prompt = list[dict[str, str]]


class DecodingError(ValueError):
    """The request can't be decoded; the message says why and what to do."""


def require_text(prompts: Sequence[Prompt]) -> None:
    """Raise `DecodingError` where a prompt is empty."""
    for prompt in prompts:
        if not prompt or not prompt[-1]["content"].strip():
            raise DecodingError(f"an empty prompt can't be answered: {prompt!r}. Expected messages with text.")


def require_same_tokenizer(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> None:
    """Raise `DecodingError` where a base and its guide have other tokens, or cut text into them in another way."""
    probe = "Ünïcode 12345, don't\n\n  def f(x): return {'x': x}\t<|im_end|></s> 東京 🙂"
    mine, theirs = own.get_vocab(), other.get_vocab()
    tokens = [t(probe, add_special_tokens=False)["input_ids"] for t in (own, other)]
    if mine != theirs or tokens[0] != tokens[1]:
        example = next((t for t in mine if mine[t] != theirs.get(t)), "how text is cut into tokens")
        raise DecodingError(
            f"base and guide have different tokenizers ({len(mine)} and {len(theirs)} tokens; they differ in "
            f"{example!r}). Guided decoding compares token by token: use models of one family, or choose among "
            "finished answers with best_of_n, for which tokenizers don't matter."
        )


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], device) -> dict[str, torch.Tensor]:
    """Chat prompts as a left-padded batch: `input_ids`, `attention_mask` and `position_ids`, each `[B, L]`."""
    require_text(prompts)
    batch = tokenizer.apply_chat_template(
        list(prompts),
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
        tokenizer_kwargs={"padding_side": "left"},
    )
    mask = batch["attention_mask"].to(device)
    return {
        "input_ids": batch["input_ids"].to(device),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }


def check_context(model, prompt_tokens: int, max_new_tokens: int, users: bool = False) -> None:
    """Raise `DecodingError` where prompt, user tokens (with `users`) and answer don't fit into the model's context."""
    if users:
        user_model: Any = user_model_of(model)
        prompt_tokens += user_model.num_tokens
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and prompt_tokens + max_new_tokens > limit:
        raise DecodingError(
            f"a prompt of {prompt_tokens} tokens (user tokens included) and {max_new_tokens} new ones exceed the "
            f"model's context of {limit}. Shorten the prompt (respond does, to max_prompt_tokens) or lower "
            "max_new_tokens."
        )


def eos_ids(model, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end an answer: those of the generation config and of the tokenizer."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in [*configured, tokenizer.eos_token_id] if i is not None})


def generation_config(model, tokenizer: PreTrainedTokenizerBase, generation: Mapping[str, Any]) -> GenerationConfig:
    """What `generation` asks for, greedy and 64 new tokens if it does not say. Raises `DecodingError` where
    transformers has no such option."""
    known = GenerationConfig()  # which would take any name and ignore it
    for name in generation:
        if not hasattr(known, name):
            near = difflib.get_close_matches(name, vars(known), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DecodingError(f"transformers' GenerationConfig has no option {name!r}.{hint}")
    return GenerationConfig(
        **{"max_new_tokens": 64, "do_sample": False, **generation},
        eos_token_id=eos_ids(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


def in_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Numbers of the prompts of each batch, long and short ones apart, so that little is spent on padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def switched_off(model) -> bool:
    """Whether the adapters of a PEFT model are switched off (`disable_adapter`)."""
    return any(getattr(module, "disable_adapters", False) is True for module in model.modules())


def identity(model) -> str:
    """16 hex digits that tell apart models that answer differently: their weights, the scale of their adapters, and
    which of these are on. About a second a GB."""
    scales = {n: m.scaling for n, m in model.named_modules() if isinstance(getattr(m, "scaling", None), dict)}
    active = list(model.active_adapters) if isinstance(model, PeftModel) else []
    return short_hash(hub.weights_hash(model), scales, active, switched_off(model))


class Written(NamedTuple):
    """An answer without special tokens, how many tokens it has, and whether it ended by itself."""

    text: str
    tokens: int
    finished: bool


@torch.inference_mode()
def write_batch(
    model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    user_rows: Sequence[int] | None,
    config: GenerationConfig,
) -> list[Written]:
    """Answer some prompts at once, with the KV cache; arguments as of `generate`."""
    device = model.get_input_embeddings().weight.device
    inputs = encode_prompts(tokenizer, prompts, device)
    start_of_answer = inputs["input_ids"].shape[1]
    check_context(model, start_of_answer, config.max_new_tokens, users=user_rows is not None)
    if user_rows is not None:
        inputs = embed_with_users(model, torch.tensor(user_rows), **inputs)
        start_of_answer = 0  # generate returns new tokens only
    del inputs["position_ids"]  # generate counts them from the mask
    more = {"tokenizer": tokenizer} if config.stop_strings else {}
    out = model.generate(**inputs, generation_config=config, **more)[:, start_of_answer:]
    kept = [until_end(ids, config) for ids in out.tolist()]
    texts = tokenizer.batch_decode([ids for ids, _ in kept], skip_special_tokens=True)
    return [Written(text.strip(), len(ids), ended) for text, (ids, ended) in zip(texts, kept, strict=True)]


def until_end(ids: list[int], config: GenerationConfig) -> tuple[list[int], bool]:
    """The tokens of an answer before its end, and whether it has one: an end-of-text token, or a stop string, behind
    which is padding, if other answers of the batch are longer."""
    length = next((i for i, token in enumerate(ids) if token in config.eos_token_id), len(ids))
    if length == len(ids):
        while length and ids[length - 1] == config.pad_token_id:
            length -= 1
    return ids[:length], length < len(ids) or length < config.max_new_tokens


def generate(
    model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    user_rows: Sequence[int] | None = None,
    *,
    batch_size: int = 16,
    seed: int | None = None,
    **generation: object,
) -> list[str]:
    """Answer `prompts[i]` for the user of row `user_rows[i]`, in batches, with the KV cache.

    Args:
        model: personalised model; with `user_rows=None`, any causal LM.
        prompts: chat messages, the last one of role "user".
        user_rows: `[n]`, 0 = generic user (see `UserIndex.rows`).
        seed: of sampling, applied before the first batch.
        generation: what transformers' `generate` takes, e.g. `max_new_tokens=64, do_sample=True, temperature=0.7`.

    Returns:
        One answer a prompt, without special tokens.
    """
    if user_rows is not None and len(user_rows) != len(prompts):
        raise DecodingError(f"{len(user_rows)} user rows for {len(prompts)} prompts; expected one row a prompt.")
    if seed is not None:
        torch.manual_seed(seed)
    config = generation_config(model, tokenizer, generation)
    answers = [""] * len(prompts)
    batches = in_batches([sum(len(m["content"]) for m in prompt) for prompt in prompts], batch_size)
    for chunk in tqdm(batches, desc="generating", disable=None, leave=False):
        rows = None if user_rows is None else [user_rows[i] for i in chunk]
        written = write_batch(model, tokenizer, [prompts[i] for i in chunk], rows, config)
        for i, one in zip(chunk, written, strict=True):
            answers[i] = one.text
    return answers
