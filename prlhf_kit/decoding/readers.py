"""Models that read texts token by token with a KV cache: base, policy and reference that share a backbone are rows of
one batch, so that a step reads those weights once."""

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
from transformers import DynamicCache

from prlhf_kit.models.conditioning import ATTRIBUTE, causal_lm, embed_with_users, same_outputs, user_models
from prlhf_kit.models.preference_head import HEAD, heads_on
from prlhf_kit.models.tokenize import padded


@dataclass(frozen=True)
class Row:
    """One text that one model reads while answer `owner` of a batch is written.

    Args:
        ids: of the prompt as this row sees it.
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
def reading(rows: Sequence[Row]) -> Iterator[None]:
    """Within it, the rows' model reads them as a batch, each with or without its adapter and preference head."""
    model, on = rows[0].model, [row.adapter for row in rows]
    adapters: Any = contextlib.nullcontext() if all(on) else _lora_on(model, torch.tensor(on))
    if isinstance(model, PeftModel) and not any(on):
        adapters = model.disable_adapter()
    with adapters, heads_on(causal_lm(model), torch.tensor([row.head and row.adapter for row in rows])):
        yield


@contextlib.contextmanager
def _lora_on(model, rows: torch.Tensor) -> Iterator[None]:
    """LoRA on some rows of a batch, `[R]`: PEFT multiplies what an adapter adds by `scaling`, here a column of 0 and
    1 times it. PEFT's own way (`adapter_names`) hooks every layer at every call: a tenth of a small model's time."""
    layers = [(m, dict(m.scaling), m.weight.device) for m in model.modules() if isinstance(m, LoraLinear)]
    try:
        for layer, scaling, device in layers:
            layer.scaling.update({name: rows.to(device)[:, None, None] * value for name, value in scaling.items()})
        yield
    finally:
        for layer, scaling, _ in layers:
            layer.scaling.update(scaling)


def mixes(model) -> bool:
    """Whether rows with and without the adapter can be of one batch: plain LoRA on linear maps only (no DoRA), beside
    users and preference heads, in a model that keeps rows apart (OPT and mixtures of experts flatten them). Two rows
    are tried."""
    tuners: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    saved = {name for name, module in model.named_modules() if hasattr(module, "modules_to_save")}
    plain = all(type(m) is LoraLinear and not m.lora_variant and not m.merged for m in tuners)
    if not (plain and saved <= {ATTRIBUTE, HEAD}):
        return False
    ids = torch.zeros(2, 3, dtype=torch.long, device=model.get_input_embeddings().weight.device)

    def mixed() -> torch.Tensor:
        with _lora_on(model, torch.tensor([True, False])):
            first, _ = model(input_ids=ids).logits
        return first

    return same_outputs(model, lambda: model(input_ids=ids).logits[0], mixed)


