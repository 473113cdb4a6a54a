"""The steered base as a causal LM, for transformers' `generate`, which does all else: penalties, lengths, the loop."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.generation import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.modeling_outputs import CausalLMOutput

from prlhf_kit.decoding.answers import GuidedAnswer
from prlhf_kit.decoding.generate import Prompt, eos_ids
from prlhf_kit.decoding.guides import Guide, Who
from prlhf_kit.decoding.readers import Reader, Row
from prlhf_kit.models.conditioning import causal_lm
from prlhf_kit.models.tokenize import padded

if TYPE_CHECKING:
    from prlhf_kit.decoding.guided import GuidedDecoder

PER_TOKEN = ("tokens", "base_tokens", "logps", "base_logps", "rewards", "base_rewards")


@dataclass(frozen=True)
class Request:
    """One answer to write. `key` tells it from all others, and is the seed of its sampling."""

    prompt: Prompt
    who: Who
    key: str
    base: Row
    guide: list[tuple[Row, float]]

    @property
    def rows(self) -> list[Row]:
        """All that is read for it."""
        return [self.base, *(row for row, _ in self.guide)]


class Steered(PreTrainedModel, GenerationMixin):
    """A batch of answers, as a model for `generate`: `forward` reads the base's rows and what shares their weights,
    `steer` is the formula, `end` notes which answers have ended. Caches are the readers' own."""

    @torch.inference_mode()  # prompts are read here
    def __init__(self, decoder: "GuidedDecoder", jobs: Sequence[Request]):
        super().__init__(PreTrainedConfig(vocab_size=decoder.vocabulary))
        self.settings, self.guide = decoder, decoder.guide
        rows = [replace(job.base, owner=i) for i, job in enumerate(jobs)]
        factors: dict[Row, float] = defaultdict(float)
        for i, job in enumerate(jobs if any(decoder.weights) else ()):
            for row, factor in job.guide:
                factors[replace(row, owner=i)] += factor
        # rows that share the base's weights join its batch and need no reader of their own
        plain = type(self.guide).reader is Guide.reader
        base = (id(causal_lm(decoder.base_model)), decoder.mixes or decoder.base_adapter)
        beside, apart = dict.fromkeys(rows, 0.0), defaultdict[object, dict[Row, float]](dict)
        for row, factor in factors.items():
            weights = (id(causal_lm(row.model)), decoder.mixes or row.adapter)
            mine = beside if plain and (row in beside or weights == base) else apart[weights]
            mine[row] = factor
        self.base = Reader(list(beside))
        readers = [(self.base, beside), *((self.guide.reader(list(rows)), rows) for rows in apart.values())]
        asked = [(reader, [*factor_of.values()]) for reader, factor_of in readers if any(factor_of.values())]
        self.readers = [(reader, torch.tensor(factors, device=reader.device)) for reader, factors in asked]
        self.texts = padded([job.base.ids for job in jobs], None, "left")[0].to(self.device)
        self.width = self.texts.shape[1]
        seeds = [torch.Generator().manual_seed(int(job.key[:15], 16)) for job in jobs]
        self.drawn = torch.stack([torch.rand(decoder.max_new_tokens, generator=s) for s in seeds]).to(self.device)
        self.ends = torch.tensor(eos_ids(causal_lm(decoder.base_model), decoder.tokenizer), device=self.device)
        strings = [decoder.stop_strings] if isinstance(decoder.stop_strings, str) else list(decoder.stop_strings)
        self.stops = StopStringCriteria(decoder.tokenizer, strings) if strings else None
        self.columns: list[torch.Tensor] = []  # `[B, len(PER_TOKEN)]` of each token
        self.length = [0] * len(jobs)
        self.ended = torch.zeros(len(jobs), dtype=torch.bool, device=self.device)

    @property
    def device(self) -> torch.device:
        """The base's."""
        return self.base.device

    @torch.inference_mode()
    def write(self, at_once: int) -> Iterator[list[GuidedAnswer]]:
        """The answers so far, after every `at_once` tokens."""
        decoder = self.settings
        while not self.ended.all() and len(self.columns) < decoder.max_new_tokens:
            longest = self.texts.shape[1] + at_once
            config = GenerationConfig(
                max_length=longest,
                min_length=min(self.width + decoder.min_new_tokens, longest),
                repetition_penalty=float(decoder.repetition_penalty),
                eos_token_id=self.ends.tolist() or None,
                pad_token_id=decoder.tokenizer.pad_token_id or 0,  # what is behind an answer's end
                use_cache=False,  # readers have their own, as of what follows
            )
            ours: Any = LogitsProcessorList([self.steer]), StoppingCriteriaList([self.end])
            self.texts = self.generate(self.texts, config, *ours, attention_mask=torch.ones_like(self.texts))
            yield self.answers()

    def forward(self, input_ids: torch.Tensor, **_) -> CausalLMOutput:
        """The base's logits of the next token."""
        logits = self.base.read(input_ids[:, self.width :])[: len(input_ids), None, : self.settings.vocabulary]
        return CausalLMOutput(logits=logits)

    def steer(self, texts: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The base's processed logits `[B, V]` to those of the one token that is chosen."""
        decoder, new = self.settings, texts[:, self.width :]
        step = new.shape[1]
        logp = logits.log_softmax(-1)
        # by id, since among equals the first one counts in generate
        candidates = logp.topk(decoder.top_k).indices.sort(-1).values
        values = logp.gather(1, candidates)
        weight, rewards, scores = decoder.weights[step], torch.full_like(values, torch.nan), values
        if weight != 0:
            rewards = torch.zeros_like(values)
            for reader, factor in self.readers:
                said = factor[:, None] * reader.rewards(new, candidates)
                rewards.index_add_(0, reader.owner.to(self.device), said.to(self.device))
            # score(v) = base_factor * base(v) + w * reward(v), see guides.py
            steered = self.guide.base_factor(weight) * values + weight * rewards
            scores = torch.where(values.isfinite(), steered, values)
        picked = self._pick(torch.stack([scores, values]), self.drawn[:, step])
        self.columns.append(torch.cat([of.gather(1, picked).double() for of in (candidates, values, rewards)], 1))
        return torch.full_like(logits, -torch.inf).scatter(1, candidates.gather(1, picked[:, :1]), 0.0)

    def _pick(self, scores: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Numbers of the tokens `[B, s]` by several sets of scores `[s, B, k]`, with the same random numbers `[B]`."""
        if not self.settings.do_sample:
            return scores.argmax(-1).t()
        warpers: Any = self.settings.warpers
        bounds = torch.stack([warpers(None, one).softmax(-1).cumsum(-1) for one in scores])
        reached = drawn[:, None] * bounds[..., -1:]
        return (bounds <= reached).sum(-1).clamp(max=scores.shape[-1] - 1).t()

    def end(self, texts: torch.Tensor, _scores, **_) -> torch.Tensor:
        """Which answers have ended, `[B]`, by an end of text or a stop string."""
        for row in (~self.ended).nonzero().flatten().tolist():
            self.length[row] = len(self.columns)
        self.ended |= torch.isin(texts[:, -1], self.ends)
        if self.stops is not None:
            self.ended |= self.stops(texts, None)
        return self.ended

    def answers(self) -> list[GuidedAnswer]:
        """What is written so far."""
        found = []
        for table, length in zip(torch.stack(self.columns, 1), self.length, strict=True):
            values: dict[str, list] = dict(zip(PER_TOKEN, table[:length].t().tolist(), strict=True))
            values |= {name: [int(token) for token in values[name]] for name in ("tokens", "base_tokens")}
            text = self.settings.tokenizer.decode(values["tokens"], skip_special_tokens=True).strip()
            found.append(GuidedAnswer(text, **values))
        return found
