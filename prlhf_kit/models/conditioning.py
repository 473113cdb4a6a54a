"""Put a user model in front of any Hugging Face decoder-only model, by two hooks on its backbone (which TRL calls
directly). Users' hidden states are cut off again, so shapes stay. A call without `user_rows` is not touched."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from prlhf_kit.models.user_models import UserModel

ATTRIBUTE = "user_model"  # the name under which PEFT's `modules_to_save` finds it


class ConditioningError(ValueError):
    """The model can't be conditioned on a user; the message says why and what to do."""


def causal_lm(model) -> PreTrainedModel:
    """The causal LM inside a PEFT model; any other model is returned as it is."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def user_model_of(model) -> Any:
    """The user model in front of `model`. Raises `ConditioningError` if there is none."""
    found = getattr(causal_lm(model), ATTRIBUTE, None)
    if found is None:
        raise ConditioningError(
            f"this {type(causal_lm(model)).__name__} has no user model and would ignore the user silently: call "
            "prlhf_kit.condition(model, user_model) first, or load it with prlhf_kit.load_personalized."
        )
    if getattr(found, "disable_adapters", False):  # PEFT would fall back to the untrained copy
        raise ConditioningError(
            "the adapter is disabled: the reference model is not personalised, leave user_rows out."
        )
    return found


def user_models(model) -> list[Any]:
    """The user model in front of `model`; where PEFT wraps it, its untrained and its trained copies; none: []."""
    found: Any = getattr(causal_lm(model), ATTRIBUTE, None)
    if hasattr(found, "modules_to_save"):
        return [found.original_module, *found.modules_to_save.values()]
    return [] if found is None else [found]


def embed_with_users(
    model,
    rows: torch.Tensor,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Model inputs with the user tokens before each row's first real token, for left- or right-padded batches; after
    that token (BOS, as a rule) where the user model says `after_bos`.

    Args:
        rows: `[B]`, row of each sequence's user; or `[B, T_u, d_model]`, the user tokens themselves.
        input_ids, attention_mask: `[B, L]`; or `inputs_embeds` `[B, L, d_model]` in place of the former.

    Returns:
        `inputs_embeds` `[B, T_u + L, d_model]`, `attention_mask` and `position_ids` `[B, T_u + L]`. Positions count
        real tokens only and left padding stays on the left, so a padded row gets the logits that it gets alone.
    """
    if inputs_embeds is None:
        inputs_embeds = model.get_input_embeddings()(input_ids)
    batch, length = inputs_embeds.shape[:2]
    if attention_mask is None:
        attention_mask = torch.ones(batch, length, dtype=torch.long, device=inputs_embeds.device)
    if attention_mask.dim() != 2:
        raise ConditioningError(f"the attention mask is {tuple(attention_mask.shape)}, expected [batch, length].")
    rows = torch.as_tensor(rows, device=inputs_embeds.device)
    if len(rows) != batch or rows.dim() != (3 if rows.is_floating_point() else 1):
        raise ConditioningError(f"user_rows has shape {tuple(rows.shape)}, expected one row a sequence: ({batch},).")
    user_model = user_model_of(model)
    known = user_model.num_rows
    if not rows.is_floating_point() and not 0 <= int(rows.min()) <= int(rows.max()) < known:
        raise ConditioningError(
            f"user rows go from 0 to {known - 1}, got {int(rows.min())} to {int(rows.max())}: see its UserIndex."
        )
    users = (rows if rows.is_floating_point() else user_model(rows)).to(inputs_embeds.dtype)
    ahead = users.shape[1]
    check_length(model, ahead + int(attention_mask.sum(1).max()))
    # slots of [users, row] in the order [left padding, (first token,) users, other real tokens]
    slots = torch.arange(ahead + length, device=inputs_embeds.device).expand(batch, -1)
    front = _front(user_model, attention_mask)
    order = torch.where(slots < front, slots + ahead, torch.where(slots < front + ahead, slots - front, slots))
    attention_mask = torch.cat([attention_mask.new_ones(batch, ahead), attention_mask], dim=1).gather(1, order)
    joined = torch.cat([users, inputs_embeds], dim=1)
    return {
        "inputs_embeds": joined.gather(1, order[..., None].expand_as(joined)),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
    }


def _front(user_model: UserModel, attention_mask: torch.Tensor) -> torch.Tensor:
    """Where each row's user tokens begin, `[B, 1]`: behind left padding, and BOS where the user model says so."""
    return attention_mask.long().argmax(1, keepdim=True) + bool(user_model.after_bos)


