"""Put a user model in front of any Hugging Face decoder-only model.

`condition(model, user_model)` adds two hooks to the model's backbone. A call `model(input_ids, user_rows=rows)` then
sees T_u user tokens *before the first token of the prompt*; their hidden states are cut off again, so that everything
downstream (the LM head, TRL's fused one, labels, logits) keeps its shape. A call without `user_rows` is not touched.
Hooks, not a wrapper class, because TRL calls the backbone directly and PEFT calls `forward` around any outer hook.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from prlhf_kit.models import load_model
from prlhf_kit.users import IndividualUserModel, UserIndex

ATTRIBUTE = "user_model"  # the name under which PEFT's `modules_to_save` finds it


class ConditioningError(ValueError):
    """The model can't be conditioned on a user; the message says why and what to do."""


def causal_lm(model) -> PreTrainedModel:
    """The causal LM inside a PEFT model; any other model is returned as it is."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def user_model_of(model) -> nn.Module:
    """The user model in front of `model`. Raises `ConditioningError` if there is none."""
    found = getattr(causal_lm(model), ATTRIBUTE, None)
    if found is None:
        raise ConditioningError(
            f"this {type(causal_lm(model)).__name__} has no user model, so it would ignore the user silently. "
            "Call prlhf_kit.condition(model, user_model) first, or load it with prlhf_kit.load_personalized(folder)."
        )
    if getattr(found, "disable_adapters", False):  # PEFT would fall back to the untrained copy
        raise ConditioningError(
            "user_rows were passed while the adapter is disabled. The reference model is not personalised: "
            "leave user_rows out of the call."
        )
    return found


def embed_with_users(
    model,
    rows: torch.Tensor,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Model inputs with the user tokens in front, for left- or right-padded batches.

    Args:
        rows: `[B]`, row of each sequence's user.
        input_ids: `[B, L]`, or `inputs_embeds` `[B, L, d_model]` in its place.
        attention_mask: `[B, L]`, 1 for real tokens; all ones by default.
        position_ids: `[B or 1, L]`; counted from the mask by default.

    Returns:
        `inputs_embeds` `[B, T_u + L, d_model]`, `attention_mask` and `position_ids` `[B, T_u + L]`. Positions count
        real tokens only, so a padded row gets the same logits as the same row alone.
    """
    if inputs_embeds is None:
        inputs_embeds = model.get_input_embeddings()(input_ids)
    batch, length = inputs_embeds.shape[:2]
    if attention_mask is None:
        attention_mask = torch.ones(batch, length, dtype=torch.long, device=inputs_embeds.device)
    if attention_mask.dim() != 2:
        raise ConditioningError(
            f"the attention mask has shape {tuple(attention_mask.shape)}; user tokens can be put in front of a "
            "padding mask of shape [batch, length] only."
        )
    rows = torch.as_tensor(rows, device=inputs_embeds.device)
    if rows.shape != (batch,):
        raise ConditioningError(f"user_rows has shape {tuple(rows.shape)}, expected one row a sequence: ({batch},).")
    users = user_model_of(model)(rows).to(inputs_embeds.dtype)
    attention_mask = torch.cat([attention_mask.new_ones(batch, users.shape[1]), attention_mask], dim=1)
    if position_ids is None:
        position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    else:
        ahead = torch.arange(users.shape[1], device=position_ids.device).expand(position_ids.shape[0], -1)
        position_ids = torch.cat([ahead, position_ids + users.shape[1]], dim=1)
    return {
        "inputs_embeds": torch.cat([users, inputs_embeds], dim=1),
        "attention_mask": attention_mask,
        "position_ids": position_ids,
    }


def condition(model: PreTrainedModel, user_model: nn.Module) -> PreTrainedModel:
    """Attach `user_model` to `model` in place and return `model`. Call it before PEFT wraps the model.

    Raises:
        ConditioningError: an encoder-decoder model, one that is conditioned or wrapped by PEFT already, or one whose
            backbone does not receive `user_rows` and would swallow the user silently (a probe makes sure).
    """
    if isinstance(model, PeftModel):
        raise ConditioningError("the model is wrapped by PEFT already. Condition the base model, then apply PEFT.")
    if model.config.is_encoder_decoder:
        raise ConditioningError(
            f"{type(model).__name__} is an encoder-decoder; only decoder-only models are supported."
        )
    if hasattr(model, ATTRIBUTE):
        raise ConditioningError("the model has a user model already. Load a fresh base model to attach another one.")
    backbone = model.base_model
    if backbone is model:
        raise ConditioningError(f"{type(model).__name__} has no separate backbone below its LM head to hook into.")
    model.add_module(ATTRIBUTE, user_model.to(device=model.device, dtype=model.dtype))
    takes_positions = "position_ids" in inspect.signature(backbone.forward).parameters
    ahead = 0  # user tokens in front of the call that is running

    def prepend(_backbone, args, kwargs):
        nonlocal ahead
        rows = kwargs.pop("user_rows", None)
        ahead = 0
        if rows is None:
            return args, kwargs
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            raise ConditioningError("user_rows belong to the first call only: the cache holds the user tokens already.")
        if args:
            kwargs["input_ids"], args = args[0], args[1:]
        names = ("input_ids", "attention_mask", "position_ids", "inputs_embeds")
        given = {name: kwargs.pop(name, None) for name in names}
        length = (given["input_ids"] if given["inputs_embeds"] is None else given["inputs_embeds"]).shape[1]
        inputs = embed_with_users(model, rows, **given)
        ahead = inputs["inputs_embeds"].shape[1] - length
        if not takes_positions:  # ALiBi models
            del inputs["position_ids"]
        return args, kwargs | inputs

    def cut(_backbone, _args, _kwargs, output):
        if ahead:
            output.last_hidden_state = output.last_hidden_state[:, ahead:]
            if output.hidden_states is not None:
                output.hidden_states = tuple(h[:, ahead:] for h in output.hidden_states)
        return output

    hooks = [
        backbone.register_forward_pre_hook(prepend, with_kwargs=True),
        backbone.register_forward_hook(cut, with_kwargs=True),
    ]
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), user_rows=torch.tensor([0]))
        reason = None if ahead else "its forward does not hand user_rows on to the backbone"
    except TypeError as error:
        reason = str(error)
    if reason:
        for hook in hooks:
            hook.remove()
        delattr(model, ATTRIBUTE)
        raise ConditioningError(
            f"{type(model).__name__} can't be conditioned on users ({reason}). Use a model whose forward passes "
            "unknown keyword arguments to its backbone, as transformers' own decoder-only models do."
        )
    return model


def load_personalized(folder: str | Path, base: str | PreTrainedModel | None = None) -> tuple[PeftModel, UserIndex]:
    """Load what `PersonalizedDPOTrainer.save_model` wrote: the adapter, the user model and the user index.

    Args:
        folder: where `users.json` and the adapter lie.
        base: base model (a name, or a loaded model that is not conditioned yet); default: the one it was trained on.
    """
    index, saved = UserIndex.load(folder)
    if not saved.get("num_tokens"):
        raise ConditioningError(
            f"{folder} holds a vanilla DPO adapter without a user model. Load it with "
            "peft.PeftModel.from_pretrained(prlhf_kit.load_model(...), folder)."
        )
    model = load_model(base or saved["base_model"]) if base is None or isinstance(base, str) else base
    user_model = IndividualUserModel(len(index), model.get_input_embeddings().weight, saved["num_tokens"])
    return PeftModel.from_pretrained(condition(model, user_model), folder).eval(), index
