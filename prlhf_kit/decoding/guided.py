"""One decoder for PAD, ARGS and their kin: a base model, steered token by token by a guide (`decoding/guides.py`).

`Steered` is a causal LM for transformers' `generate`, which does all else: penalties, stop strings, ends of answers.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.modeling_outputs import CausalLMOutput

from prlhf_kit.decoding.answers import AnswerFile, GuidedAnswer
from prlhf_kit.decoding.generate import DecodingError, Prompt, check_context, eos_ids, identity, ids_of, left_padded
from prlhf_kit.decoding.guides import ARGS, PAD, Guide, Who, start_of
from prlhf_kit.decoding.readers import Reader, Row, mixes
from prlhf_kit.files import short_hash
from prlhf_kit.models import hub
from prlhf_kit.models.conditioning import causal_lm, longest_shared

Weight = float | Sequence[float] | Callable[[int], float]
PER_TOKEN = ("tokens", "base_tokens", "logps", "base_logps", "rewards", "base_rewards", "divergence")


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


@dataclass
class GuidedDecoder:
    """Answers of `base`, steered by `guide` among the base's `top_k` most likely tokens.

    At w = 0 greedy answers are those of `base.generate` with the same settings (sampled ones in distribution). An
    answer depends neither on its batch nor on the others, up to rounding: sampling is seeded by `seed`, the prompt,
    whom it is for, and how often the same was asked before in the call.

    Args:
        base: any decoder-only model (with its adapter, if PEFT wraps it); None: the model that the guide's own was
            trained from. It may be the very model below the guide's adapter.
        tokenizer: of the base.
        guide: `PAD` or `ARGS`.
        weight: w, the paper's default being 1; one a token (the last one stays), or a function of the token's number.
        top_k: candidates a step.
        max_new_tokens, min_new_tokens, stop_strings, repetition_penalty: as of `generate`, on the base's logits.
        do_sample: draw from softmax(score / temperature) over the candidates, cut to `top_p`; else the best one.
        every: ask the guide for every m-th token only; the base goes on alone between.
        unsure_above: ask the guide only where the base's entropy (nats) is above this. What the guide skips it reads in
            one go when it is asked next.
        batch_size: answers at once.

    Raises:
        DecodingError: k beyond the vocabulary, w not finite, no token or batch, or tokenizers that differ.
        ValueError: transformers' own, of temperature and top_p.
    """

    base: Any
    tokenizer: PreTrainedTokenizerBase
    guide: Guide
    weight: Weight = 1.0
    top_k: int = 10
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    stop_strings: str | Sequence[str] = ()
    repetition_penalty: float = 1.0
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    every: int = 1
    unsure_above: float = 0.0
    batch_size: int = 16

    def __post_init__(self):
        guided = self.guide.model
        self._mixing: dict[int, bool] = {}  # by the model's id, as the next
        self._identities: dict[int, str] = {}
        for model in (self.base, guided):
            if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
                raise DecodingError(
                    f"{model.active_peft_config.peft_type.value} puts its tokens in front of every call, which "
                    "decoding with a shared cache does not do. Use a LoRA adapter, or kit.condition for soft tokens."
                )
        self.base_model, self.base_adapter = self.base, True
        if self.base is None:
            if not isinstance(self.guide, PAD):
                raise DecodingError("base is None, but a reward model has no base to steer. Pass a language model.")
            row = start_of(guided, 0, ())
            self.base_model, self.base_adapter = row.model, row.adapter
        elif self.base is causal_lm(guided) and isinstance(guided, PeftModel):
            self.base_model, self.base_adapter = guided, False
        self.vocabulary = min(m.get_input_embeddings().weight.shape[0] for m in (self.base_model, guided))
        self._refuse_another_tokenizer()
        if not 1 <= self.top_k <= self.vocabulary:
            raise DecodingError(f"top_k is {self.top_k}, expected 1 to {self.vocabulary}, the size of the vocabulary.")
        for name in ("max_new_tokens", "every", "batch_size"):
            if getattr(self, name) < 1:
                raise DecodingError(f"{name} is {getattr(self, name)}, expected a whole number from 1 on.")
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))] if self.do_sample else [])
        if self.top_p < 1:
            self.warpers.append(TopPLogitsWarper(self.top_p))
        self.weights = self._schedule()

    def _schedule(self) -> list[float]:
        """w of every token."""
        steps, given = range(self.max_new_tokens), self.weight
        if callable(given):
            found = [float(given(step)) for step in steps]
        else:
            found = torch.atleast_1d(torch.as_tensor(given, dtype=torch.float64)).tolist()[: len(steps)]
            found += found[-1:] * (len(steps) - len(found))
        if not found or not all(map(math.isfinite, found)):
            raise DecodingError(
                f"weight is {self.weight}, expected finite numbers (0 is the base model, 1 PAD's default)."
            )
        return found

    def _refuse_another_tokenizer(self) -> None:
        """Base and guide are compared token by token, so both need the same tokens, and the same cuts of a text."""
        own, other = self.tokenizer, self.guide.tokenizer
        if other is None:
            base, guided = causal_lm(self.base_model), causal_lm(self.guide.model)
            if base is guided or (hub.name_of(base) and hub.name_of(base) == hub.name_of(guided)):
                return
            raise DecodingError(
                "base and guide are different models. They are compared token by token, so both need the same "
                "tokenizer: pass the guide's own as tokenizer=... to it, for it to be compared with the base's."
            )
        probe = "Ünïcode 12345, don't\n\n  def f(x): return {'x': x}\t<|im_end|></s> 東京 🙂"
        mine, theirs = own.get_vocab(), other.get_vocab()
        tokens = [t(probe, add_special_tokens=False)["input_ids"] for t in (own, other)]
        if mine != theirs or tokens[0] != tokens[1]:
            example = next((t for t in mine if mine[t] != theirs.get(t)), "how text is cut into tokens")
            raise DecodingError(
                f"base and guide have different tokenizers ({len(mine)} and {len(theirs)} tokens; they differ in "
                f"{example!r}). Guided decoding compares token by token: use models of one family, or choose among "
                "finished answers with best_of_n, for which tokenizers don't matter."
            )

    def generate(
        self, prompts: Sequence[Prompt], who: Sequence[Who] | None = None, out: str | Path | None = None
    ) -> list[GuidedAnswer]:
        """Answer `prompts[i]` for `who[i]`.

        Args:
            prompts: chat messages, the last one of role "user".
            who: see `decoding.guides.Who`; None: nobody in particular.
            out: file of JSON lines that gets every answer as soon as its batch is done. What is there already, made by
                the same models with the same settings, is not made again.

        Raises:
            DecodingError: an empty prompt, one beyond the context, an unknown user: before anything is decoded.
        """
        jobs = self._jobs(prompts, [None] * len(prompts) if who is None else who)
        file = None if out is None else AnswerFile(Path(out))
        found = {} if file is None else dict(file.found)
        keys = [job.key for job in jobs] if file is None else self._made_by(jobs)
        # long and short prompts apart, so that little is spent on padding
        left = [i for i, key in enumerate(keys) if key not in found]
        left.sort(key=lambda i: max(row.length for row in jobs[i].rows))
        with tqdm(total=len(left), desc="guided decoding", disable=None, leave=False) as bar:
            for start in range(0, len(left), self.batch_size):
                chunk = left[start : start + self.batch_size]
                [answers] = Steered(self, [jobs[i] for i in chunk]).write(self.max_new_tokens)
                found |= {keys[i]: answer for i, answer in zip(chunk, answers, strict=True)}
                if file is not None:
                    file.add([(keys[i], jobs[i].prompt, jobs[i].who, found[keys[i]]) for i in chunk])
                bar.update(len(chunk))
        return [found[key] for key in keys]

    def stream(self, prompt: Prompt, who: Who = None) -> Iterator[GuidedAnswer]:
        """One answer as it grows: after every token all there is so far."""
        for [draft] in Steered(self, self._jobs([prompt], [who])).write(1):
            yield draft

    def _jobs(self, prompts: Sequence[Prompt], who: Sequence[Who]) -> list[Request]:
        if len(who) != len(prompts):
            raise DecodingError(f"{len(who)} entries in who for {len(prompts)} prompts; expected one a prompt.")
        found, asked = [], Counter[str]()
        window = longest_shared(causal_lm(self.guide.model)) if isinstance(self.guide, ARGS) else None
        for prompt, person in zip(prompts, who, strict=True):
            told = self.guide.base_text(person)
            base = Row(0, ids_of(self.tokenizer, prompt, told), self.base_model, adapter=self.base_adapter)
            plain = dict(person) if isinstance(person, Mapping) else person  # as JSON holds it
            plain = plain if plain is None or isinstance(plain, str | dict) else list(plain)
            key = short_hash(self.seed, prompt, plain)
            asked[key] += 1
            rows = self.guide.rows(0, prompt, person, self.tokenizer)
            found.append(Request(prompt, plain, short_hash(key, asked[key]), base, rows))
            for row in found[-1].rows:
                check_context(causal_lm(row.model), False, row.length, self.max_new_tokens)
            longest = max(row.length for row, _ in rows) + self.max_new_tokens
            if window is not None and longest > window:
                raise DecodingError(
                    f"the reward model's attention has a window of {window} tokens (0: it takes no mask at all, as "
                    f"flash attention), into which a text of {longest} does not fit: its candidates can't be scored in "
                    "one forward. Shorten the prompt, lower max_new_tokens, or load it with sdpa attention."
                )
        return found

    def _made_by(self, jobs: Sequence[Request]) -> list[str]:
        """Keys that tell each answer from those of other requests, settings, prompts as laid out, or models."""
        plain = (str, int, float, tuple, list, type(None))
        asked = [{k: v for k, v in vars(part).items() if isinstance(v, plain)} for part in (self, self.guide)]
        for name in ("weight", "seed", "batch_size"):  # `weights` says all of `weight`, and the job's key has the seed
            asked[0].pop(name, None)
        ours = [type(self.guide).__name__, *asked, eos_ids(causal_lm(self.base_model), self.tokenizer)]
        for row in (row for job in jobs for row in job.rows):
            if id(row.model) not in self._identities:
                self._identities[id(row.model)] = identity(row.model)

        def read(row: Row) -> list[Any]:
            return [row.ids, row.adapter, row.head, row.user, self._identities[id(row.model)]]

        return [short_hash(ours, job.key, read(job.base), [[read(row), f] for row, f in job.guide]) for job in jobs]

    def weights_of(self, row: Row) -> object:
        """What rows have in common that can be read as one batch."""
        bare = causal_lm(row.model)
        if id(bare) not in self._mixing:
            self._mixing[id(bare)] = mixes(bare)  # tried once a decoder
        return id(bare), row.adapter or self._mixing[id(bare)]


class Steered(PreTrainedModel, GenerationMixin):
    """A batch of answers, as a model for `generate`.

    `forward` reads the base's rows, and what shares their weights; `steer` is the formula, behind processors such as
    the repetition penalty; `end` notes which answers have ended. Caches are the readers' own.
    """

    @torch.inference_mode()  # prompts are read here
    def __init__(self, decoder: GuidedDecoder, jobs: Sequence[Request]):
        super().__init__(PreTrainedConfig(vocab_size=decoder.vocabulary))
        self.settings, self.guide, self.began = decoder, decoder.guide, time.perf_counter()
        rows = [replace(job.base, owner=i) for i, job in enumerate(jobs)]
        factors = dict.fromkeys(rows, 0.0)
        for i, job in enumerate(jobs if any(decoder.weights) else ()):
            for row, factor in job.guide:
                mine = replace(row, owner=i)
                factors[mine] = factors.get(mine, 0.0) + factor
        # beside the base's own, where they share its weights and are read at every step
        together = decoder.every == 1 and decoder.unsure_above <= 0
        batches: dict[object, list[Row]] = {"base": rows}
        for row in list(factors)[len(rows) :]:
            weights = decoder.weights_of(row)
            shared = together and weights == decoder.weights_of(rows[0])
            batches.setdefault("base" if shared else weights, []).append(row)
        self.base = Reader(batches.pop("base"))
        readers = [self.base, *map(self.guide.reader, batches.values())]
        self.readers = [(reader, torch.tensor([factors[row] for row in reader.rows])) for reader in readers]
        self.readers = [(reader, factor.to(reader.device)) for reader, factor in self.readers if factor.any()]
        self.texts, _ = left_padded([job.base.ids for job in jobs], self.device)
        self.width = self.texts.shape[1]
        seeds = [torch.Generator().manual_seed(int(job.key[:15], 16)) for job in jobs]
        self.drawn = torch.stack([torch.rand(decoder.max_new_tokens, generator=s) for s in seeds]).to(self.device)
        self.ends = torch.tensor(eos_ids(causal_lm(decoder.base_model), decoder.tokenizer), device=self.device)
        strings = [decoder.stop_strings] if isinstance(decoder.stop_strings, str) else list(decoder.stop_strings)
        self.stops = StopStringCriteria(decoder.tokenizer, strings) if strings else None
        self.columns: list[torch.Tensor] = []  # `[B, len(PER_TOKEN)]` of each token
        self.length, self.seconds = [0] * len(jobs), [0.0] * len(jobs)
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
            config = GenerationConfig(
                max_length=self.texts.shape[1] + at_once,
                min_length=self.width + decoder.min_new_tokens,
                repetition_penalty=float(decoder.repetition_penalty),
                eos_token_id=self.ends.tolist() or None,
                pad_token_id=decoder.tokenizer.pad_token_id or 0,  # what is behind an answer's end
                use_cache=False,  # readers have their own
            )
            more: Any = {
                "logits_processor": LogitsProcessorList([self.steer]),
                "stopping_criteria": StoppingCriteriaList([self.end]),
            }
            self.texts = self.generate(self.texts, generation_config=config, **more)
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
        due = torch.full((len(new), 1), step % decoder.every == 0, device=self.device)
        if decoder.unsure_above > 0:
            due &= torch.special.entr(logp.exp()).sum(-1, keepdim=True) > decoder.unsure_above
        weight, rewards, scores = decoder.weights[step], torch.full_like(values, torch.nan), values
        if weight != 0 and due.any():
            given = torch.zeros_like(values)
            for reader, factor in self.readers:
                said = factor[:, None] * reader.rewards(new, candidates)
                given.index_add_(0, reader.owner.to(self.device), said.to(self.device))
            rewards = torch.where(due, given, rewards)
            # score(v) = base_factor * base(v) + w * reward(v), see guides.py
            steered = self.guide.base_factor(weight) * values + weight * given
            scores = torch.where(due & values.isfinite(), steered, values)
        picked = self._pick(torch.stack([scores, values]), self.drawn[:, step])
        apart = scores.log_softmax(-1)
        kl = (apart.exp() * (apart - values.log_softmax(-1))).nan_to_num(0.0).sum(-1)  # 0 where both are -inf
        chosen = [column.gather(1, picked).double() for column in (candidates, values, rewards)]
        self.columns.append(torch.cat([*chosen, kl[:, None].double()], 1))
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
        spent = time.perf_counter() - self.began
        for row in (~self.ended).nonzero().flatten().tolist():
            self.length[row], self.seconds[row] = len(self.columns), spent
        self.ended |= torch.isin(texts[:, -1], self.ends)
        if self.stops is not None:
            self.ended |= self.stops(texts, None)
        return self.ended

    def answers(self) -> list[GuidedAnswer]:
        """What is written so far."""
        found = []
        for table, length, spent in zip(torch.stack(self.columns, 1), self.length, self.seconds, strict=True):
            values: dict[str, list] = dict(zip(PER_TOKEN, table[:length].t().tolist(), strict=True))
            values |= {name: [int(token) for token in values[name]] for name in ("tokens", "base_tokens")}
            text = self.settings.tokenizer.decode(values["tokens"], skip_special_tokens=True).strip()
            found.append(GuidedAnswer(text, **values, seconds=spent))
        return found
