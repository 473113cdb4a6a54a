"""A reward model that is read at every candidate for the next token, on one cache: what ARGS needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from prlhf_kit.decoding.readers import Reader, Row
from prlhf_kit.models.conditioning import user_models


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
            input_ids=tokens,
            attention_mask=blocked[:, None],
            position_ids=self.positions + steps,
        )
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
