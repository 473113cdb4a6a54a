"""Cards of a comparison: one system's answer each, and how it looks, live in the widget or static in a notebook.

All text is escaped. The looks are in `widgets.css`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from prlhf_kit.decoding.answers import GuidedAnswer
from prlhf_kit.decoding.generate import DecodingError, Prompt
from prlhf_kit.evaluation.judges import prompt_text
from prlhf_kit.people import User
from prlhf_kit.systems import Reward, System

STYLE = f"<style>{Path(__file__).with_name('widgets.css').read_text(encoding='utf-8')}</style>"
UNFINISHED = "\ufffd"  # what a tokenizer makes of bytes that are no character yet


@dataclass
class Card:
    """One answer: of a system, for one user, or for all `users` alike where the system does not know who asks.

    Args:
        weight: PAD's w; of a system with a weight of its own, that.
        state: "waiting", "writing", "done", "stopped" or "failed".
        rewards: (user, name of the reward, value).
    """

    system: System
    users: list[User]
    weight: float
    state: str = "waiting"
    answer: GuidedAnswer | None = None
    error: str = ""
    rewards: list[tuple[User, str, float]] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.system.name}, w = {self.weight:g}" if self.system.weight is None else self.system.name

    @property
    def whom(self) -> str:
        return self.users[0].name if self.system.by_user else "anyone"

    @property
    def text(self) -> str:
        return self.answer.text if self.answer else ""

    def write(
        self, prompt: Prompt, rewards: Mapping[str, Reward], stop: threading.Event, max_new_tokens: int
    ) -> Iterator[None]:
        """Write the answer, yielding after every token, and then its rewards. An error ends this card alone."""
        try:
            self.state = "stopped" if stop.is_set() else "writing"
            if self.state == "writing":
                for draft in self.system.stream(prompt, self.users[0], self.weight, stop, max_new_tokens):
                    self.answer = draft
                    yield
                self.state = "stopped" if stop.is_set() else "done"
            if self.text and self.state == "done":
                for user in self.users:
                    found = {name: reward(user, prompt, self.text) for name, reward in rewards.items()}
                    self.rewards += [(user, name, value) for name, value in found.items() if value is not None]
        except Exception as error:  # whatever a model or a reward raises is shown where it happened
            kind = "" if isinstance(error, DecodingError) else f"{type(error).__name__}: "
            self.state, self.error = "failed", f"{kind}{error}"
        yield


def lay_out(systems: Sequence[System], users: Sequence[User], weight: float) -> list[Card]:
    """A card for each system and user, and one for all users where the system does not know who asks."""
    return [
        Card(system, whom, weight if system.weight is None else system.weight)
        for system in systems
        for whom in ([[user] for user in users] if system.by_user else [list(users)])
    ]


def write_all(
    prompt: Prompt, systems: Sequence[System], users: Sequence[User], weight: float,
    rewards: Mapping[str, Reward], max_new_tokens: int,
) -> list[Card]:  # fmt: skip
    """The cards of `lay_out` for which the system has what it goes by, written one after the other.

    Raises:
        RuntimeError: one failed.
    """
    cards = [card for card in lay_out(systems, users, weight) if card.system.knows(card.users[0])]
    for card in tqdm(cards, desc="answers", disable=None, leave=False):
        for _ in card.write(prompt, rewards, threading.Event(), max_new_tokens):
            pass
        if card.error:
            raise RuntimeError(f"{card.title} has no answer for {card.whom}. {card.error}")
    return cards


def table(prompt: Prompt, cards: Sequence[Card]) -> pd.DataFrame:
    """One row a card: `prompt`, `system`, `for`, `answer` (or the error), `tokens`, `moved`, and each reward.

    Rewards of an answer that is for all users alike are means over them.
    """
    rows = []
    for card in cards:
        names = dict.fromkeys(name for _, name, _ in card.rewards)
        rows.append(
            {"prompt": prompt_text(prompt), "system": card.title, "for": card.whom, "answer": card.text or card.error,
             "tokens": len(card.answer.tokens) if card.answer else 0,
             "moved": sum(card.answer.changed) if card.answer else 0}
            | {name: float(np.mean([v for _, n, v in card.rewards if n == name])) for name in names}
        )  # fmt: skip
    return pd.DataFrame(rows)


def static(prompt: Prompt, cards: Sequence[Card]) -> str:
    """A prompt and its cards as a piece of HTML that needs no kernel and no script."""
    shown = "".join(f'<div class="prlhf-card">{as_html(card, i)}</div>' for i, card in enumerate(cards))
    asked = f'<p class="prlhf-asked">{escape(prompt_text(prompt))}</p>'
    return f'{STYLE}<div class="prlhf-static">{asked}<div class="prlhf-cards">{shown}</div></div>'


def as_html(card: Card, number: int, hidden: bool = False) -> str:
    """A card's content. `hidden`: neither its system and user nor what would give them away."""
    label = f"Answer {number + 1}"
    who = "" if hidden else f'<p class="prlhf-who"><b>{escape(card.title)}</b><br>for {escape(card.whom)}</p>'
    names = "" if hidden else f' data-system="{escape(card.system.name)}" data-user="{escape(card.whom)}"'
    if not hidden and card.system.by_user and card.users[0].words:
        who += f'<p class="prlhf-words">“{escape(card.users[0].words)}”</p>'
    busy = card.state == "writing"
    if card.answer is None:
        text = "" if card.state == "failed" else "<i>not written</i>" if card.state == "stopped" else "<i>…</i>"
    elif hidden or busy:
        text = escape(card.text)
    else:
        text = marked(card.answer, card.system.tokenizer) or "<i>an empty answer</i>"
    failed = f'<p class="prlhf-error" role="alert"><b>Error.</b> {escape(card.error)}</p>' if card.error else ""
    below = ""
    if card.answer is not None and not hidden:
        moved, n = sum(card.answer.changed), len(card.answer.tokens)
        rate = f", {card.answer.tokens_per_second:.1f} a second" if card.answer.seconds else ""
        below = f'{_rewards(card)}<p class="prlhf-made">{n} tokens{rate}; {moved} moved by the reward</p>'
    aria = label if hidden else f"{label}: {card.title}, for {card.whom}"
    return (
        f'<article data-card="{number}" data-state="{card.state}"{names} aria-label="{escape(aria)}" '
        f'aria-busy="{str(busy).lower()}"><h4>{label}</h4>{who}'
        f'<div class="prlhf-text">{text}</div>{failed}{below}</article>'
    )