class Reader:
    """Rows of one set of weights, and what they have read so far: with the adapter, without it, or both (`mixes`)."""

    def __init__(self, rows: Sequence[Row]):
        self.rows, self.model = rows, rows[0].model
        self.bare: Any = causal_lm(self.model)
        self.device = self.bare.get_input_embeddings().weight.device
        self.owner = torch.tensor([row.owner for row in rows], device=self.device)
        self.seen = 0  # new tokens that were read
        self.cache: Any = None
        inputs = self._prompts()
        self.mask = inputs.pop("attention_mask")
        self.padded = not self.mask.all()
        self.positions = self.mask.sum(1, keepdim=True) - 1  # of the last token that was read
        self.logits = self._read(position_ids=(self.mask.cumsum(1) - 1).clamp(min=0), **inputs)

    def read(self, new: torch.Tensor) -> torch.Tensor:
        """Logits `[R, V]` after the answers' tokens so far, `[B, n]`: what was not read yet is read in one go."""
        tokens = new.to(self.device)[self.owner, self.seen :]
        if n := tokens.shape[1]:
            self.seen += n
            self.mask = nn.functional.pad(self.mask, (0, n), value=1)
            steps = self.positions + torch.arange(1, n + 1, device=self.device)
            self.positions = steps[:, -1:]
            self.logits = self._read(input_ids=tokens, position_ids=steps)
        return self.logits

    def rewards(self, new: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """What each row says of the candidates `[B, k]` for the next token, `[R, k]`: here their log-probabilities."""
        logits = self.read(new)
        return logits.gather(1, candidates.to(self.device)[self.owner]) - logits.logsumexp(1, keepdim=True)

    def _read(self, **inputs) -> torch.Tensor:
        mask = self.mask if self.padded else None  # attention is faster without
        with reading(self.rows), few_rows(self.bare, len(self.rows)):
            out = self.bare(**inputs, attention_mask=mask, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return out.logits[:, -1].float()

    def _prompts(self) -> dict[str, torch.Tensor]:
        """Rows with and without user tokens in front, in one left-padded batch."""
        ids, mask = (part.to(self.device) for part in padded([row.ids for row in self.rows], None, "left"))
        told = torch.tensor([row.user is not None for row in self.rows], device=self.device)
        if not told.any():
            return {"input_ids": ids, "attention_mask": mask}
        embeds = self.bare.get_input_embeddings()(ids)
        users = torch.tensor([row.user for row in self.rows if row.user is not None])
        with_users = embed_with_users(self.model, users, inputs_embeds=embeds[told], attention_mask=mask[told])
        ahead = with_users["attention_mask"].shape[1] - mask.shape[1]
        embeds, mask = nn.functional.pad(embeds, (0, 0, ahead, 0)), nn.functional.pad(mask, (ahead, 0))
        embeds[told], mask[told] = with_users["inputs_embeds"], with_users["attention_mask"]
        return {"inputs_embeds": embeds, "attention_mask": mask}


class CandidateReader(Reader):
    """A reward model that scores candidates for the next token, all in one forward on the same cache (ARGS).

    The k candidates follow the text as k further tokens that stand at the same position and see the text and
    themselves, but not each other (a 4-D mask). Of them nothing stays: the chosen one is read again with the next ones.

    Args:
        head: hidden states -> rewards, of which number `output` counts.
    """

    def __init__(self, rows: Sequence[Row], head: nn.Module, output: int | slice):
        self.head, self.output = head, output
        super().__init__(rows)

    def rewards(self, new: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Rewards `[R, k]` of the texts that end with each candidate `[B, k]`."""
        pending, candidates = new.to(self.device)[self.owner, self.seen :], candidates.to(self.device)[self.owner]
        n, k = pending.shape[1], candidates.shape[1]
        self.seen += n
        self.mask = nn.functional.pad(self.mask, (0, n), value=1)
        known = self.mask.shape[1]
        sees = torch.zeros(len(pending), n + k, known + k, dtype=torch.bool, device=self.device)
        sees[:, :, :known] = self.mask[:, None].bool()
        sees[:, :n, known - n : known] = torch.ones(n, n, dtype=torch.bool, device=self.device).tril()
        sees[:, n:, known:] = torch.eye(k, dtype=torch.bool, device=self.device)
        blocked = torch.zeros(sees.shape, dtype=self.bare.dtype, device=self.device)
        blocked.masked_fill_(~sees, torch.finfo(self.bare.dtype).min)
        steps = torch.arange(1, n + k + 1, device=self.device).clamp(max=n + 1)
        hidden = self._read(
            input_ids=torch.cat([pending, candidates], 1),
            attention_mask=blocked[:, None],
            position_ids=self.positions + steps,
        )
        self.cache.crop(-k)
        self.positions = self.positions + n
        return self.head(hidden[:, n:])[..., self.output].float()

    def _read(self, **inputs) -> torch.Tensor:
        """Hidden states, in place of the prompts' logits, too."""
        if self.cache is None:
            self.cache = DynamicCache()  # whole texts, in layers with a window too
        inputs = {"attention_mask": self.mask, "past_key_values": self.cache, **inputs}
        with reading(self.rows):
            return self.bare.base_model(**inputs, use_cache=True).last_hidden_state


def reads_candidates(model) -> bool:
    """Whether a reward model's hidden states of candidates, read in one forward, are those of whole texts."""
    bare: Any = causal_lm(model)
    text, candidates = (1, 2, 3), torch.tensor([[4, 5]])

    def found() -> torch.Tensor:
        reader = CandidateReader([Row(0, text, model)], nn.Identity(), slice(None))
        return reader.rewards(candidates[:, :0], candidates)[0, 1]

    whole = torch.tensor([[*text, 5]], device=bare.get_input_embeddings().weight.device)
    return same_outputs(bare, lambda: bare.base_model(input_ids=whole).last_hidden_state[0, -1], found)


FEW = 4


class FewRows(TorchFunctionMode):
    """Within it, linear maps of at most `FEW` rows are a matrix times columns, about as fast in BLAS as one row."""

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
