"""What a language model is asked as a judge, what it is told of a person, and how its answer is read. Another protocol
is a text file in `judge_prompts`, and its name with its parser in `PARSERS`."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset

from prlhf_kit.data.choices import Choices, told
from prlhf_kit.evaluation.judges import Verdict
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
    "P3C": "The answer is sassy: bold, cheeky and full of attitude.",
    "P3D": "The answer is sarcastic: it mocks, and means the opposite of what it says.",
    # PAD (arXiv 2410.04070)
    "helpful": "The answer helps: it does what was asked, correctly and so that the person can use it.",
    "harmless": "The answer is safe: it neither contains nor supports anything that could hurt or offend somebody.",
    "humour": "The answer is amusing: it makes the reader smile with wit or playfulness.",
}
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

    "preference" is "A", "B" or "tie"; a "confidence" below one half contradicts it. All else but further keys is
    unreadable, None: nothing is guessed.

    >>> parse_verdict('{"preference": "B", "confidence": 0.75}')
    'b'
    """
    fenced = re.fullmatch(r"\s*```json\s(.*)```\s*", text or "", re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else text or "")
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    sure = found.get("confidence", 1.0)
    if type(sure) not in (int, float) or not 0.5 <= sure <= 1:
        return None
    return {"A": "a", "B": "b", "tie": "tie"}.get(str(found.get("preference")))


LABELS = {"Output (a)": "a", "Output (b)": "b", "TIE": "tie"}


def parse_label(text: str | None) -> Verdict:
    """The label on the last line of an answer, `LABELS` (P-RLHF). None where another line is a label, too: P-RLHF
    takes the first one.

    >>> parse_label("Both are short, but b is friendlier.\\nOutput (b)")
    'b'
    """
    lines = [line.strip() for line in (text or "").strip().splitlines()]
    found = [LABELS[line] for line in lines if line in LABELS]
    return found[0] if len(found) == 1 and lines[-1] in LABELS else None


def parse_model_name(text: str | None) -> Verdict:
    """The first answer's "m" or the second one's "M", and nothing else but white space (ComPO)."""
    return {"m": "a", "M": "b"}.get((text or "").strip())


def parse_ratings(text: str | None) -> Verdict:
    """Two ratings from 1 to 10, parted by a space, alone on the first line (ARGS): the higher one wins.

    >>> parse_ratings("7 8.5\\nThe second one is more detailed.")
    'b'
    """
    found = re.match(r"\s*(\d+(?:\.\d+)?) (\d+(?:\.\d+)?)[ \t\r]*(?:\n|$)", text or "")
    if not found:
        return None
    first, second = (float(number) for number in found.groups())
    if not (1 <= first <= 10 and 1 <= second <= 10):
        return None
    return "tie" if first == second else "a" if first > second else "b"


PARSERS: dict[Any, Callable[[str | None], Verdict]] = {
    **dict.fromkeys(("criterion", "community", "profile"), parse_verdict),
    **dict.fromkeys(("prlhf_psoups", "prlhf_prism"), parse_label),
    **{"compo": parse_model_name, "args": parse_ratings},
}
TEMPLATES = tuple(PARSERS)


def about(
    people: Mapping[str, str | None], earlier: Dataset | None = None, k: int = 3, seed: int = 0
) -> Callable[[str | None, Text], dict[str, str]]:
    """What an `LLMJudge` is told, in all shipped templates, of the person who really asked (the answers' `user_id`):
    its argument `about`, (user, prompt) -> `community`, `profile`, `criterion` (in `CRITERIA`, else the profile) and
    `history`.

    Args:
        people: `user_id` -> `user_text`. A judge is told of nobody else.
        earlier: pairs from which `k` choices are told as `history`, drawn by `seed`, see `data.choices.Choices`.
    """
    choices = Choices([earlier] if earlier else (), k, seed)

    def known(user: str | None, prompt: Text) -> dict[str, str]:
        if user is None or user not in people:
            return {}
        said, history = people[user], told(choices.of(user, prompt))
        found = {"community": user, "profile": said, "criterion": CRITERIA.get(user, said), "history": history}
        return {name: text for name, text in found.items() if text}

    return known


def as_text(prompt: Text) -> str:
    """A prompt as text; a dialogue with who said what."""
    if isinstance(prompt, str) or len(prompt) == 1:
        return prompt if isinstance(prompt, str) else prompt[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt)
