"""PAD's preference head: one linear map of the last hidden state before the LM head (arXiv 2410.04070, Eq. 9)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

HEAD = "preference_head"  # the name under which PEFT's `modules_to_save` finds it
_ROWS = "_preference_head_rows"


def attach_head(model: PreTrainedModel) -> PreTrainedModel:
    """Put a preference head, the identity, behind the backbone of `model` and return `model`.

    A hook, as for users (`conditioning.condition`). With adapters disabled the head is off: the reference has none.
    """
    width = model.get_output_embeddings().weight.shape[1]
    head = nn.Linear(width, width, device=model.device, dtype=torch.float32)
    with torch.no_grad():
        nn.init.eye_(head.weight)
        nn.init.zeros_(head.bias)
    model.add_module(HEAD, head)

    def apply(_backbone, _args, _kwargs, output):
        found: Any = getattr(model, HEAD)
        rows = model.__dict__.get(_ROWS)
        if getattr(found, "disable_adapters", False):
            return output
        hidden = output.last_hidden_state
        output.last_hidden_state = found(hidden.to(torch.float32)).to(hidden.dtype)
        if rows is not None:
            output.last_hidden_state = output.last_hidden_state.where(rows.to(hidden.device)[:, None, None], hidden)
        return output

    model.base_model.register_forward_hook(apply, with_kwargs=True)
    return model


@contextlib.contextmanager
def heads_on(model: PreTrainedModel, rows: torch.Tensor) -> Iterator[None]:
    """Within it, the preference head of `model` (if any) acts on the `rows` of a batch only: `[R]`, boolean."""
    model.__dict__[_ROWS] = rows
    try:
        yield
    finally:
        model.__dict__.pop(_ROWS, None)
