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
from transformers import DynamicCache

from prlhf_kit.conditioning import ATTRIBUTE, causal_lm, embed_with_users, user_models
from prlhf_kit.decoding.few_rows import few_rows
from prlhf_kit.preference_head import HEAD, heads_on


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
        self.length = 0
        self.cache: Any = None
        on = torch.tensor([row.adapter for row in rows], device=self.device)
        self.gate = _Gate(self.bare, on) if on.any() and not on.all() else None
        self.off = not on.any() and isinstance(self.model, PeftModel)

    def start(self) -> torch.Tensor:
        """Read the prompts. Returns the logits of the first token, `[R, V]`."""
        inputs = self._embedded() if any(row.user is not None for row in self.rows) else self._padded()
        mask = inputs.pop("attention_mask")
        self.mask, self.length = None if mask.all() else mask, mask.shape[1]
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
        width = max(len(row.ids) for row in self.rows)
        ids = torch.full((len(self.rows), width), self.pad_token_id, device=self.device)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(self.rows):
            ids[number, width - len(row.ids) :] = torch.tensor(row.ids)
            mask[number, width - len(row.ids) :] = 1
        return {"input_ids": ids, "attention_mask": mask}

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


class CandidateReader(Reader):
    """A reward model that scores candidates for the next token, all in one forward on the same cache (ARGS).

    The k candidates follow the text as k further tokens that stand at the same position and see the text and
    themselves, but not each other (a 4-D mask). Of the chosen one keys and values stay.
    """

    def __init__(self, rows: Sequence[Row], pad_token_id: int, pooling: str, dimension: int | None, head: nn.Module):
        super().__init__(rows, pad_token_id)
        self.pooling, self.dimension, self.head = pooling, dimension, head
        self.pooled: Any = None  # of all that was read: sum or maximum `[R, d]`
        self.count = torch.zeros(len(rows), 1, device=self.device)
        self.cache = DynamicCache()  # whole texts, in layers with a window too
        self.width = 0

    def start(self) -> torch.Tensor:
        inputs = self._padded()
        mask, users = inputs["attention_mask"], [row.user for row in self.rows]
        if users[0] is not None:  # a reward model knows users, or it doesn't
            inputs["user_rows"] = torch.tensor(users)
        else:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        hidden = self._hidden(**inputs)
        self._remember(hidden, mask)
        ahead = user_models(self.model)[0].num_tokens if users[0] is not None else 0
        left = (mask == 0).sum(1, keepdim=True)
        self.mask = (torch.arange(mask.shape[1] + ahead, device=self.device) >= left).long()
        self.positions = self.mask.sum(1, keepdim=True) - 1
        return hidden[:, -1]

    def score(self, pending: torch.Tensor | None, candidates: torch.Tensor) -> torch.Tensor:
        """Rewards `[R, k]` of the candidates `[B, k]`, after `pending` `[B, n]` tokens that are certain already."""
        assert self.mask is not None
        candidates = candidates.to(self.device)[self.owner]
        k, n = candidates.shape[1], 0
        if pending is not None:
            pending = pending.to(self.device)[self.owner]
            n = pending.shape[1]
            self.mask = nn.functional.pad(self.mask, (0, n), value=1)
        tokens = candidates if pending is None else torch.cat([pending, candidates], 1)
        steps = torch.cat([torch.arange(1, n + 1), torch.full((k,), n + 1)]).to(self.device)
        known = self.mask.shape[1]
        seen = torch.zeros(len(tokens), n + k, known + k, dtype=torch.bool, device=self.device)
        seen[:, :, :known] = self.mask[:, None].bool()
        seen[:, :n, known - n : known] = torch.ones(n, n, dtype=torch.bool, device=self.device).tril()
        seen[:, n:, known:] = torch.eye(k, dtype=torch.bool, device=self.device)
        blocked = torch.zeros(seen.shape, dtype=self.bare.dtype, device=self.device)
        blocked.masked_fill_(~seen, torch.finfo(self.bare.dtype).min)
        hidden = self._hidden(
            input_ids=tokens, attention_mask=blocked[:, None], position_ids=self.positions + steps,
        )  # fmt: skip
        self._remember(hidden[:, :n], torch.ones_like(tokens[:, :n]))
        self.positions = self.positions + n
        self.width, self.candidates = k, hidden[:, n:]
        found = self.head(self._with(self.candidates))
        return (found[..., 0] if self.dimension is None else found[..., self.dimension]).float()

    def choose(self, picked: torch.Tensor) -> None:
        """Which candidate `[B]` became the next token: of the others nothing stays."""
        picked = picked.to(self.device)[self.owner]
        rows = torch.arange(len(picked), device=self.device)
        for layer in self.cache.layers:
            first = layer.keys.shape[2] - self.width
            layer.keys[:, :, first] = layer.keys[rows, :, first + picked]
            layer.values[:, :, first] = layer.values[rows, :, first + picked]
        self.cache.crop(1 - self.width)
        assert self.mask is not None
        self.mask = nn.functional.pad(self.mask, (0, 1), value=1)
        self.positions = self.positions + 1
        self._remember(self.candidates[rows, picked][:, None], torch.ones_like(rows)[:, None])

    def keep(self, alive: torch.Tensor) -> None:
        before = self.owner
        super().keep(alive)
        rows = torch.isin(before, alive.to(self.device)).nonzero().squeeze(1)
        self.count = self.count[rows]
        if self.pooled is not None:
            self.pooled = self.pooled[rows]

    def _hidden(self, **inputs) -> torch.Tensor:
        out = self.bare.base_model(**inputs, past_key_values=self.cache, use_cache=True)
        return out.last_hidden_state

    def _remember(self, hidden: torch.Tensor, mask: torch.Tensor) -> None:
        """For a reward that is read off all tokens' mean or maximum."""
        real = mask[..., None].bool()
        self.count = self.count + mask.sum(1, keepdim=True)
        if self.pooling == "mean":
            found = (hidden.float() * real).sum(1)
            self.pooled = found if self.pooled is None else self.pooled + found
        elif self.pooling == "max" and hidden.shape[1]:
            found = hidden.masked_fill(~real, -torch.inf).amax(1)
            self.pooled = found if self.pooled is None else torch.maximum(self.pooled, found)

    def _with(self, candidates: torch.Tensor) -> torch.Tensor:
        if self.pooling == "mean":
            return ((self.pooled[:, None] + candidates.float()) / (self.count + 1)[..., None]).to(candidates.dtype)
        if self.pooling == "max":
            return torch.maximum(self.pooled[:, None], candidates)
        return candidates


@torch.inference_mode()
def reads_candidates(model, pooling: str) -> bool:
    """Whether a reward model's hidden states of candidates, read in one forward, are those of whole texts: a short
    one is tried."""
    text, candidates = (1, 2, 3), torch.tensor([[4, 5]])
    reader = CandidateReader([Row(0, text, model)], 0, pooling, None, nn.Identity())
    try:
        reader.start()
        reader.score(None, candidates)
        whole = torch.tensor([[*text, 5]], device=reader.device)
        wanted = reader.bare.base_model(input_ids=whole).last_hidden_state[0, -1].float()
    except (RuntimeError, ValueError, TypeError):  # what models say to such a mask
        return False
    found = reader.candidates[0, 1].float()
    tolerance = 1e-3 if reader.bare.dtype == torch.float32 else 0.05
    return bool((found - wanted).norm() < tolerance * wanted.norm())
