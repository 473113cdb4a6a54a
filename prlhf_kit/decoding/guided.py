"""One decoder for PAD, ARGS and their kin: a base model, steered token by token by a guide (`decoding/guides.py`)."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from prlhf_kit.decoding.answers import AnswerFile, GuidedAnswer
from prlhf_kit.decoding.batch import Batch, Request
from prlhf_kit.decoding.generate import DecodingError, Prompt, eos_ids, require_same_tokenizer, require_text
from prlhf_kit.decoding.guides import ARGS, PAD, Guide, Who, ids_of, start_of
from prlhf_kit.decoding.readers import Row, mixes
from prlhf_kit.files import short_hash
from prlhf_kit.models import hub
from prlhf_kit.models.conditioning import causal_lm, longest_shared

Weight = float | Sequence[float] | Callable[[int], float]


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
        self._known: dict[int, list[Any]] = {}  # fingerprints, by the model's id
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
            self.base_model, self.base_adapter = row.model, row.adapter
        elif self.base is causal_lm(self._guided) and isinstance(self._guided, PeftModel):
            self.base_model, self.base_adapter = self._guided, False
        else:
            self.base_model, self.base_adapter = self.base, True
        sizes = [m.get_input_embeddings().weight.shape[0] for m in (self.base_model, self._guided)]
        self.vocabulary = min(sizes)
        self._refuse_another_tokenizer(sizes)
        if not 1 <= self.top_k <= self.vocabulary:
            raise DecodingError(f"top_k is {self.top_k}, expected 1 to {self.vocabulary}, the size of the vocabulary.")
        for name, wrong in {
            "max_new_tokens": self.max_new_tokens < 1,
            "batch_size": self.batch_size < 1,
            "every": self.every < 1,
            "min_new_tokens": not 0 <= self.min_new_tokens <= self.max_new_tokens,
            "temperature": not self.temperature > 0,
            "top_p": not 0 < self.top_p <= 1,
            "repetition_penalty": not self.repetition_penalty > 0,
            "unsure_above": math.isnan(self.unsure_above),
        }.items():
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
            name = hub.name_of(causal_lm(self.base_model))
            if causal_lm(self.base_model) is bare or (name and name == hub.name_of(bare)):
                return
            raise DecodingError(
                f"base and guide are different models, with vocabularies of {sizes[0]} and {sizes[1]} tokens. They are "
                "compared token by token, so both need the same tokenizer: pass the guide's own as tokenizer=... to "
                "it, for it to be compared with the base's."
            )
        require_same_tokenizer(self.tokenizer, other)

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

    def _jobs(self, prompts: Sequence[Prompt], who: Sequence[Who]) -> list[Request]:
        if len(who) != len(prompts):
            raise DecodingError(f"{len(who)} entries in who for {len(prompts)} prompts; expected one a prompt.")
        require_text(prompts)
        found, asked = [], Counter[str]()
        for prompt, person in zip(prompts, who, strict=True):
            told = self.guide.base_text(person)
            base = Row(0, ids_of(self.tokenizer, prompt, told), self.base_model, adapter=self.base_adapter)
            planned = self.guide.rows(0, prompt, person, self.tokenizer)
            plain = _plain(person)
            key = short_hash(self.seed, prompt, plain)
            asked[key] += 1
            found.append(Request(prompt, plain, short_hash(key, asked[key]), base, planned))
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

    def _made_by(self, jobs: Sequence[Request]) -> list[str]:
        """Keys that tell each answer from those of other requests, settings, prompts as laid out, or models."""
        settings = {
            name: getattr(self, name)
            for name in (
                "weights",
                "top_k",
                "max_new_tokens",
                "min_new_tokens",
                "stop_strings",
                "repetition_penalty",
                "do_sample",
                "temperature",
                "top_p",
                "every",
                "unsure_above",
            )
        }
        known = self._known  # hashing weights takes a second a GB
        for row in (row for job in jobs for row in (job.base, *(row for row, _ in job.planned))):
            if id(row.model) not in known:
                adapters = row.model.active_adapters if isinstance(row.model, PeftModel) else []
                configs = {name: row.model.peft_config[name].to_dict() for name in adapters}
                text = json.dumps(
                    configs, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v)
                )
                known[id(row.model)] = [hub.weights_hash(row.model), text]

        def said(row: Row) -> list[Any]:
            return [row.ids, row.adapter, row.head, row.user, known[id(row.model)]]

        dimension = self.guide.reward.dimension if isinstance(self.guide, ARGS) else None
        pooling = getattr(self.guide, "pooling", None)
        ends = eos_ids(causal_lm(self.base_model), self.tokenizer)
        ours = [type(self.guide).__name__, self.guide.base_factor(0.5), dimension, pooling, settings, ends]
        return [
            short_hash(ours, job.key, said(job.base), [[said(row), factor] for row, factor in job.planned])
            for job in jobs
        ]

    def mixes(self, model) -> bool:
        """`readers.mixes`, tried once a decoder."""
        if id(model) not in self._mixing:
            self._mixing[id(model)] = mixes(model)
        return self._mixing[id(model)]

    def _decode(self, jobs: Sequence[Request], each: bool = False) -> Iterator[list[GuidedAnswer]]:
        return Batch(self, jobs).write(each)


def _plain(who: Who) -> Any:
    """As JSON holds it."""
    if who is None or isinstance(who, str):
        return who
    if isinstance(who, Mapping):
        return {name: float(weight) for name, weight in who.items()}
    return list(who)
