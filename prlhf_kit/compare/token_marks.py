"""An answer's tokens as text for people to read, with those marked that the base model would not have said."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from prlhf_kit.decoding.answers import GuidedAnswer

UNFINISHED = "\ufffd"  # what a tokenizer makes of bytes that are no character yet


class Piece(NamedTuple):
    """The least number of tokens that are whole characters: `tokens[start:stop]`, and their text."""

    start: int
    stop: int
    text: str


def pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[Piece]:
    """An answer's tokens as text, one by one where a character does not need several of them.

    Each is read behind the one before it, since a tokenizer may drop the space of what comes first.
    """
    found: list[Piece] = []
    start = 0
    for stop in range(1, len(tokens) + 1):
        before = tokens[found[-1].start : start] if found else []
        text = _behind(tokenizer, before, tokens[start:stop])
        if not text.endswith(UNFINISHED) or stop == len(tokens):
            found.append(Piece(start, stop, text))
            start = stop
    return found


def _behind(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], tokens: Sequence[int]) -> str:
    ahead, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in ([*before], [*before, *tokens]))
    return whole[len(ahead) :]


def _visible(text: str) -> str:
    """For people to read: what can't be seen, by name."""
    if UNFINISHED in text:
        return "part of a character"
    return text.strip() or ("line break" if "\n" in text else "space" if text else "end of the answer")


def marked(answer: GuidedAnswer, tokenizer: PreTrainedTokenizerBase, by_reward: bool = True) -> str:
    """The text, with every token that the base would not have said underlined, and shaded by what it gained.

    What the base would have said there appears on hover and on keyboard focus; and the reward gained, if it is
    `by_reward` that an answer differs from the base's.
    """
    gained = np.nan_to_num(np.array(answer.rewards) - np.array(answer.base_rewards))
    changed = np.array(answer.changed, dtype=bool)
    most = max(gained[changed].max(initial=0.0), 1e-9)
    parts: list[str] = []
    before: list[int] = []
    for start, stop, text in pieces(tokenizer, answer.tokens):
        first = not any(parts)
        moved = [i for i in range(start, stop) if changed[i]]
        if moved:
            instead = [*answer.tokens[start : moved[0]], answer.base_tokens[moved[0]]]
            base, token = _visible(_behind(tokenizer, before, instead)), _visible(text)
            gain = gained[moved].sum()
            worth = (f' data-gain="{gain:+.2f}"', f"; reward {gain:+.2f}") if by_reward else ("", "")
            label = f"{token}; the base model would say: {base}{worth[1]}"
            ahead = "" if first else text[: len(text) - len(text.lstrip())]
            # so that it can be pointed at
            sign = "▯" if UNFINISHED in text else text.strip() or ("↵" if "\n" in text else "␣" if text else "∎")
            parts.append(
                f'{ahead}<span class="prlhf-token" data-base="{escape(base)}"{worth[0]} tabindex="0" '
                f'role="note" aria-label="{escape(label)}" style="--gain: {max(gain, 0.0) / most:.2f}">'
                f"{escape(sign)}</span>{text[len(text.rstrip()) :] if text.strip() else ''}"
            )
        else:
            text = text.rstrip(UNFINISHED)
            parts.append(escape(text.lstrip() if first else text))
        before = answer.tokens[start:stop]
    return "".join(parts).rstrip()
