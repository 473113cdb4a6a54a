"""Dialogues written as one text, and DSP's `text`-`score` format (Cheng et al. 2023), in and out: `{"text": [...],
"score": [...]}`, the same dialogue with different last answers."""

import json
import math
import re
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

from prlhf_kit.data.registry import Records, Tally, opening, split_for, split_of
from prlhf_kit.data.schema import SchemaError, record

GENERAL = "general"  # the one user of datasets that do not say who preferred what
# HH-RLHF's marks "\n\nHuman: " and "\n\nAssistant: ", and those of DSP's cleaned files, "## Human:\n"
_TURN = re.compile(r"(?:^|\n\n)(?:## )?(Human|Assistant):[ \n]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class NotAPair(ValueError):
    """Two texts that are no preference pair; the message is the reason under which the row is dropped."""


def parse(text: str) -> list[dict[str, str]]:
    r"""Messages of a marked text; consecutive turns of the same side are joined.

    >>> parse("\n\nHuman: Hi.\n\nAssistant: Hello!")
    [{'role': 'user', 'content': 'Hi.'}, {'role': 'assistant', 'content': 'Hello!'}]

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


def _ranked(row: dict[str, Any]) -> tuple[None, list[Any], list[Any]]:
    return None, [row["chosen"], row["rejected"]], [1, 0]


def scored_records(
    parts: Iterable[tuple[str | None, Iterable[dict[str, Any]]]],
    tally: Tally,
    name: str,
    test_share: float,
    seed: int,
    read: Callable[[dict[str, Any]], tuple[list[dict[str, str]] | None, list[Any], list[Any]]] = _ranked,
    *,
    unseen: Iterable[str] = (),
    user_id: str = GENERAL,
    user_text: str | None = None,
    count: str = "comparisons",
) -> Records:
    """Records of one user, from rows that hold several answers to a prompt and a score for each: every pair of answers
    with different scores. Ties and what is no pair are dropped and counted.

    Args:
        parts: ("train", rows) and ("test", rows), or (None, rows), which are split by the prompt's first turn.
        read: (prompt, answers, scores) of a row that is not in `text`-`score` format; prompt None: the answers are
            whole dialogues, as they are in that format, and as `chosen` and `rejected` are, which are read by default.
        count: under which name rows are counted, by part.
    """
    for part, rows in parts:
        for number, row in enumerate(rows):
            tally.count(f"{count}, {part}" if part else count)
            prompt, answers, scores = (None, row["text"], row["score"]) if "text" in row else read(row)
            if len(answers) != len(scores) or len(answers) < 2:
                raise SchemaError(f"{len(answers)} texts, {len(scores)} scores: give as many, two or more.")
            for score in scores:  # the other answer would win by accident
                if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                    raise SchemaError(f"a score is {score!r}, expected a finite number. Leave such rows out.")
            try:
                if prompt is None:
                    prompt, answers = common_prompt(*answers)
            except NotAPair as reason:
                split = split_for(user_id in unseen, part == "test") if part else None
                tally.drop(split, user_id, str(reason), math.comb(len(answers), 2))
                continue
            split = split_of(user_id, opening(prompt), unseen, test_share, seed, part)
            for i, j in combinations(range(len(answers)), 2):
                if scores[i] == scores[j]:
                    tally.drop(split, user_id, "tie")
                    continue
                better, worse = (i, j) if scores[i] > scores[j] else (j, i)
                pair_id = f"{name}-{part or 'all'}-{user_id}-{number}-{better}-{worse}"
                yield split, record(pair_id, user_id, prompt, answers[better], answers[worse], user_text)


def write_text_score(rows: Iterable[dict[str, Any]], path: str | Path) -> int:
    """Write preference records, or listwise ones (`dsp.listwise`), as DSP's `text`-`score` JSON; return how many rows
    it can't hold and were left out: those with a system message, or with marks such as "Human:" inside a turn."""
    sides = {role: side for side, role in _ROLES.items()}
    out, left_out = [], 0
    for row in rows:
        responses = row["responses"] if "responses" in row else [row["chosen"], row["rejected"]]
        dialogues = [
            [{"role": m["role"], "content": m["content"].strip()} for m in (*row["prompt"], *response)]
            for response in responses
        ]
        texts = ["\n\n".join(f"## {sides.get(m['role'])}:\n{m['content']}" for m in turns) for turns in dialogues]
        if any(m["role"] not in sides for m in dialogues[0]) or [parse(text) for text in texts] != dialogues:
            left_out += 1
            continue
        out.append({"text": texts, "score": list(row["scores"]) if "responses" in row else [1.0, 0.0]})
    Path(path).write_text(json.dumps(out, ensure_ascii=False))
    return left_out