def _rewards(card: Card) -> str:
    rows = [
        f"<div><dt>{escape(name)}{'' if len(card.users) == 1 else f'<br>of {escape(user.name)}'}</dt>"
        f'<dd data-reward="{escape(name)}" data-for="{escape(user.name)}">{value:+.2f}</dd></div>'
        for user, name, value in card.rewards
    ]
    return f'<dl class="prlhf-rewards">{"".join(rows)}</dl>' if rows else ""


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
    """For people to read: white space by name."""
    return text.strip() or ("line break" if "\n" in text else "space" if text else "end of the answer")


def marked(answer: GuidedAnswer, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text, with every token that the reward moved underlined and shaded, the deeper the more it was worth.

    What the base would have said there, and the reward gained, appear on hover and on keyboard focus.
    """
    gained = np.nan_to_num(np.array(answer.rewards) - np.array(answer.base_rewards))
    changed = np.array(answer.changed, dtype=bool)
    most = max(gained[changed].max(initial=0.0), 1e-9)
    parts: list[str] = []
    before: list[int] = []
    for start, stop, text in pieces(tokenizer, answer.tokens):
        shown = text if any(parts) else text.lstrip()
        moved = [i for i in range(start, stop) if changed[i]]
        if moved:
            behind = [*before, *answer.tokens[start : moved[0]]]
            base = _visible(_behind(tokenizer, behind, [answer.base_tokens[moved[0]]]).replace(UNFINISHED, ""))
            gain = gained[moved].sum()
            label = f"{_visible(shown)}; the base model would say: {base}; reward {gain:+.2f}"
            ahead = shown[: len(shown) - len(shown.lstrip())]
            sign = shown.strip() or ("↵" if "\n" in shown else "␣" if shown else "∎")  # so that it can be pointed at
            parts.append(
                f'{ahead}<span class="prlhf-token" data-base="{escape(base)}" data-gain="{gain:+.2f}" tabindex="0" '
                f'role="note" aria-label="{escape(label)}" style="--gain: {max(gain, 0.0) / most:.2f}">'
                f"{escape(sign)}</span>{shown[len(shown.rstrip()) :] if shown.strip() else ''}"
            )
        else:
            parts.append(escape(shown))
        before = answer.tokens[start:stop]
    return "".join(parts).rstrip()
