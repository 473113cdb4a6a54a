"""A language model as judge, behind any endpoint that speaks OpenAI's chat completions: hosted, or a local server.

What it is asked is a template, a text file with named fields (`judge_templates`, whose `parse_verdict` reads the
answer). What it answered is kept on disk and asked only once.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prlhf_kit.data.templates import Template
from prlhf_kit.evaluation.endpoint import Endpoint, Spent
from prlhf_kit.evaluation.judge_templates import SCHEMA, as_text, more_fields, parse_verdict, read_judge_template
from prlhf_kit.evaluation.judges import UNREADABLE, Verdict
from prlhf_kit.evaluation.paid_answers import Estimate, JudgeError, PaidAnswers
from prlhf_kit.models.rewards import Text


@dataclass(frozen=True, eq=False)
class LLMJudge:
    """Asks a language model which answer is better. A `Judge`; let `judges.judged` ask it in both orders.

    An answer is kept the moment it arrives, and only what has no answer yet is sent. For instance, for Personalized
    Soups: `LLMJudge("gpt-4o", "criterion", "judge.sqlite", lambda user, prompt: {"criterion": CRITERIA[user]})`.

    Args:
        model: the server's name of it.
        template: "criterion" (field `criterion`), "community" (`community`; ComPO, arXiv 2410.16027), "profile"
            (`profile`, `history`: see `earlier_choices`; PRISM), or a text file of the same form: an optional system
            message, a line `---`, and a user message with {prompt}, {answer_a}, {answer_b} and any further fields.
        cache: the SQLite file of answers; any number of judges and processes may share it.
        about: the template's further fields: (user, prompt) -> {name: text}, or a dict by user.
        base_url: the endpoint, e.g. "http://localhost:8000/v1"; OPENAI_BASE_URL does not count.
        api_key_env: NAME of the environment variable with the key. None: OPENAI_API_KEY for OpenAI, no key elsewhere.
        temperature, seed: None: not sent, for models that refuse them.
        max_tokens: of an answer; models that think first need more.
        structured: ask the server to hold the model to the form (`response_format`); not all know it.
        concurrency: requests under way at a time.
        max_requests: a call that could exceed it, over all calls of this judge, is refused and nothing sent.
        requests_per_minute: slows down to it. None: as fast as they come.
        timeout: seconds without a sign of the server.
        retries: of a request, on status 408, 409, 429, 5xx, lost connections, time-outs and incomplete answers.
        prices: per million (input, output) tokens.
        dry_run: print the `Estimate`, send nothing; all verdicts are unreadable then.

    Raises:
        JudgeError: settings, template or cache can't be used.
    """

    model: str
    template: str | Path
    cache: str | Path
    about: Callable[[str | None, Text], Mapping[str, str]] | Mapping[Any, Mapping[str, str]] | None = field(
        default=None, repr=False
    )
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str | None = None
    temperature: float | None = 0.0
    seed: int | None = 0
    max_tokens: int = 100
    structured: bool = True
    concurrency: int = 8
    max_requests: int | None = None
    requests_per_minute: float | None = None
    timeout: float = 60.0
    retries: int = 5
    prices: tuple[float, float] | None = None
    dry_run: bool = False
    _unreadable: set[str] = field(default_factory=set, init=False, repr=False)
    # one call at a time, so that two threads don't pay for the same request
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self):
        for name, least in {"max_tokens": 1, "concurrency": 1, "max_requests": 0, "retries": 0}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise JudgeError(f"{name} is {value}, expected at least {least}.")
        for name in ("timeout", "requests_per_minute"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise JudgeError(f"{name} is {value}, expected more than 0.")
        if more_fields(self._template) and self.about is None:
            names = ", ".join(sorted(more_fields(self._template)))
            raise JudgeError(f"the template {self._template.name!r} has the fields {names}; about= must fill them.")
        self._endpoint, self._kept  # noqa: B018 (refuses what can't be used)

    @cached_property
    def _template(self) -> Template:
        return read_judge_template(self.template)

    @cached_property
    def _endpoint(self) -> Endpoint:
        settings = (self.concurrency, self.requests_per_minute, self.timeout, self.retries)
        return Endpoint(self.base_url, self.api_key_env, *settings)

    @cached_property
    def _kept(self) -> PaidAnswers:
        return PaidAnswers(self.cache)

    @property
    def config(self) -> dict[str, Any]:
        """All that decides the verdicts but for `about`: plain values, no key."""
        names = ("model", "temperature", "seed", "max_tokens", "structured")
        template = {"template": self._template.name, "template_sha256": self._template.sha256}
        return {"base_url": self._endpoint.base_url, **template, **{name: getattr(self, name) for name in names}}

    @property
    def spent(self) -> Spent:
        """What this judge has sent and got so far; what came from the cache cost nothing."""
        spent = self._endpoint.spent
        costs = self._cost(spent.prompt_tokens, spent.completion_tokens)
        return replace(spent, unreadable=len(self._unreadable), cost=costs)

    def __call__(self, prompt, answer_a, answer_b, user) -> list[Verdict]:
        """See `Judge`.

        Raises:
            JudgeError: a template's field is not filled, the limit of requests is too low, or there is no answer to
                some. What has arrived is kept: call again to ask only for the rest.
        """
        if self.dry_run:
            print(self.estimate(prompt, answer_a, answer_b, user))
            return [UNREADABLE] * len(prompt)
        keys, wanted = self._requests(prompt, answer_a, answer_b, user)
        with self._turn:
            found = self._kept.get(wanted)
            missing = {key: body for key, body in wanted.items() if key not in found}
            sent = self._endpoint.spent.requests
            if self.max_requests is not None and sent + len(missing) > self.max_requests:
                raise JudgeError(
                    f"this call needs {len(missing)} new requests, and {sent} of max_requests={self.max_requests} were "
                    "sent before. Nothing was sent now. Raise the limit, or ask for less."
                )
            if missing:
                self._endpoint.ask(missing, self._kept)
                found |= self._kept.get(missing)
        read = {key: parse_verdict(answer.text) for key, answer in found.items()}
        self._unreadable.update(key for key, verdict in read.items() if verdict is UNREADABLE)
        return [read[key] for key in keys]

    def estimate(self, prompt, answer_a, answer_b, user) -> Estimate:
        """What a call with these arguments would send; sends nothing.

        `judged` asks for both orders, twice as much: give it `dataclasses.replace(judge, dry_run=True)` to see it.
        """
        _, wanted = self._requests(prompt, answer_a, answer_b, user)
        cached = self._kept.get(wanted)
        bodies = [body for key, body in wanted.items() if key not in cached]
        characters = sum(len(message["content"]) for body in bodies for message in body["messages"])
        into, out = math.ceil(characters / 4), len(bodies) * self.max_tokens
        example: list[dict[str, str]] = next((body["messages"] for body in wanted.values()), [])
        return Estimate(len(wanted), len(cached), len(bodies), into, out, self._cost(into, out), example)

    def _cost(self, into: int, out: int) -> float | None:
        return None if self.prices is None else (self.prices[0] * into + self.prices[1] * out) / 1e6

    def _requests(self, prompt, answer_a, answer_b, user) -> tuple[list[str], dict[str, dict[str, Any]]]:
        """The keys of all requests in order, and what is to be sent by key."""
        limit = "max_completion_tokens" if self._endpoint.is_openai else "max_tokens"
        form = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}}
        settings = {
            "model": self.model,
            "temperature": self.temperature,
            "seed": self.seed,
            limit: self.max_tokens,
            "response_format": form if self.structured else None,
        }
        settings = {name: value for name, value in settings.items() if value is not None}
        keys, wanted = [], {}
        for question, a, b, who in zip(prompt, answer_a, answer_b, user, strict=True):
            values = {"prompt": as_text(question), "answer_a": a, "answer_b": b, **self._known(who, question)}
            messages = [{"role": role, "content": text.format_map(values)} for role, text in self._template.parts]
            body = {**settings, "messages": messages}
            text = json.dumps([self._endpoint.base_url, body], sort_keys=True, ensure_ascii=False)
            keys.append(hashlib.sha256(text.encode()).hexdigest())
            wanted[keys[-1]] = body
        return keys, wanted

    def _known(self, user: str | None, prompt: Text) -> Mapping[str, str]:
        """The template's further fields, filled."""
        if self.about is None:
            return {}
        if isinstance(self.about, Mapping):
            if user not in self.about:
                raise JudgeError(f"about has nothing on the user {user!r}; it has {len(self.about)} other users.")
            known = self.about[user]
        else:
            known = self.about(user, prompt)
        if set(known) != more_fields(self._template) or not all(isinstance(text, str) for text in known.values()):
            raise JudgeError(
                f"about gives {str(dict(known))[:300]} for the user {user!r}; the template {self._template.name!r} "
                f"needs texts for {sorted(more_fields(self._template))} and nothing else."
            )
        return known
