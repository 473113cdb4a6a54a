"""Personalised generation: one batch may hold different prompts for different users."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from prlhf_kit.conditioning import embed_with_users, user_model_of

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
        list(prompts), add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt",
        tokenizer_kwargs={"padding_side": "left"},
    )  # fmt: skip
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
            f"model's context of {limit}. Shorten the prompt or lower max_new_tokens."
        )


def eos_ids(model, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end an answer: those of the generation config and of the tokenizer."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in [*configured, tokenizer.eos_token_id] if i is not None})


@torch.inference_mode()
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
    known = GenerationConfig()  # which would take any name and ignore it
    for name in generation:
        if not hasattr(known, name):
            near = difflib.get_close_matches(name, vars(known), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DecodingError(f"transformers' GenerationConfig has no option {name!r}.{hint}")
    if user_rows is not None and len(user_rows) != len(prompts):
        raise DecodingError(f"{len(user_rows)} user rows for {len(prompts)} prompts; expected one row a prompt.")
    if seed is not None:
        torch.manual_seed(seed)
    config = GenerationConfig(
        **{"max_new_tokens": 64, "do_sample": False, **generation},
        eos_token_id=eos_ids(model, tokenizer), pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    # long and short prompts apart, so that little is spent on padding
    order = sorted(range(len(prompts)), key=lambda i: sum(len(m["content"]) for m in prompts[i]))
    answers = [""] * len(prompts)
    device = model.get_input_embeddings().weight.device
    for start in tqdm(range(0, len(order), batch_size), desc="generating", disable=None, leave=False):
        chunk = order[start : start + batch_size]
        inputs = encode_prompts(tokenizer, [prompts[i] for i in chunk], device)
        start_of_answer = inputs["input_ids"].shape[1]
        check_context(model, start_of_answer, config.max_new_tokens, users=user_rows is not None)
        if user_rows is not None:
            inputs = embed_with_users(model, torch.tensor([user_rows[i] for i in chunk]), **inputs)
            start_of_answer = 0  # generate returns new tokens only
        del inputs["position_ids"]  # generate counts them from the mask
        out = model.generate(**inputs, generation_config=config)[:, start_of_answer:]
        for i, text in zip(chunk, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True):
            answers[i] = text.strip()
    return answers
