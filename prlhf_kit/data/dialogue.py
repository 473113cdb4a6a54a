"""Dialogues written as one text, and DSP's `text`-`score` format, in and out.

HH-RLHF marks turns with "\\n\\nHuman: " and "\\n\\nAssistant: ", DSP's cleaned files (Cheng et al. 2023) also with
"## Human:\\n" and "\\n\\n## Assistant:\\n". A `text`-`score` row holds the same dialogue with different last answers,
`{"text": [...], "score": [...]}`; equal scores are ties.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from prlhf_kit.data.cards import Tally, opening, split_of
from prlhf_kit.data.schema import SchemaError, record

GENERAL = "general"  # the one user of datasets that do not say who preferred what
_TURN = re.compile(r"(?:^|\n\n)(?:## )?(Human|Assistant):[ \n]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class NotAPair(ValueError):
    """Two texts that are no preference pair; the message is the reason under which the row is dropped."""


def better_of(a: object, b: object) -> int | None:
    """0 or 1: which of two scores is higher. None for a tie.

    Raises:
        SchemaError: one is no finite number, so that the other would win by accident.
    """
    for score in (a, b):
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise SchemaError(f"a score is {score!r}, expected a finite number. Leave out rows without a judgement.")
    return None if a == b else int(b > a)  # type: ignore[operator]


def parse(text: str) -> list[dict[str, str]]:
    r"""Messages of a marked text; consecutive turns of the same side are joined.

    >>> parse("\n\nHuman: Hi.\n\nAssistant: Hello!")
    [{'role': 'user', 'content': 'Hi.'}, {'role': 'assistant', 'content': 'Hello!'}]
    >>> parse("## Human:\nHi.\n\n## Assistant:\nHello!")[1]
    {'role': 'assistant', 'content': 'Hello!'}

    Raises:
        NotAPair: text without marks, or in front of the first one.
    """
    parts = _TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise NotAPair("text without Human: and Assistant: marks")
    messages: list[dict[str, str]] = []
    for side, content in zip(parts[1::2], parts[2::2], strict=True):
        role, content = _ROLES[side], content.strip()
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content}".strip()
        else:
            messages.append({"role": role, "content": content})
    return messages


def common_prompt(*texts: str | None) -> tuple[list[dict[str, str]], list[str]]:
    """The dialogue that several marked texts share, and each one's last answer.

    Raises:
        NotAPair: they differ before the last answer, or do not go from a human's turn to an assistant's.
    """
    dialogues = [parse(text or "") for text in texts]
    prompt = dialogues[0][:-1]
    if any(dialogue[-1]["role"] != "assistant" for dialogue in dialogues):
        raise NotAPair("the dialogue does not end with the assistant")
    if any(dialogue[:-1] != prompt for dialogue in dialogues):
        raise NotAPair("the dialogues differ before their last answer")
    if not prompt or prompt[0]["role"] != "user":
        raise NotAPair("the dialogue does not begin with the human")
    return prompt, [dialogue[-1]["content"] for dialogue in dialogues]


def layout(prompt: list[dict[str, str]], response: list[dict[str, str]]) -> str:
    """A dialogue as DSP's cleaned files write it: the inverse of `parse` (white space at the ends of turns apart).

    Raises:
        SchemaError: the format can't hold the dialogue: a system message, or a text with marks of its own.
    """
    sides = {role: side for side, role in _ROLES.items()}
    messages = [{"role": m["role"], "content": m["content"].strip()} for m in (*prompt, *response)]
    text = "\n\n".join(f"## {sides.get(m['role'])}:\n{m['content']}" for m in messages)
    if any(m["role"] not in sides for m in messages) or parse(text) != messages:
        raise SchemaError(
            "the text-score format can't hold a system message, or a turn that itself holds Human: or Assistant: "
            f"marks: {text[:120]!r}. Leave that row out."
        )
    return text


def text_score_records(
    rows: Iterable[dict[str, Any]],
    tally: Tally,
    name: str,
    user_id: str = GENERAL,
    part: str | None = None,
    test_share: float = 0.1,
    seed: int = 0,
    unseen: Iterable[str] = (),
    count: str = "comparisons",
) -> Iterator[tuple[str, dict]]:
    """Records of `text`-`score` rows of one user. Ties and what is no pair are dropped and counted, by pair.

    Args:
        part, test_share, seed, unseen: see `split_of`; without a part it goes by the dialogue's first turn.
        count: under which name rows are counted.
    """
    for number, row in enumerate(rows):
        tally.count(count)
        texts, scores = row["text"], row["score"]
        if len(texts) != len(scores) or len(texts) < 2:
            raise SchemaError(f"a row has {len(texts)} texts and {len(scores)} scores, expected as many, at least two.")
        split = split_of(user_id, "", unseen, test_share, seed, part) if part else None
        pairs = []
        for places in combinations(range(len(texts)), 2):
            better = better_of(*(scores[i] for i in places))
            if better is None:
                tally.drop(split, user_id, "tie")
            else:
                pairs.append((places[better], places[1 - better]))
        if not pairs:
            continue
        try:
            prompt, answers = common_prompt(*texts)
        except NotAPair as reason:
            tally.drop(split, user_id, str(reason), len(pairs))
            continue
        split = split or split_of(user_id, opening(prompt), unseen, test_share, seed)
        for i, j in pairs:
            yield split, record(f"{name}-{split}-{user_id}-{number}-{i}-{j}", user_id, prompt, answers[i], answers[j])


def write_text_score(rows: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Write preference records, or listwise ones (`dsp.listwise`), as DSP's `text`-`score` JSON."""
    out = []
    for row in rows:
        if "responses" in row:
            texts, scores = [layout(row["prompt"], response) for response in row["responses"]], list(row["scores"])
        else:
            texts, scores = [layout(row["prompt"], row[c]) for c in ("chosen", "rejected")], [1.0, 0.0]
        out.append({"text": texts, "score": scores})
    Path(path).write_text(json.dumps(out, ensure_ascii=False))
