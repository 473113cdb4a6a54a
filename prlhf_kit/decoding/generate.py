"""Personalised generation: one batch may hold different prompts for different users."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from prlhf_kit.data.chat import prompt_texts
from prlhf_kit.files import nearest, short_hash
from prlhf_kit.models import hub
from prlhf_kit.models.conditioning import check_length, embed_with_users
from prlhf_kit.models.tokenize import padded, require_tokenizer

Prompt = list[dict[str, str]]


class DecodingError(ValueError):
    """The request can't be decoded; the message says why and what to do."""


def require_prompt(prompt: Prompt) -> None:
    """Raise `DecodingError` for what is no list of messages, or has nothing to answer."""
    if isinstance(prompt, str | Mapping) or not all(
        isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in prompt
    ):
        expected = "a list of messages, [{'role': 'user', 'content': text}]; prompts, or one, are a list of such lists"
        raise DecodingError(f"a prompt is {str(prompt)[:80]!r}, expected {expected}.")
    if not prompt or not prompt[-1]["content"].strip():
        raise DecodingError(f"an empty prompt can't be answered: {prompt!r}. Expected messages with text.")


def ids_of(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, ...]:
    """Token ids of a prompt that waits for its answer."""
    require_prompt(prompt)
    [text] = prompt_texts(tokenizer, [prompt], answered=False)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def eos_ids(model, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end an answer: those of the generation config and of the tokenizer."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in [*configured, tokenizer.eos_token_id] if i is not None})


def generation_config(model, tokenizer: PreTrainedTokenizerBase, generation: Mapping[str, Any]) -> GenerationConfig:
    """What `generation` asks for, greedy and 64 new tokens if it does not say."""
    known = GenerationConfig()  # which would take any name and ignore it
    if unknown := [name for name in generation if not hasattr(known, name)]:
        way_out = nearest(unknown[0], vars(known)) or " Leave it out."
        raise DecodingError(f"transformers' GenerationConfig has no option {unknown[0]!r}.{way_out}")
    return GenerationConfig(
        **{"max_new_tokens": 64, "do_sample": False, **generation},
        eos_token_id=eos_ids(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


def batches_of(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Numbers of the prompts of each batch, long and short ones apart, so that little is spent on padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def identity(model) -> str:
    """16 hex digits that tell apart models that answer differently: their weights, the scale of their adapters, and
    which of these are on. About a second a GB."""
    scales = {n: m.scaling for n, m in model.named_modules() if isinstance(getattr(m, "scaling", None), dict)}
    active = list(model.active_adapters) if isinstance(model, PeftModel) else []
    off = any(getattr(module, "disable_adapters", False) is True for module in model.modules())
    return short_hash(hub.weights_hash(model), scales, active, off)


class Written(NamedTuple):
    """An answer without special tokens, how many tokens it has, and whether it ended by itself."""

    answer: str
    tokens: int
    finished: bool


@torch.inference_mode()
def write_batch(
    model,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Sequence[int]],
    user_rows: Sequence[int] | None,
    config: GenerationConfig,
) -> list[Written]:
    """Answers to some prompts, as token ids."""
    device = model.get_input_embeddings().weight.device
    ids, mask = (part.to(device) for part in padded(texts, None, "left"))
    inputs = {"input_ids": ids, "attention_mask": mask}
    if user_rows is not None:
        inputs = embed_with_users(model, torch.tensor(user_rows), ids, mask)
        del inputs["position_ids"]  # generate counts them from the mask
        # penalties go by the ids, of which the users' soft tokens have none: as for padding, the first ones count
        ids = torch.cat([ids[:, :1].expand(-1, inputs["attention_mask"].shape[1] - ids.shape[1]), ids], 1)
        inputs["input_ids"] = ids
    more = {"tokenizer": tokenizer} if config.stop_strings else {}
    out = model.generate(**inputs, generation_config=config, **more)[:, ids.shape[1] :]
    kept = [until_end(new, config) for new in out.tolist()]
    answers = tokenizer.batch_decode([new for new, _ in kept], skip_special_tokens=True)
    return [Written(text.strip(), len(new), ended) for text, (new, ended) in zip(answers, kept, strict=True)]


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
    """Answers to `prompts[i]` for the user of row `user_rows[i]`, without special tokens; in batches, with a KV cache.

    Args:
        model: personalised model; with `user_rows=None`, any causal LM.
        prompts: chat messages, the last one of role "user".
        user_rows: `[n]`, 0 = generic user; `UserIndex.rows` gives those of users' ids.
        seed: of sampling, applied before the first batch.
        generation: what transformers' `generate` takes, e.g. `max_new_tokens=64, do_sample=True, temperature=0.7`.

    Raises:
        DecodingError: an empty prompt, an unknown option, or not one user row a prompt.
        ConditioningError: prompt, user tokens and answer don't fit into the model's context.
        ModelError: the model was trained with another tokenizer.
    """
    require_tokenizer(model, tokenizer)
    config = generation_config(model, tokenizer, generation)
    texts = [ids_of(tokenizer, prompt) for prompt in prompts]
    if user_rows is not None and (len(user_rows) != len(prompts) or any(isinstance(row, str) for row in user_rows)):
        raise DecodingError(
            f"user_rows is {user_rows!r:.80} for {len(prompts)} prompts, expected one each: index.rows(user_ids)."
        )
    if seed is not None:
        torch.manual_seed(seed)
    check_length(model, max(map(len, texts), default=0) + config.max_new_tokens, users=user_rows is not None)
    answers: dict[int, str] = {}
    batches = batches_of([len(text) for text in texts], batch_size)
    for chunk in tqdm(batches, desc="generating", disable=None, leave=False):
        rows = None if user_rows is None else [user_rows[i] for i in chunk]
        written = write_batch(model, tokenizer, [texts[i] for i in chunk], rows, config)
        answers |= zip(chunk, (one.answer for one in written), strict=True)
    return [answers[i] for i in range(len(prompts))]
