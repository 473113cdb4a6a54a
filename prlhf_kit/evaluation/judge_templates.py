"""What a language model is asked as a judge, what it is told of a person, and how its answer is read. Another protocol
is a text file in `judge_prompts`, and its name in `TEMPLATES`."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from prlhf_kit.data.schema import message
from prlhf_kit.data.templates import Template, read_template
from prlhf_kit.evaluation.endpoint import JudgeError
from prlhf_kit.evaluation.judges import UNREADABLE, Verdict
from prlhf_kit.models.rewards import Text

FIELDS = {"prompt", "answer_a", "answer_b"}  # of every template
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
SCHEMA = {
    "type": "object",
    "properties": {
        "preference": {"type": "string", "enum": ["A", "B", "tie"]},
        "confidence": {"type": "number", "minimum": 0.5, "maximum": 1},
    },
    "required": ["preference", "confidence"],  # of the servers that check; `parse_verdict` needs no confidence
    "additionalProperties": False,
}


def parse_verdict(text: str | None) -> Verdict:
    """The verdict in a judge's answer: one JSON object and nothing else, but for white space or one ```json fence.

    "preference" is "A", "B" or "tie"; "confidence" its probability, from 0.5 to 1, and 1 where it is not there. All
    else but further keys is `UNREADABLE`: nothing is guessed.

    >>> parse_verdict('{"preference": "B", "confidence": 0.75}')
    Verdict(preference='b', probability=0.25)
    """

    fenced = re.fullmatch(r"\s*```json\s(.*)```\s*", text or "", re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else text or "")
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


TEMPLATES = ("criterion", "community", "profile")


def read_judge_template(template: str | Path) -> Template:
    """One of `TEMPLATES`, or a text file of the same form, see `LLMJudge`. Raises `JudgeError`."""
    try:
        found = read_template(template, "evaluation/judge_prompts", TEMPLATES)
    except ValueError as error:
        raise JudgeError(str(error)) from error
    if missing := FIELDS - found.fields:
        raise JudgeError(f"the template {str(template)!r} lacks {', '.join(sorted(missing))}.")
    return found


def about(
    people: Mapping[str, str | None], earlier: Dataset | None = None
) -> Callable[[str | None, Text], dict[str, str]]:
    """What an `LLMJudge` is told, in all shipped templates, of the person who really asked (the answers' `user_id`):
    its argument `about`, (user, prompt) -> `community`, `profile`, `criterion` (in `CRITERIA`, else the profile) and
    `history`.

    Args:
        people: `user_id` -> `user_text`. A judge is told of nobody else.
        earlier: pairs from which `history` is told, see `earlier_choices`.
    """
    places = defaultdict(list)
    for place, user in enumerate(earlier["user_id"] if earlier else ()):
        places[user].append(place)

    def known(user: str | None, prompt: Text) -> dict[str, str]:
        if user is None or user not in people:
            return {}
        said, own = people[user], (earlier[place] for place in places[user]) if earlier else ()
        history = earlier_choices(own, prompt)
        found = {"community": user, "profile": said, "criterion": CRITERIA.get(user, said), "history": history}
        return {name: text for name, text in found.items() if text}

    return known


def earlier_choices(pairs: Iterable[Mapping[str, Any]], prompt: Text, limit: int = 3) -> str:
    """What a user chose in the first `limit` of their `pairs`, one a prompt, in words: `history` of the template
    "profile". Nothing is told of the judged turn and later ones: a pair is left out if the judged question stands in
    its prompt, and if both dialogues begin alike (system messages apart), unless its prompt is an earlier, shorter part
    of the judged one."""
    judged = _turns(prompt)
    told: dict[str, str] = {}
    for pair in pairs:
        if len(told) == limit:
            break
        turns = _turns(pair["prompt"])
        earlier = len(turns) < len(judged) and judged[: len(turns)] == turns
        if judged[-1] in turns or (turns[:1] == judged[:1] and not earlier):
            continue
        texts = [turns[-1][1], *(pair[answer][-1]["content"] for answer in ("chosen", "rejected"))]
        flat = (" ".join(text.split()) for text in texts)
        asked, chosen, rejected = (text if len(text) <= SHORT else f"{text[:SHORT]} ..." for text in flat)
        told.setdefault(str(turns), f"Asked: {asked}\nChose: {chosen}\nRather than: {rejected}")
    return "\n\n".join(told.values()) or "none known"


def _turns(prompt: Text) -> list[tuple[str, str]]:
    messages = message("user", prompt) if isinstance(prompt, str) else prompt
    return [(m["role"], m["content"].strip()) for m in messages if m["role"] != "system"]


def as_text(prompt: Text) -> str:
    """A prompt as text; a dialogue with who said what."""
    if isinstance(prompt, str) or len(prompt) == 1:
        return prompt if isinstance(prompt, str) else prompt[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt)