def context_of(config: PretrainedConfig) -> int | None:
    """Tokens that a model of this configuration reads at most; None where it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_length(model, tokens: int, users: bool = False) -> None:
    """Raise `ConditioningError` where so many tokens (and with `users` the user's) exceed the model's context."""
    tokens += user_model_of(model).num_tokens if users else 0
    limit = context_of(model.config)
    if limit is not None and tokens > limit:
        raise ConditioningError(
            f"a text of {tokens} tokens (user tokens and max_new_tokens included) exceeds the model's context of "
            f"{limit}. Shorten or drop it: kit.data.check drops over-long prompts, max_length cuts training texts."
        )


def condition(model: PreTrainedModel, user_model: UserModel) -> PreTrainedModel:
    """Attach `user_model` to `model` in place and return `model`. Call it before PEFT wraps the model.

    `model(input_ids, user_rows=rows)` then sees T_u user tokens in front of each text.

    Raises:
        ConditioningError: no `UserModel`, a model with an encoder, one that is conditioned or wrapped by PEFT already,
            or one that would swallow the user silently (a probe makes sure).
    """
    if isinstance(model, PeftModel):
        raise ConditioningError("the model is wrapped by PEFT already. Condition the base model, then apply PEFT.")
    if model.config.is_encoder_decoder or model.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ConditioningError(f"{type(model).__name__} has an encoder; only decoder-only models are supported.")
    if hasattr(model, ATTRIBUTE):
        raise ConditioningError("the model has a user model already. Load a fresh base model to attach another one.")
    if not isinstance(user_model, UserModel):
        raise ConditioningError(f"a {type(user_model).__name__} is no user model. Derive it from kit's UserModel.")
    backbone = model.base_model
    # float32 whatever the model's: in bfloat16 a row could not take small steps
    model.add_module(ATTRIBUTE, user_model.to(device=model.device, dtype=torch.float32))
    held: torch.Tensor | None = None  # user_rows of the call that is running
    kept: torch.Tensor | None = None  # its slots [B, L] that are not user tokens

    forward = model.forward

    @functools.wraps(forward)  # not a hook: PEFT calls `forward`, and GPT-J's would swallow the users
    def with_users(*args, user_rows=None, **kwargs):
        nonlocal held
        held = user_rows
        try:
            return forward(*args, **kwargs)
        finally:
            held = None

    def prepend(_backbone, args, kwargs):
        nonlocal kept
        rows, kept = kwargs.pop("user_rows", held), None
        if rows is None:
            return args, kwargs
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            raise ConditioningError("user_rows belong to the first call only: the cache holds the user tokens already.")
        if args:
            kwargs["input_ids"], args = args[0], args[1:]
        given = {name: kwargs.pop(name, None) for name in ("input_ids", "attention_mask", "inputs_embeds")}
        length = (given["input_ids"] if given["inputs_embeds"] is None else given["inputs_embeds"]).shape[1]
        inputs = embed_with_users(model, rows, **given)
        batch, total = inputs["attention_mask"].shape
        slots = torch.arange(length, device=inputs["attention_mask"].device).expand(batch, -1)
        front = _front(user_model, inputs["attention_mask"])
        kept = slots + (total - length) * (slots >= front)  # the row's own tokens, behind the T_u user tokens
        return args, kwargs | inputs

    def cut(_backbone, _args, _kwargs, output):
        if kept is not None:  # [B, T_u + L, d_model] -> [B, L, d_model]: what follows sees the length that it gave
            index = kept[..., None]
            output.last_hidden_state = output.last_hidden_state.take_along_dim(index, 1)
            if output.hidden_states is not None:
                output.hidden_states = tuple(h.take_along_dim(index, 1) for h in output.hidden_states)
        return output

    hooks = [
        backbone.register_forward_pre_hook(prepend, with_kwargs=True),
        backbone.register_forward_hook(cut, with_kwargs=True),
    ]
    model.forward = with_users
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), user_rows=torch.tensor([0]))
        reason = None if kept is not None else "its forward does not call its backbone"
    except Exception as error:  # whatever the probe stumbles over, the model is handed back as it was
        reason = f"{type(error).__name__}: {error}"
    if reason:
        for hook in hooks:
            hook.remove()
        model.forward = forward
        delattr(model, ATTRIBUTE)
        raise ConditioningError(
            f"{type(model).__name__} can't be conditioned on users ({reason}). Use a model whose forward calls its "
            "backbone, as Llama, Mistral, Qwen, Gemma, GPT-2, GPT-J and GPT-NeoX do (OPT does not)."
        )
    return model


def longest_shared(model: PreTrainedModel) -> float:
    """Tokens up to which a 4-D mask says all that the model's own masks say: infinite, or 0 where it never does."""
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return 0  # flash attention takes no masks, flex attention others
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((window for window in windows if window), default=math.inf)


def same_outputs(model: PreTrainedModel, wanted: Callable, found: Callable) -> bool:
    """Whether two ways to call `model` give the same tensor, up to rounding; False where the second one raises."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = wanted().float()
            difference = (found().float() - expected).norm()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError):  # what a model says to a 4-D mask, to embeddings or to positions
        return False
    finally:
        model.train(training)
    return bool(difference < (1e-3 if model.dtype == torch.float32 else 0.05) * expected.norm())
