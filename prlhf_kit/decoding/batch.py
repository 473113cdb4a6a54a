"""One batch of answers, written token by token: the loop of guided decoding."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StopStringCriteria,
    TopPLogitsWarper,
)

from prlhf_kit.decoding.answers import GuidedAnswer
from prlhf_kit.decoding.candidates import CandidateReader
from prlhf_kit.decoding.generate import Prompt, eos_ids
from prlhf_kit.decoding.guides import ARGS, PAD, Who
from prlhf_kit.decoding.readers import Reader, Row
from prlhf_kit.models.conditioning import causal_lm
from prlhf_kit.models.reward_model import head_name

if TYPE_CHECKING:
    from prlhf_kit.decoding.guided import GuidedDecoder

PER_TOKEN = ("tokens", "base_tokens", "logps", "base_logps", "rewards", "base_rewards", "divergence")


@dataclass(frozen=True)
class Request:
    """One answer to write. `key` tells it from all others, and is the seed of its sampling."""

    prompt: Prompt
    who: Who
    key: str
    base: Row
    planned: list[tuple[Row, float]]

    @property
    def length(self) -> int:
        """Tokens of the longest text that is read for it."""
        return max(row.length for row in (self.base, *(row for row, _ in self.planned)))


class Panel:
    """A reader at work: the logits it gave last, what it has not read yet, and how its rows count."""

    def __init__(self, reader: Reader, factors: Sequence[float], normalised: bool):
        self.reader, self.normalised = reader, normalised
        self.factors = torch.tensor(factors, device=reader.device)
        self.logits = reader.start()
        self.pending: list[torch.Tensor] = []  # tokens `[B]`

    def catch_up(self) -> None:
        """Read what is pending, in one go."""
        if self.pending:
            self.logits = self.reader.read(torch.stack(self.pending, 1))
            self.pending = []

    def rewards(self, candidates: torch.Tensor) -> torch.Tensor:
        """What the rows say of the candidates `[B, k]`, summed with their factors: `[B, k]`."""
        reader = self.reader
        if isinstance(reader, CandidateReader):
            said = reader.score(torch.stack(self.pending, 1) if self.pending else None, candidates)
            self.pending = []
        else:
            self.catch_up()
            said = self.logits.gather(1, candidates.to(reader.device)[reader.owner])
            if self.normalised:
                said = said - self.logits.logsumexp(1, keepdim=True)
        found = torch.zeros(candidates.shape, device=reader.device)
        return found.index_add_(0, reader.owner, self.factors[:, None] * said).to(candidates.device)

    def judge(self, tokens: torch.Tensor, picked: torch.Tensor | None) -> None:
        """The next tokens `[B]`. `picked` `[B]`: which of the candidates just scored they are; None: none were."""
        if picked is not None and isinstance(self.reader, CandidateReader):
            self.reader.choose(picked)
        else:
            self.pending.append(tokens)

    def keep(self, alive: torch.Tensor) -> bool:
        """Only the answers `alive` go on. Returns whether any row is left."""
        mine = torch.isin(self.reader.owner, alive.to(self.reader.device))
        if not mine.any():
            return False
        self.factors, self.logits = self.factors[mine], self.logits[mine]
        self.reader.keep(alive)
        self.pending = [tokens[alive] for tokens in self.pending]
        return True


class Batch:
    """Answers that are written at once. `decoder` has the models and settings."""

    @torch.inference_mode()  # prompts are read here
    def __init__(self, decoder: GuidedDecoder, jobs: Sequence[Request]):
        self.settings, self.began = decoder, time.perf_counter()
        self.base, self.panels = self._panels(jobs)
        self.device = self.base.reader.device
        # a prompt's padding counts as its first token, which a repetition penalty has met already
        width = max(len(job.base.ids) for job in jobs)
        texts = [(*job.base.ids[:1] * (width - len(job.base.ids)), *job.base.ids) for job in jobs]
        self.texts = torch.tensor(texts, device=self.device)
        seeds = [torch.Generator().manual_seed(int(job.key[:15], 16)) for job in jobs]
        drawn = [torch.rand(decoder.max_new_tokens, generator=seed) for seed in seeds]
        self.drawn = torch.stack(drawn).to(self.device)
        # what ends an answer, and what changes the base's logits, is transformers' own
        ends: Any = torch.tensor(eos_ids(causal_lm(decoder.base_model), decoder.tokenizer), device=self.device)
        self.ends = ends
        self.processors = LogitsProcessorList()
        if decoder.repetition_penalty != 1:
            self.processors.append(RepetitionPenaltyLogitsProcessor(float(decoder.repetition_penalty)))
        if (least := decoder.min_new_tokens) > 0:
            self.processors.append(MinNewTokensLengthLogitsProcessor(width, least, ends, device=str(self.device)))
        self.warper = TopPLogitsWarper(decoder.top_p) if decoder.top_p < 1 else None
        strings = [decoder.stop_strings] if isinstance(decoder.stop_strings, str) else list(decoder.stop_strings)
        self.endings = StopStringCriteria(decoder.tokenizer, strings) if strings else None
        self.written: list[dict[str, list]] = [{name: [] for name in PER_TOKEN} for _ in jobs]
        self.seconds = [0.0] * len(jobs)
        self.alive = list(range(len(jobs)))  # which answers are still written

    def _panels(self, jobs: Sequence[Request]) -> tuple[Panel, list[Panel]]:
        """The base's panel, whose first rows are the base's own, and all whose rows count as reward."""
        decoder, guide = self.settings, self.settings.guide
        base_rows = [replace(job.base, owner=i) for i, job in enumerate(jobs)]
        factors = dict.fromkeys(base_rows, 0.0)
        for i, job in enumerate(jobs if any(decoder.weights) else ()):
            for row, factor in job.planned:
                mine = replace(row, owner=i)
                factors[mine] = factors.get(mine, 0.0) + factor
        alone = decoder.every > 1 or decoder.unsure_above > 0  # then the guide's rows are not read at every step

        def weights(row: Row) -> object:
            return id(causal_lm(row.model)), row.adapter or decoder.mixes(causal_lm(row.model))

        batches: dict[object, list[Row]] = {}
        for row in factors:
            key = "base" if row in base_rows or (not alone and weights(row) == weights(base_rows[0])) else weights(row)
            batches.setdefault(key, []).append(row)
        pad = decoder.tokenizer.pad_token_id or 0  # padding is masked
        panels = []
        for key, rows in batches.items():
            if isinstance(guide, ARGS) and key != "base":
                bare: Any = causal_lm(guide.model)
                head = getattr(bare, head_name(bare))
                reader: Reader = CandidateReader(rows, pad, guide.pooling, guide.reward.dimension, head)
            else:
                reader = Reader(rows, pad)
            panels.append(Panel(reader, [factors[row] for row in rows], isinstance(guide, PAD)))
        return panels[0], [p for p in panels if p.factors.any()]

    @torch.inference_mode()
    def write(self, each: bool = False) -> Iterator[list[GuidedAnswer]]:
        """The answers; with `each`, all there is of them after every token."""
        for step in range(self.settings.max_new_tokens):
            ended = self._step(step)
            if each:
                yield self.answers()
            if ended.all():
                break
            if ended.any():  # finished answers leave the batch
                going = (~ended).nonzero().squeeze(1)
                self.alive = [self.alive[i] for i in going.tolist()]
                self.texts, self.drawn = self.texts[going], self.drawn[going]
                self.base.keep(going)
                self.panels = [p for p in self.panels if p is self.base or p.keep(going)]
        if not each:
            yield self.answers()

    def _step(self, step: int) -> torch.Tensor:
        """Write one token of every answer. Returns which have ended, `[B]`."""
        decoder = self.settings
        self.base.catch_up()
        logits = self.base.logits[: len(self.alive), : decoder.vocabulary]
        logp = self.processors(self.texts, logits.clone()).log_softmax(-1)
        # by id, since among equals the first one counts in generate
        candidates = logp.topk(decoder.top_k).indices.sort(-1).values
        values = logp.gather(1, candidates)
        due = torch.full((len(self.alive), 1), step % decoder.every == 0, device=self.device)
        if decoder.unsure_above > 0:
            due &= torch.special.entr(logp.exp()).sum(-1, keepdim=True) > decoder.unsure_above
        weight = decoder.weights[step]
        asked = weight != 0 and bool(due.any())
        rewards, scores = torch.full_like(values, torch.nan), values
        if asked:
            given = sum((panel.rewards(candidates) for panel in self.panels), torch.zeros_like(values))
            rewards = torch.where(due, given, rewards)
            # score(v) = base_factor * base(v) + w * reward(v), see guides.py
            steered = decoder.guide.base_factor(weight) * values + weight * given
            scores = torch.where(due & values.isfinite(), steered, values)
        picked = self._pick(torch.stack([scores, values]), self.drawn[:, step])
        apart = scores.log_softmax(-1)
        kl = (apart.exp() * (apart - values.log_softmax(-1))).nan_to_num(0.0).sum(-1)  # 0 where both are -inf
        tokens, own = candidates.gather(1, picked.t()).unbind(1)
        self.texts = torch.cat([self.texts, tokens[:, None]], 1)
        ended = torch.isin(tokens, self.ends)
        if self.endings is not None:
            ended |= self.endings(self.texts, None)
        columns = [
            tokens[:, None],
            own[:, None],
            values.gather(1, picked.t()),
            rewards.gather(1, picked.t()),
            kl[:, None],
        ]
        for row, numbers in zip(self.alive, torch.cat([c.double() for c in columns], 1).tolist(), strict=True):
            for name, number in zip(PER_TOKEN, numbers, strict=True):
                self.written[row][name].append(int(number) if name.endswith("tokens") else number)
            self.seconds[row] = time.perf_counter() - self.began
        for panel in {id(p): p for p in (self.base, *self.panels)}.values():
            panel.judge(tokens, picked[0] if asked else None)
        return ended

    def _pick(self, scores: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Numbers of the tokens, `[s, B]`, by several sets of scores, `[s, B, k]`, with the same random numbers."""
        if not self.settings.do_sample:
            return scores.argmax(-1)
        flat = (scores / self.settings.temperature).flatten(0, 1)
        if self.warper is not None:
            flat = self.warper(None, flat)
        bounds = flat.softmax(-1).cumsum(-1)
        reached = drawn.repeat(len(scores))[:, None] * bounds[:, -1:]
        return (bounds <= reached).sum(-1).clamp(max=flat.shape[1] - 1).view(scores.shape[:2])

    def answers(self) -> list[GuidedAnswer]:
        """What is written so far."""
        texts = self.settings.tokenizer.batch_decode([one["tokens"] for one in self.written], skip_special_tokens=True)
        return [
            GuidedAnswer(text.strip(), **{name: list(values) for name, values in one.items()}, seconds=spent)
            for text, one, spent in zip(texts, self.written, self.seconds, strict=True)
        ]
