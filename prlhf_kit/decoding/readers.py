"""Models that read a text token by token, each set of weights once a step, with a KV cache.

Guided decoding compares several distributions over the next token: the base's, a policy's, a reference's. Where two of
them are one backbone with its adapter on and off, or with different users in front, they are rows of one batch here, so
that a step reads those weights once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from prlhf_kit.models.conditioning import ATTRIBUTE, causal_lm, embed_with_users, user_models
from prlhf_kit.models.preference_head import HEAD, heads_on
from prlhf_kit.models.tokenize import padded


@dataclass(frozen=True)
class Row:
    """One text that one model reads while answer `owner` of a batch is written.

    Args:
        owner: number of the answer in its batch.
        ids: token ids of the prompt as this row sees it.
        model: causal LM, or PEFT around one.
        adapter: with its adapter; False: the model that it was put on.
        head: with its preference head, where it has one (`training/persrm.py`).
        user: row of the user whose soft tokens come first; None: none do.
    """

    owner: int
    ids: tuple[int, ...]
    model: Any
    adapter: bool = True
    head: bool = True
    user: int | None = None

    @property
    def length(self) -> int:
        """Tokens, those of the user included."""
        return len(self.ids) + (0 if self.user is None else user_models(self.model)[0].num_tokens)


@contextlib.contextmanager
def reading(row: Row, n: int) -> Iterator[None]:
    """Within it, `row.model` reads batches of `n` rows as `row` says: with its adapter and head, or without."""
    with contextlib.ExitStack() as stack:
        if isinstance(row.model, PeftModel) and not row.adapter:
            stack.enter_context(row.model.disable_adapter())
        stack.enter_context(heads_on(causal_lm(row.model), torch.full((n,), row.head)))
        yield


def _tuners(model) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, BaseTunerLayer)]


def mixes(model) -> bool:
    """Whether rows with and without the adapter can be of one batch: plain LoRA on linear maps only (no DoRA), beside
    users and preference heads, in a model that keeps rows apart (OPT and mixtures of experts flatten them). Two rows
    are tried."""
    saved = {name for name, module in model.named_modules() if hasattr(module, "modules_to_save")}
    plain = all(type(m) is LoraLinear and not m.lora_variant and not m.merged for m in _tuners(model))
    if not (plain and saved <= {ATTRIBUTE, HEAD}):
        return False
    if not _tuners(model):
        return True
    ids = torch.zeros(2, 3, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    with torch.inference_mode():
        wanted = model(input_ids=ids).logits[0]
        try:
            with _Gate(model, torch.tensor([True, False]))():
                found = model(input_ids=ids).logits
        except RuntimeError:
            return False
    return found.shape[0] == 2 and torch.allclose(found[0], wanted, rtol=1e-2, atol=1e-2)


class _Gate:
    """LoRA of some rows of a batch: PEFT multiplies what an adapter adds by its `scaling`, here a column of factors."""

    def __init__(self, model, on: torch.Tensor):
        self.layers = [(layer, dict(layer.scaling), layer.weight.device) for layer in _tuners(model)]
        self.on = on.float()[:, None, None]

    def keep(self, rows: torch.Tensor) -> None:
        self.on = self.on[rows]

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        factor: dict[tuple[float, torch.device], torch.Tensor] = {}
        try:
            for layer, scaling, device in self.layers:
                for name, value in scaling.items():
                    if (value, device) not in factor:
                        factor[value, device] = self.on.to(device) * value
                    layer.scaling[name] = factor[value, device]
            yield
        finally:
            for layer, scaling, _ in self.layers:
                layer.scaling.update(scaling)


class Reader:
    """Rows of one set of weights, and what they have read so far.

    Either `mixes(model)`, or all rows have the adapter or none has.

    `owner` `[R]` says whose each row is; a batch's answers are numbered by their place among those still written.
    """

    def __init__(self, rows: Sequence[Row], pad_token_id: int):
        self.model = rows[0].model
        self.bare: Any = causal_lm(self.model)
        self.device = self.bare.get_input_embeddings().weight.device
        self.owner = torch.tensor([row.owner for row in rows], device=self.device)
        self.rows, self.pad_token_id = rows, pad_token_id
        self.heads = torch.tensor([row.head and row.adapter for row in rows], device=self.device)
        self.mask: torch.Tensor | None = None  # none where no row is padded: attention is faster without
        self.cache: Any = None
        on = torch.tensor([row.adapter for row in rows], device=self.device)
        self.gate = _Gate(self.bare, on) if on.any() and not on.all() else None
        self.off = not on.any() and isinstance(self.model, PeftModel)

    def start(self) -> torch.Tensor:
        """Read the prompts. Returns the logits of the first token, `[R, V]`."""
        inputs = self._embedded() if any(row.user is not None for row in self.rows) else self._padded()
        mask = inputs.pop("attention_mask")
        self.mask = None if mask.all() else mask
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        self.positions = positions[:, -1:]
        return self._call(attention_mask=self.mask, position_ids=positions, **inputs)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read the next tokens of every answer, `[B, n]`. Returns the logits of the one after them, `[R, V]`."""
        tokens = tokens.to(self.device)[self.owner]
        n = tokens.shape[1]
        if self.mask is not None:
            self.mask = nn.functional.pad(self.mask, (0, n), value=1)
        positions = self.positions + torch.arange(1, n + 1, device=self.device)
        self.positions = positions[:, -1:]
        return self._call(input_ids=tokens, attention_mask=self.mask, position_ids=positions)

    def keep(self, alive: torch.Tensor) -> None:
        """Only the rows of the answers `alive` `[b]` (numbers, ascending) stay."""
        alive = alive.to(self.device)
        place = torch.full((int(max(self.owner.max(), alive.max())) + 1,), -1, device=self.device)
        place[alive] = torch.arange(len(alive), device=self.device)
        rows = (place[self.owner] >= 0).nonzero().squeeze(1)
        self.owner, self.heads, self.positions = place[self.owner[rows]], self.heads[rows], self.positions[rows]
        if self.mask is not None:
            self.mask = self.mask[rows]
        if self.gate is not None:
            self.gate.keep(rows)
        self.cache.batch_select_indices(rows)

    def _call(self, **inputs) -> torch.Tensor:
        with contextlib.ExitStack() as stack:
            if self.gate is not None:
                stack.enter_context(self.gate())
            if self.off:
                stack.enter_context(self.model.disable_adapter())
            stack.enter_context(heads_on(self.bare, self.heads))
            stack.enter_context(few_rows(self.bare, len(self.owner)))
            out = self.bare(**inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return out.logits[:, -1].float()

    def _padded(self) -> dict[str, torch.Tensor]:
        ids, mask = padded([list(row.ids) for row in self.rows], self.pad_token_id, "left")
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def _embedded(self) -> dict[str, torch.Tensor]:
        """Rows with and without user tokens in front, in one left-padded batch."""
        found = self._padded()
        embeds, mask = self.bare.get_input_embeddings()(found["input_ids"]), found["attention_mask"]
        told = torch.tensor([row.user is not None for row in self.rows], device=self.device)
        users = torch.tensor([row.user for row in self.rows if row.user is not None])
        with_users = embed_with_users(self.model, users, inputs_embeds=embeds[told], attention_mask=mask[told])
        ahead = with_users["attention_mask"].shape[1] - mask.shape[1]
        embeds = nn.functional.pad(embeds, (0, 0, ahead, 0))
        mask = nn.functional.pad(mask, (ahead, 0))
        embeds[told], mask[told] = with_users["inputs_embeds"], with_users["attention_mask"]
        return {"inputs_embeds": embeds, "attention_mask": mask}


FEW = 4


class FewRows(TorchFunctionMode):
    """Within it, `torch.nn.functional.linear` of at most `FEW` rows takes that road."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear and not kwargs and args[0].numel() <= FEW * args[0].shape[-1]:
            x, weight, *bias = args
            rows = x.reshape(-1, x.shape[-1])
            n = len(rows)
            found = (weight @ (torch.cat([rows, rows]) if n == 1 else rows).t()).t()[:n]
            if bias and bias[0] is not None:
                found = found + bias[0]
            return found.reshape(*x.shape[:-1], len(weight))
        return func(*args, **(kwargs or {}))


def few_rows(model, rows: int):
    """`FewRows` where it helps: float32 on a CPU, and at most `FEW` rows; else nothing."""
    weight = model.get_input_embeddings().weight
    if rows <= FEW and weight.device.type == "cpu" and weight.dtype == torch.float32:
        return FewRows()
    return contextlib.nullcontext()
