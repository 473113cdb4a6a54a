"""A language model as judge: an endpoint that speaks OpenAI's chat completions, a template, and its parser."""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from prlhf_kit.data.templates import read_template
from prlhf_kit.evaluation.endpoint import Endpoint, JudgeError, PaidAnswers
from prlhf_kit.evaluation.judge_templates import FIELDS, PARSERS, SCHEMA, TEMPLATES, as_text, parse_verdict
from prlhf_kit.evaluation.judges import Verdict
from prlhf_kit.models.rewards import Text


@dataclass(eq=False)
class LLMJudge:
    """Asks a language model which answer is better. A `Judge`; let `judges.judged` ask it in both orders.

    An answer is kept the moment it arrives, and only what has no answer yet is sent. For instance, for Personalized
    Soups: `LLMJudge("gpt-4o", "criterion", "judge.sqlite", lambda user, prompt: {"criterion": CRITERIA[user]})`.

    Args:
        model: the server's name of it.
        template: "criterion" (field `criterion`), "community" (`community`), "profile" (`profile`, `history`:
            earlier choices); the papers' protocols in our words, with their form of answer: "prlhf_psoups"
            (`criterion`) and "prlhf_prism" (`profile`, `history`; P-RLHF, arXiv 2402.05133), "compo" (`community`;
            arXiv 2410.16027), "args" (arXiv 2402.01694); or a text file of the same form: an optional system message, a
            line `---`, and a user message with {prompt}, {answer_a}, {answer_b} and any further fields.
        cache: the SQLite file of answers; any number of judges and processes may share it.
        about: the template's further fields: (user, prompt) -> {name: text}; `judge_templates.about(people)` knows
            those of the shipped templates.
        base_url: the endpoint, e.g. "http://localhost:8000/v1"; OPENAI_BASE_URL does not count.
        api_key_env: NAME of the environment variable with the key. None: OPENAI_API_KEY for OpenAI, no key elsewhere.
        temperature, seed: None: not sent, for models that refuse them.
        max_tokens: of an answer; "prlhf_psoups", "args" and models that think first need more.
        parse: reads an answer; None: the template's own (`PARSERS`), JSON (`parse_verdict`) for a file.
        structured: ask the server to hold the model to the JSON (`response_format`); not all know it.
        concurrency: requests under way at a time.
        max_requests: a call that could exceed it, over all calls of this judge, is refused and nothing sent.
        timeout: seconds without a sign of the server.
        retries: of a request, on status 408, 409, 429, 5xx, lost connections, time-outs and incomplete answers.
        prices: per million (input, output) tokens.
        dry_run: print what a call would send, and what that would cost; send nothing. All verdicts are unreadable then.
    """

    model: str
    template: str | Path
    cache: str | Path
    about: Callable[[str | None, Text], Mapping[str, str]] | None = field(default=None, repr=False)
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str | None = None
    temperature: float | None = 0.0
    seed: int | None = 0
    max_tokens: int = 100
    parse: Callable[[str | None], Verdict] | None = None
    structured: bool = True
    concurrency: int = 8
    max_requests: int | None = None
    timeout: float = 60.0
    retries: int = 5
    prices: tuple[float, float] | None = None
    dry_run: bool = False

    def __post_init__(self):
        self._template = read_template(self.template, "evaluation/judge_prompts", TEMPLATES)
        if missing := FIELDS - self._template.fields:
            found = f"the template {str(self.template)!r} lacks {', '.join(sorted(missing))}"
            raise JudgeError(f"{found}. Write them in braces.")
        self._parse = self.parse or PARSERS.get(self.template, parse_verdict)
        self._endpoint = Endpoint(self.base_url, self.api_key_env, self.concurrency, self.timeout, self.retries)
        self._kept = PaidAnswers(self.cache)
        self._other: set[str] = set()  # requests of `ask`

    @property
    def config(self) -> dict[str, Any]:
        """All that decides the verdicts but for `about`: plain values, no key."""
        names = ("model", "temperature", "seed", "max_tokens", "structured")
        template = {"template": self._template.name, "template_sha256": self._template.sha256}
        return {"base_url": self._endpoint.base_url, **template, **{name: getattr(self, name) for name in names}}

    @property
    def spent(self) -> dict[str, Any]:
        """What this judge has sent and got: `requests` (different ones), `answers`, the server's count of
        `prompt_tokens` and `completion_tokens`, `unreadable` verdicts, and `cost`, None without prices."""
        found = self._kept.get(self._endpoint.sent)
        kept = found.values()
        counted = ("prompt_tokens", "completion_tokens")
        tokens = {name: sum(int(usage.get(name) or 0) for _, usage in kept) for name in counted}
        unreadable = sum(self._parse(text) is None for key, (text, _) in found.items() if key not in self._other)
        spent = {"requests": len(self._endpoint.sent), "answers": len(kept), **tokens, "unreadable": unreadable}
        return spent | {"cost": self._cost(*tokens.values())}

    def _cost(self, into: int, out: int) -> float | None:
        return None if self.prices is None else (self.prices[0] * into + self.prices[1] * out) / 1e6

    def __call__(self, prompt, answer_a, answer_b, user) -> list[Verdict]:
        """Raises `JudgeError`; what has arrived by then is kept: call again to ask only for the rest."""
        requests = [self._request(*asked) for asked in zip(prompt, answer_a, answer_b, user, strict=True)]
        return [self._parse(text) for text in self._answers(requests)]

    def ask(self, dialogues: Sequence[list[dict[str, str]]], max_tokens: int | None = None) -> list[str | None]:
        """The model's answer to each dialogue, for what is not judging: writing personas, say. Kept, limited and paid
        for as verdicts are. None where it said nothing, and in a dry run."""
        requests = [self._keyed(messages, None, max_tokens or self.max_tokens) for messages in dialogues]
        self._other |= set(dict(requests))
        return self._answers(requests)

    def told(self, about: Callable[[str | None, Text], Mapping[str, str]]) -> Self:
        """This judge, told something else of people; requests of both count together."""
        other = copy.copy(self)
        other.about = about
        return other

    def _answers(self, requests: list[tuple[str, dict[str, Any]]]) -> list[str | None]:
        found = self._kept.get(dict(requests))
        missing = {key: body for key, body in requests if key not in found}
        if self.dry_run:
            print(self._estimate(len(dict(requests)), list(missing.values())))
            return [None] * len(requests)
        sent = self._endpoint.sent
        if self.max_requests is not None and len(sent | set(missing)) > self.max_requests:
            limit = f"{len(sent)} of max_requests={self.max_requests} were sent before. Raise it, or ask for less"
            raise JudgeError(f"this call needs {len(missing)} new requests, and {limit}. Nothing was sent now.")
        if missing:
            self._endpoint.ask(missing, self._kept)
            found |= self._kept.get(missing)
        return [found[key][0] for key, _ in requests]

    def _request(self, prompt: Text, a: str, b: str, user: str | None) -> tuple[str, dict[str, Any]]:
        """The key of a comparison, and what is to be sent."""
        known = self.about(user, prompt) if self.about else {}
        if empty := [name for name in sorted(self._template.fields - FIELDS) if not isinstance(known.get(name), str)]:
            found = f"about says nothing of the {' and '.join(empty)} of the user {user!r}, found {str(known)[:300]}"
            raise JudgeError(f"{found}; the template {self._template.name!r} needs a text. Nothing was sent now.")
        values = {**known, "prompt": as_text(prompt), "answer_a": a, "answer_b": b}
        form = None
        if self.structured and self._parse is parse_verdict:
            form = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}}
        messages = [{"role": role, "content": text.format_map(values)} for role, text in self._template.parts]
        return self._keyed(messages, form, self.max_tokens)

    def _keyed(self, messages: list[dict[str, str]], form: Any, limit: int) -> tuple[str, dict[str, Any]]:
        settings = {
            "model": self.model,
            "temperature": self.temperature,
            "seed": self.seed,
            "max_completion_tokens" if self._endpoint.is_openai else "max_tokens": limit,
            "response_format": form,
        }
        body = {**{name: value for name, value in settings.items() if value is not None}, "messages": messages}
        text = json.dumps([self._endpoint.base_url, body], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest(), body

    def _estimate(self, requests: int, bodies: list[dict[str, Any]]) -> str:
        characters = sum(len(message["content"]) for body in bodies for message in body["messages"])
        limits = [body.get("max_tokens", body.get("max_completion_tokens", 0)) for body in bodies]
        into, out = math.ceil(characters / 4), sum(limits)
        cost = self._cost(into, out)
        return (
            f"{requests:,} requests: {requests - len(bodies):,} answered already, {len(bodies):,} to send with about "
            f"{into:,} input tokens (4 characters a token), at most {out:,} output tokens"
            + ("" if cost is None else f", cost about {cost:,.4f}")
        )
