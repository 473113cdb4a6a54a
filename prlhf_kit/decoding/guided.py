"""One decoder for PAD, ARGS and their kin: a base model, steered token by token by a guide (`decoding/guides.py`)."""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, TemperatureLogitsWarper, TopPLogitsWarper

from prlhf_kit.decoding.answers import GuidedAnswer, add_lines, locked, read_lines
from prlhf_kit.decoding.generate import DecodingError, Prompt, batches_of, eos_ids, identity, ids_of, require_prompt
from prlhf_kit.decoding.guides import ARGS, Guide, Who, start_of
from prlhf_kit.decoding.readers import Row, mixes
from prlhf_kit.decoding.steered import Request, Steered
from prlhf_kit.files import short_hash
from prlhf_kit.models import hub
from prlhf_kit.models.conditioning import causal_lm, check_length
from prlhf_kit.models.tokenize import require_tokenizer, tokenizer_hash


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
        weight: w, the paper's default being 1; or one a token (the last one stays).
        top_k: candidates a step.
        max_new_tokens, min_new_tokens, stop_strings, repetition_penalty: as of `generate`, on the base's logits.
        do_sample: draw from softmax(score / temperature) over the candidates, cut to `top_p`; else the best one.

    Raises:
        DecodingError: k beyond the vocabulary, w not finite, or tokenizers that differ.
        ModelError: a model was trained with another tokenizer.
        ValueError: transformers' own, of temperature and top_p.
    """

    base: Any
    tokenizer: PreTrainedTokenizerBase
    guide: Guide
    weight: float | Sequence[float] = 1.0
    top_k: int = 10
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    stop_strings: str | Sequence[str] = ()
    repetition_penalty: float = 1.0
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self):
        guided = self.guide.model
        for model in (self.base, guided):
            if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
                kind = model.active_peft_config.peft_type.value
                raise DecodingError(f"{kind} puts its tokens in front of every call. Use LoRA, or kit.condition.")
        self.base_model, self.base_adapter = self.base, True
        if self.base is None:
            if isinstance(self.guide, ARGS):
                raise DecodingError("base is None, but a reward model has no base to steer. Pass a language model.")
            row = start_of(guided, 0, ())
            self.base_model, self.base_adapter = row.model, row.adapter
        elif self.base is causal_lm(guided) and isinstance(guided, PeftModel):
            self.base_model, self.base_adapter = guided, False
        # whether rows of the guide's model with and without its adapter are read in one batch
        self.mixes = not isinstance(guided, PeftModel) or mixes(causal_lm(guided))
        self.vocabulary = min(m.get_input_embeddings().weight.shape[0] for m in (self.base_model, guided))
        self._require_tokenizers()
        if not 1 <= self.top_k <= self.vocabulary:
            raise DecodingError(f"top_k is {self.top_k}, expected 1 to {self.vocabulary}, the size of the vocabulary.")
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))] if self.do_sample else [])
        if self.top_p < 1:
            self.warpers.append(TopPLogitsWarper(self.top_p))
        if self.max_new_tokens < 1:
            raise DecodingError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1. Raise it.")
        given = torch.atleast_1d(torch.as_tensor(self.weight, dtype=torch.float64)).tolist()[: self.max_new_tokens]
        if not given or not all(map(math.isfinite, given)):
            raise DecodingError(f"weight is {self.weight}, expected finite numbers (0 is the base alone).")
        self.weights = given + given[-1:] * (self.max_new_tokens - len(given))  # w of every token

    def _require_tokenizers(self) -> None:
        """Base and guide are compared token by token, so both need the same tokens, and the same cuts of a text."""
        own, other = self.tokenizer, self.guide.tokenizer
        base, guided = causal_lm(self.base_model), causal_lm(self.guide.model)
        names = {hub.name_of(base), hub.name_of(guided)}
        if other is None and base is not guided and (len(names) == 2 or "" in names):
            raise DecodingError("base and guide are different models: pass the guide's own tokenizer=... to it.")
        if other is not None and tokenizer_hash(own) != tokenizer_hash(other):
            different = set(own.get_vocab().items()) ^ set(other.get_vocab().items())
            where = f"in {min(different)[0]!r}, say" if different else "in how they cut texts"
            raise DecodingError(
                f"the tokenizers of base and guide ({len(own)} and {len(other)} tokens) differ, {where}. Use models of "
                "one family, or choose among finished answers with best_of_n, which does not compare tokens."
            )
        require_tokenizer(self.base_model, own)
        require_tokenizer(self.guide.model, other or own)

    def generate(
        self, prompts: Sequence[Prompt], who: Sequence[Who] | None = None, out: str | Path | None = None
    ) -> list[GuidedAnswer]:
        """Answer `prompts[i]`, chat messages, for `who[i]` (`decoding.guides.Who`; None: nobody in particular).

        Args:
            out: file of JSON lines that gets every answer as soon as its batch is done. What is there already, made by
                the same models with the same settings, is not made again.

        Raises:
            DecodingError, ConditioningError: an empty prompt, an unknown user, or a prompt beyond the context: before
                anything is decoded.
            ValueError: `out` is a file of something else, or another call is writing it.
        """
        jobs = self._jobs(prompts, [None] * len(prompts) if who is None else who)
        keys = [job.key for job in jobs] if out is None else self._made_by(jobs)
        with contextlib.nullcontext() if out is None else locked(Path(out)):
            found: dict[str, GuidedAnswer] = {}
            if out is not None:
                found = read_lines(Path(out), GuidedAnswer.from_json, "answer of guided decoding")
            left = [(key, job) for key, job in zip(keys, jobs, strict=True) if key not in found]
            batches = batches_of([max(row.length for row in job.rows) for _, job in left], self.batch_size)
            for numbers in tqdm(batches, desc="guided decoding", disable=None, leave=False):
                batch = [left[i] for i in numbers]
                [answers] = Steered(self, [job for _, job in batch]).write(self.max_new_tokens)
                found |= {key: answer for (key, _), answer in zip(batch, answers, strict=True)}
                if out is not None:
                    asked = [{"key": key, "prompt": job.prompt, "who": job.who} for key, job in batch]
                    add_lines(Path(out), [row | found[row["key"]].to_json() for row in asked])
        return [found[key] for key in keys]

    def stream(self, prompt: Prompt, who: Who = None) -> Iterator[GuidedAnswer]:
        """One answer as it grows: after every token all there is so far."""
        for [draft] in Steered(self, self._jobs([prompt], [who])).write(1):
            yield draft

    def _jobs(self, prompts: Sequence[Prompt], who: Sequence[Who]) -> list[Request]:
        for prompt in prompts:
            require_prompt(prompt)
        if isinstance(who, str) or len(who) != len(prompts):
            raise DecodingError(f"who is {who!r:.80} for {len(prompts)} prompts, expected a list of one each.")
        found, asked = [], Counter[str]()
        for prompt, person in zip(prompts, who, strict=True):
            told = self.guide.base_prompt(prompt, person)
            base = Row(0, ids_of(self.tokenizer, told), self.base_model, adapter=self.base_adapter)
            rows = self.guide.rows(0, prompt, person, self.tokenizer)
            plain: Any = person  # as JSON holds it
            if isinstance(person, Mapping):
                plain = {name: float(share) for name, share in person.items()}
            elif not isinstance(person, str | None):
                plain = list(person)
            key = short_hash(self.seed, prompt, plain)
            asked[key] += 1
            found.append(Request(prompt, plain, short_hash(key, asked[key]), base, rows))
            for row in found[-1].rows:
                check_length(row.model, row.length + self.max_new_tokens)
            longest = max((row.length for row, _ in rows), default=0) + self.max_new_tokens
            if longest > self.guide.window:
                raise DecodingError(
                    f"a text of {longest} tokens exceeds the reward model's attention window of {self.guide.window} "
                    "(0: it takes no mask). Shorten prompt or answer, or load the model with sdpa attention."
                )
        return found

    def _made_by(self, jobs: Sequence[Request]) -> list[str]:
        """Keys that tell each answer from those of other requests, settings, prompts as laid out, or models."""
        others = ("base", "tokenizer", "guide", "weight", "seed", "batch_size")  # the job's key has the seed
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in others}
        guide = {name: v for name, v in vars(self.guide).items() if isinstance(v, str | int | float)}
        ends = eos_ids(causal_lm(self.base_model), self.tokenizer)
        ours = [settings, self.weights, type(self.guide).__name__, guide, ends]
        models = {id(row.model): row.model for job in jobs for row in job.rows}
        identities = {number: identity(model) for number, model in models.items()}  # a second a GB

        def read(row: Row) -> list[Any]:
            return [row.ids, row.adapter, row.head, row.user, identities[id(row.model)]]

        return [short_hash(ours, job.key, read(job.base), [[read(row), f] for row, f in job.guide]) for job in jobs]
