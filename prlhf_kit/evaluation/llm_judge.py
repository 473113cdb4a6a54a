"""A language model as judge, behind any endpoint that speaks OpenAI's chat completions: hosted, or a local server.

What it is asked is a template, a text file with named fields; what it answered is kept on disk and asked only once.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import string
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from prlhf_kit.data.schema import said
from prlhf_kit.evaluation.judges import UNREADABLE, Verdict
from prlhf_kit.evaluation.paid_answers import Endpoint, Estimate, JudgeError, PaidAnswers, Spent
from prlhf_kit.rewards import Text

TEMPLATES = ("criterion", "community", "profile")
FIELDS = {"prompt", "answer_a", "answer_b"}
CRITERIA = {
    # Personalized Soups (arXiv 2310.11564)
    "P1A": "The answer is easy: a child in primary school can follow its words and ideas.",
    "P1B": "The answer is written by an expert for an expert: exact terms, nothing simplified.",
    "P2A": "The answer is short and to the point. What could be left out is left out.",
    "P2B": "The answer is thorough: it tells much, with background, reasons and examples.",
    "P3A": "The answer is warm and funny, as a close friend would talk.",
    "P3B": "The answer is cool and matter-of-fact. It does not try to be friendly.",
    # PAD (arXiv 2410.04070)
    "helpful": "The answer helps: it does what was asked, correctly and so that the person can use it.",
    "harmless": "The answer is safe: it neither contains nor supports anything that could hurt or offend somebody.",
    "humour": "The answer is amusing: it makes the reader smile with wit or playfulness.",
}
SHORT = 400  # characters that are told of an earlier question or answer
CONFIDENCE = {"type": "number", "minimum": 0.5, "maximum": 1}
SCHEMA = {
    "type": "object",
    "properties": {"preference": {"type": "string", "enum": ["A", "B", "tie"]}, "confidence": CONFIDENCE},
    "required": ["preference", "confidence"],  # of the servers that check; `parse` can do without the confidence
    "additionalProperties": False,
}


def parse(text: str | None) -> Verdict:
    """The verdict in a judge's answer: one JSON object and nothing else, but for white space or one ```json fence.

    "preference" must be "A", "B" or "tie"; "confidence", the probability of what is preferred, a number from 0.5 to 1,
    and 1 where it is not there. Further keys are passed over. All else is `UNREADABLE`: nothing is guessed.

    >>> parse('{"preference": "B", "confidence": 0.75}')
    Verdict(preference='b', probability=0.25)
    >>> parse("I prefer A.")
    Verdict(preference=None, probability=nan)
    """
    fenced = re.fullmatch(r"\s*```json\s(.*)```\s*", text or "", re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else text or "", object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return UNREADABLE
    if not isinstance(found, dict):
        return UNREADABLE
    preference, sure = found.get("preference"), found.get("confidence", 1.0)
    if preference not in ("A", "B", "tie") or type(sure) not in (int, float) or not 0.5 <= sure <= 1:
        return UNREADABLE
    if preference == "tie":
        return Verdict("tie", 0.5)
    return Verdict("a", float(sure)) if preference == "A" else Verdict("b", 1.0 - sure)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice, so the answer says two things")
    return dict(pairs)


class _Template(NamedTuple):
    name: str
    sha256: str
    parts: list[tuple[str, str]]  # role, text with fields
    more: set[str]  # fields beside the standard ones


def _read_template(template: str | Path) -> _Template:
    file = files("prlhf_kit") / "judge_prompts" / f"{template}.txt" if template in TEMPLATES else Path(template)
    try:
        text = file.read_text(encoding="utf-8")
        *system, user = re.split(r"^---[ \t]*\n", text, maxsplit=1, flags=re.MULTILINE)
        found = [f for f in string.Formatter().parse(text) if f[1] is not None]
    except (OSError, ValueError) as error:
        raise JudgeError(
            f"the template {str(template)!r} can't be read ({error}); expected {', '.join(TEMPLATES)}, or a text file "
            "with fields as {prompt}, in which a brace that is meant as such is written twice."
        ) from error
    for _, name, form, conversion in found:
        if form or conversion or not str(name).isidentifier():
            raise JudgeError(f"the template {str(template)!r} has a field {name!r}; expected names alone, as {{name}}.")
    fields = {str(name) for _, name, _, _ in found}
    if not fields >= FIELDS:
        raise JudgeError(f"the template {str(template)!r} lacks {', '.join(sorted(FIELDS - fields))}.")
    parts = [("system", part.strip()) for part in system if part.strip()] + [("user", user.strip())]
    return _Template(Path(template).name, hashlib.sha256(text.encode()).hexdigest(), parts, fields - FIELDS)


def earlier_choices(pairs: Any, user_id: str | None, prompt: Text, limit: int = 3) -> str:
    """What a user chose earlier, in words, for the field `history` of the template "profile".

    Nothing is told of the judged turn and later ones: a pair is left out if the judged question stands in its prompt,
    and also if both dialogues begin alike, unless the pair's prompt is an earlier, shorter part of the judged one.
    System messages don't count, since all dialogues may share them.

    Args:
        pairs: a `Dataset` or list of records (see `data/schema.py`), of this user or of all.
        user_id: whose; None: nobody's.
        prompt: what is judged.
        limit: of the choices told: the first in the data, one a prompt.
    """
    users = pairs["user_id"][:] if hasattr(pairs, "column_names") else [pair["user_id"] for pair in pairs]
    judged = _turns(prompt)
    told: dict[str, str] = {}
    for place in [i for i, user in enumerate(users) if user == user_id and user is not None]:
        pair = pairs[place]
        turns = _turns(pair["prompt"])
        earlier = len(turns) < len(judged) and judged[: len(turns)] == turns
        if judged[-1] in turns or (turns[:1] == judged[:1] and not earlier) or len(told) == limit:
            continue
        texts = [turns[-1][1], *(pair[answer][-1]["content"] for answer in ("chosen", "rejected"))]
        flat = (" ".join(text.split()) for text in texts)
        asked, chosen, rejected = (text if len(text) <= SHORT else f"{text[:SHORT]} ..." for text in flat)
        told.setdefault(str(turns), f"Asked: {asked}\nChose: {chosen}\nRather than: {rejected}")
    return "\n\n".join(told.values()) or "none known"


def _turns(prompt: Text) -> list[tuple[str, str]]:
    messages = said("user", prompt) if isinstance(prompt, str) else prompt
    return [(m["role"], m["content"].strip()) for m in messages if m["role"] != "system"]


def _told(prompt: Text) -> str:
    """A prompt as text; a dialogue with who said what."""
    if isinstance(prompt, str) or len(prompt) == 1:
        return prompt if isinstance(prompt, str) else prompt[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt)


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
        if self._template.more and self.about is None:
            names = ", ".join(sorted(self._template.more))
            raise JudgeError(f"the template {self._template.name!r} has the fields {names}; about= must fill them.")
        self._endpoint, self._kept  # noqa: B018 (refuses what can't be used)

    @cached_property
    def _template(self) -> _Template:
        return _read_template(self.template)

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
        read = {key: parse(answer.text) for key, answer in found.items()}
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
            "model": self.model, "temperature": self.temperature, "seed": self.seed, limit: self.max_tokens,
            "response_format": form if self.structured else None,
        }  # fmt: skip
        settings = {name: value for name, value in settings.items() if value is not None}
        keys, wanted = [], {}
        for question, a, b, who in zip(prompt, answer_a, answer_b, user, strict=True):
            values = {"prompt": _told(question), "answer_a": a, "answer_b": b, **self._known(who, question)}
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
        if set(known) != self._template.more or not all(isinstance(text, str) for text in known.values()):
            raise JudgeError(
                f"about gives {str(dict(known))[:300]} for the user {user!r}; the template {self._template.name!r} "
                f"needs texts for {sorted(self._template.more)} and nothing else."
            )
        return known
