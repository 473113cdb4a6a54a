"""One decoder for PAD, ARGS and their kin: a base model, steered token by token by a guide (`decoding/guides.py`)."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StopStringCriteria,
    TopPLogitsWarper,
)

from prlhf_kit import models
from prlhf_kit.chunks import fingerprint
from prlhf_kit.conditioning import causal_lm
from prlhf_kit.decoding.answers import AnswerFile, GuidedAnswer
from prlhf_kit.decoding.generate import DecodingError, Prompt, eos_ids, require_text
from prlhf_kit.decoding.guides import ARGS, PAD, Guide, Who, ids_of, start_of
from prlhf_kit.decoding.readers import CandidateReader, Reader, Row, mixes
from prlhf_kit.reward_model import head_name
from prlhf_kit.training.sharing import longest_shared

Weight = float | Sequence[float] | Callable[[int], float]
PER_TOKEN = ("tokens", "base_tokens", "logps", "base_logps", "rewards", "base_rewards", "divergence")


@dataclass(frozen=True)
class _Job:
    """One answer to write."""

    prompt: Prompt
    who: Who
    key: str  # tells it from all others, and is the seed of its sampling
    base: Row
    planned: list[tuple[Row, float]]

    @property
    def length(self) -> int:
        return max(row.length for row in (self.base, *(row for row, _ in self.planned)))


class _Panel:
    """A reader at work: the logits it gave last, what it has not read yet, and how its rows count."""

    def __init__(self, reader: Reader, factors: Sequence[float], normalised: bool):
        self.reader, self.normalised = reader, normalised
        self.factors = torch.tensor(factors, device=reader.device)
        self.logits = reader.start()
        self.pending: list[torch.Tensor] = []  # tokens `[B]`

    def catch_up(self) -> None:
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

    def hear(self, tokens: torch.Tensor, picked: torch.Tensor | None) -> None:
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


@dataclass
class GuidedDecoder:
    """Answers of `base`, steered by `guide` among the base's `top_k` most likely tokens.

    At w = 0 the answers are those of `base.generate` with the same settings. An answer depends neither on its batch nor
    on the others, up to rounding: sampling is seeded by `seed`, the prompt, whom it is for, and how often the same was
    asked before in the call.

    Args:
        base: any decoder-only model (with its adapter, if PEFT wraps it); None: the model that the guide's own was
            trained from. It may be the very model below the guide's adapter.
        tokenizer: of the base.
        guide: `PAD`, `ARGS` or `Vocabulary`.
        weight: w, the paper's default being 1; one a token (the last one stays), or a function of the token's number.
        top_k: candidates a step.
        max_new_tokens, min_new_tokens, stop_strings, repetition_penalty: as of `generate`, on the base's logits.
        do_sample: draw from softmax(score / temperature) over the candidates, cut to `top_p`; else the best one.
        every: ask the guide for every m-th token only; the base goes on alone between.
        unsure_above: ask the guide only where the base's entropy (nats) is above this. What the guide skips it reads in
            one go when it is asked next.
        batch_size: answers at once.

    Raises:
        DecodingError: k beyond the vocabulary, w not finite, settings that make no sense, or tokenizers that differ.
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
        self._guided = self.guide.model
        self._mixing: dict[int, bool] = {}
        for model in (self.base, self._guided):
            if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
                raise DecodingError(
                    f"{model.active_peft_config.peft_type.value} puts its tokens in front of every call, which "
                    "decoding with a shared cache does not do. Use a LoRA adapter, or kit.condition for soft tokens."
                )
        if self.base is None:
            if not isinstance(self.guide, PAD):
                raise DecodingError("base is None, but a reward model has no base to steer. Pass a language model.")
            row = start_of(self._guided, 0, ())
            self._base, self._base_adapter = row.model, row.adapter
        elif self.base is causal_lm(self._guided) and isinstance(self._guided, PeftModel):
            self._base, self._base_adapter = self._guided, False
        else:
            self._base, self._base_adapter = self.base, True
        sizes = [m.get_input_embeddings().weight.shape[0] for m in (self._base, self._guided)]
        self._vocabulary = min(sizes)
        self._refuse_another_tokenizer(sizes)
        if not 1 <= self.top_k <= self._vocabulary:
            raise DecodingError(f"top_k is {self.top_k}, expected 1 to {self._vocabulary}, the size of the vocabulary.")
        for name, wrong in {
            "max_new_tokens": self.max_new_tokens < 1, "batch_size": self.batch_size < 1, "every": self.every < 1,
            "min_new_tokens": not 0 <= self.min_new_tokens <= self.max_new_tokens,
            "temperature": not self.temperature > 0, "top_p": not 0 < self.top_p <= 1,
            "repetition_penalty": not self.repetition_penalty > 0, "unsure_above": math.isnan(self.unsure_above),
        }.items():  # fmt: skip
            if wrong:
                raise DecodingError(
                    f"{name} is {getattr(self, name)}. Expected at least one token, batch and step, min_new_tokens "
                    "from 0 to max_new_tokens, temperature (do_sample=False is greedy) and repetition_penalty above "
                    "0, top_p in (0, 1]."
                )
        self.weights = self._schedule()

    def _schedule(self) -> list[float]:
        """w of every token."""
        steps = range(self.max_new_tokens)
        given: Any = self.weight
        if callable(given):
            found = [float(given(step)) for step in steps]
        elif hasattr(given, "__getitem__") and getattr(given, "shape", True):  # a list, an array, a tensor
            found = [float(w) for w in given[: len(steps)]]
            found += found[-1:] * (len(steps) - len(found))
        else:
            found = [float(given)] * len(steps)
        bad = [w for w in found if not math.isfinite(w)]
        if bad or not found:
            raise DecodingError(
                f"weight is {bad[0] if bad else self.weight}, expected finite numbers (0 is the base model, 1 PAD's "
                "default)."
            )
        return found

    def _refuse_another_tokenizer(self, sizes: list[int]) -> None:
        other = self.guide.tokenizer
        bare = causal_lm(self._guided)
        if other is None:
            name = models.name_of(causal_lm(self._base))
            if causal_lm(self._base) is bare or (name and name == models.name_of(bare)):
                return
            raise DecodingError(
                f"base and guide are different models, with vocabularies of {sizes[0]} and {sizes[1]} tokens. They are "
                "compared token by token, so both need the same tokenizer: pass the guide's own as tokenizer=... to "
                "it, for it to be compared with the base's."
            )
        probe = "Ünïcode 12345, don't\n\n  def f(x): return {'x': x}\t<|im_end|></s> 東京 🙂"
        mine, theirs = self.tokenizer.get_vocab(), other.get_vocab()
        tokens = [t(probe, add_special_tokens=False)["input_ids"] for t in (self.tokenizer, other)]
        if mine != theirs or tokens[0] != tokens[1]:
            example = next((t for t in mine if mine[t] != theirs.get(t)), "how text is cut into tokens")
            raise DecodingError(
                f"base and guide have different tokenizers ({len(mine)} and {len(theirs)} tokens; they differ in "
                f"{example!r}). Guided decoding compares token by token: use models of one family, or choose among "
                "finished answers with best_of_n, for which tokenizers don't matter."
            )

    # Requests -----------------------------------------------------------------------------------------------------

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
        left = sorted((i for i, key in enumerate(keys) if key not in found), key=lambda i: jobs[i].length)
        with tqdm(total=len(left), desc="guided decoding", disable=None, leave=False) as bar:
            for start in range(0, len(left), self.batch_size):
                chunk = left[start : start + self.batch_size]
                answers: list[GuidedAnswer] = []
                for drafts in self._decode([jobs[i] for i in chunk]):
                    answers = drafts
                found |= {keys[i]: answer for i, answer in zip(chunk, answers, strict=True)}
                if file is not None:
                    file.add([(keys[i], jobs[i].prompt, jobs[i].who, found[keys[i]]) for i in chunk])
                bar.update(len(chunk))
        return [found[key] for key in keys]

    def stream(self, prompt: Prompt, who: Who = None) -> Iterator[GuidedAnswer]:
        """One answer as it grows: after every token all there is so far."""
        for [draft] in self._decode(self._jobs([prompt], [who]), each=True):
            yield draft

    def _jobs(self, prompts: Sequence[Prompt], who: Sequence[Who]) -> list[_Job]:
        if len(who) != len(prompts):
            raise DecodingError(f"{len(who)} entries in who for {len(prompts)} prompts; expected one a prompt.")
        require_text(prompts)
        found, asked = [], Counter[str]()
        for prompt, person in zip(prompts, who, strict=True):
            told = self.guide.told(person)
            base = Row(0, ids_of(self.tokenizer, prompt, told), self._base, adapter=self._base_adapter)
            planned = self.guide.rows(0, prompt, person, self.tokenizer)
            name = person if person is None or isinstance(person, str) else _plain(person)
            key = fingerprint(self.seed, prompt, name)
            asked[key] += 1
            found.append(_Job(prompt, person, fingerprint(key, asked[key]), base, planned))
            for row in (base, *(row for row, _ in planned)):
                config = causal_lm(row.model).config.get_text_config()
                limit = getattr(config, "max_position_embeddings", None)
                if limit is not None and row.length + self.max_new_tokens > limit:
                    raise DecodingError(
                        f"a prompt of {row.length} tokens (user tokens and preference included) and "
                        f"{self.max_new_tokens} new ones exceed the model's context of {limit}. Shorten the prompt or "
                        f"lower max_new_tokens. It begins with {prompt[0]['content'][:60]!r}."
                    )
            window = longest_shared(causal_lm(self._guided)) if isinstance(self.guide, ARGS) else None
            longest = max(row.length for row, _ in planned) + self.max_new_tokens
            if window is not None and longest > window:
                raise DecodingError(
                    f"the reward model's attention has a window of {window} tokens (0: it takes no mask at all, as "
                    f"flash attention), into which a text of {longest} does not fit: its candidates can't be scored in "
                    "one forward. Shorten the prompt, lower max_new_tokens, or load it with sdpa attention."
                )
        return found

    def _made_by(self, jobs: Sequence[_Job]) -> list[str]:
        """Keys that tell each answer from those of other requests, settings, prompts as laid out, or models."""
        settings = {
            name: getattr(self, name)
            for name in ("weights", "top_k", "max_new_tokens", "min_new_tokens", "stop_strings", "repetition_penalty",
                         "do_sample", "temperature", "top_p", "every", "unsure_above")
        }  # fmt: skip
        known: dict[int, list[Any]] = {}
        for row in (row for job in jobs for row in (job.base, *(row for row, _ in job.planned))):
            if id(row.model) not in known:
                adapters = row.model.active_adapters if isinstance(row.model, PeftModel) else []
                configs = {name: row.model.peft_config[name].to_dict() for name in adapters}
                text = json.dumps(
                    configs, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v)
                )
                known[id(row.model)] = [models.fingerprint(row.model), text]

        def said(row: Row) -> list[Any]:
            return [row.ids, row.adapter, row.head, row.user, known[id(row.model)]]

        dimension = self.guide.reward.dimension if isinstance(self.guide, ARGS) else None
        ours = [
            type(self.guide).__name__,
            self.guide.own(0.5),
            dimension,
            settings,
            eos_ids(causal_lm(self._base), self.tokenizer),
        ]
        return [
            fingerprint(ours, job.key, said(job.base), [[said(row), factor] for row, factor in job.planned])
            for job in jobs
        ]

    def _mixes(self, model) -> bool:
        if id(model) not in self._mixing:
            self._mixing[id(model)] = mixes(model)
        return self._mixing[id(model)]

    # Decoding -----------------------------------------------------------------------------------------------------

    def _panels(self, jobs: Sequence[_Job]) -> tuple[_Panel, list[_Panel]]:
        """The base's panel, whose first rows are the base's own, and all whose rows count as reward."""
        base_rows = [_of(job.base, i) for i, job in enumerate(jobs)]
        factors = dict.fromkeys(base_rows, 0.0)
        for i, job in enumerate(jobs):
            for row, factor in job.planned:
                mine = _of(row, i)
                factors[mine] = factors.get(mine, 0.0) + factor
        alone = self.every > 1 or self.unsure_above > 0  # then the guide's rows are not read at every step

        def weights(row: Row) -> object:
            return id(causal_lm(row.model)), row.adapter or self._mixes(causal_lm(row.model))

        batches: dict[object, list[Row]] = {}
        for row in factors:
            key = "base" if row in base_rows or (not alone and weights(row) == weights(base_rows[0])) else weights(row)
            batches.setdefault(key, []).append(row)
        pad, normalised = self.tokenizer.pad_token_id or 0, isinstance(self.guide, PAD)  # padding is masked
        panels = []
        for key, rows in batches.items():
            if isinstance(self.guide, ARGS) and key != "base":
                bare: Any = causal_lm(self._guided)
                head = getattr(bare, head_name(bare))
                reader: Reader = CandidateReader(rows, pad, self.guide.pooling, self.guide.reward.dimension, head)
            else:
                reader = Reader(rows, pad)
            panels.append(_Panel(reader, [factors[row] for row in rows], normalised))
        return panels[0], [p for p in panels if p.factors.any()]

    @torch.inference_mode()
    def _decode(self, jobs: list[_Job], each: bool = False) -> Iterator[list[GuidedAnswer]]:
        """The answers; with `each` also what there is of them after every token."""
        began = time.perf_counter()
        base, panels = self._panels(jobs)
        device = base.reader.device
        # a prompt's padding counts as its first token, which a repetition penalty has met already
        width = max(len(job.base.ids) for job in jobs)
        stop, processors, warper, endings = self._rules(width, device)
        texts = torch.tensor([(*job.base.ids[:1] * (width - len(job.base.ids)), *job.base.ids) for job in jobs])
        texts = texts.to(device)
        seeds = [torch.Generator().manual_seed(int(job.key[:15], 16)) for job in jobs]
        drawn = torch.stack([torch.rand(self.max_new_tokens, generator=seed) for seed in seeds]).to(device)
        written: list[dict[str, list]] = [{name: [] for name in PER_TOKEN} for _ in jobs]
        seconds = [0.0] * len(jobs)
        alive = list(range(len(jobs)))  # which answers are still written
        for step in range(self.max_new_tokens):
            base.catch_up()
            own = base.logits[: len(alive), : self._vocabulary]
            logp = processors(texts, own.clone()).log_softmax(-1)
            candidates = (
                logp.topk(self.top_k).indices.sort(-1).values
            )  # among equals the first id counts, as in generate
            values = logp.gather(1, candidates)
            due = torch.full((len(alive), 1), step % self.every == 0, device=device)
            if self.unsure_above > 0:
                due &= torch.special.entr(logp.exp()).sum(-1, keepdim=True) > self.unsure_above
            weight, asked = self.weights[step], bool(due.any())
            rewards = torch.full_like(values, torch.nan)
            scores = values
            if asked:
                given = sum((panel.rewards(candidates) for panel in panels), torch.zeros_like(values))
                rewards = torch.where(due, given, rewards)
                steered = self.guide.own(weight) * values + weight * given
                scores = torch.where(due & values.isfinite(), steered, values)
            picked, bases = self._pick(torch.stack([scores, values]), warper, drawn[:, step])
            apart = scores.log_softmax(-1)
            kl = (apart.exp() * (apart - values.log_softmax(-1))).nan_to_num(0.0).sum(-1)  # 0 where both are -inf
            tokens = candidates.gather(1, picked[:, None]).squeeze(1)
            texts = torch.cat([texts, tokens[:, None]], 1)
            own_tokens = candidates.gather(1, bases[:, None]).squeeze(1)
            ended = torch.isin(tokens, stop)
            if endings is not None:
                ended |= endings(texts, None)
            pairs = torch.stack([picked, bases], 1)
            reported = [tokens[:, None], own_tokens[:, None], values.gather(1, pairs), rewards.gather(1, pairs),
                        kl[:, None], ended[:, None]]  # fmt: skip
            for row, values in zip(alive, torch.cat([r.double() for r in reported], 1).tolist(), strict=True):
                for name, value in zip(PER_TOKEN, values[:-1], strict=True):
                    written[row][name].append(int(value) if name.endswith("tokens") else value)
                seconds[row] = time.perf_counter() - began
            if each:
                yield self._answers(written, seconds)
            if ended.all() or step + 1 == self.max_new_tokens:
                break
            for panel in {id(p): p for p in (base, *panels)}.values():
                panel.hear(tokens, picked if asked else None)
            if ended.any():  # finished answers leave the batch
                going = (~ended).nonzero().squeeze(1)
                alive = [alive[i] for i in going.tolist()]
                texts, drawn = texts[going], drawn[going]
                base.keep(going)
                panels = [p for p in panels if p is base or p.keep(going)]
        if not each:
            yield self._answers(written, seconds)

    def _rules(self, width: int, device):
        """What ends an answer, and what changes the base's logits: transformers' own."""
        ends: Any = torch.tensor(eos_ids(causal_lm(self._base), self.tokenizer), device=device)
        processors = LogitsProcessorList()
        if self.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.min_new_tokens:
            processors.append(MinNewTokensLengthLogitsProcessor(width, self.min_new_tokens, ends, device=str(device)))
        warper = TopPLogitsWarper(self.top_p) if self.top_p < 1 else None
        strings = [self.stop_strings] if isinstance(self.stop_strings, str) else list(self.stop_strings)
        endings = StopStringCriteria(self.tokenizer, strings) if strings else None
        return ends, processors, warper, endings

    def _pick(self, scores: torch.Tensor, warper, drawn: torch.Tensor) -> torch.Tensor:
        """Numbers of the tokens, `[s, B]`, by several sets of scores, `[s, B, k]`, with the same random numbers."""
        if not self.do_sample:
            return scores.argmax(-1)
        flat = (scores / self.temperature).flatten(0, 1)
        if warper is not None:
            flat = warper(None, flat)
        bounds = flat.softmax(-1).cumsum(-1)
        reached = drawn.repeat(len(scores))[:, None] * bounds[:, -1:]
        return (bounds <= reached).sum(-1).clamp(max=flat.shape[1] - 1).view(scores.shape[:2])

    def _answers(self, written: list[dict[str, list]], seconds: list[float]) -> list[GuidedAnswer]:
        texts = self.tokenizer.batch_decode([one["tokens"] for one in written], skip_special_tokens=True)
        return [
            GuidedAnswer(text.strip(), **{name: list(values) for name, values in one.items()}, seconds=spent)
            for text, one, spent in zip(texts, written, seconds, strict=True)
        ]


def _of(row: Row, owner: int) -> Row:
    return Row(owner, row.ids, row.model, row.adapter, row.head, row.user)


def _plain(who: Any) -> object:
    return dict(who) if hasattr(who, "items") else list(who)
