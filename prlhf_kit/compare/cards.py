"""Cards of a comparison: one system's answer each, and how it looks, live in the widget or static in a notebook.

All text is escaped. The looks are in `widgets.css`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.core.getipython import get_ipython
from tqdm.auto import tqdm

from prlhf_kit.compare.people import User
from prlhf_kit.compare.systems import Reward, System
from prlhf_kit.compare.token_marks import UNFINISHED, marked
from prlhf_kit.data.chat import prompt_text
from prlhf_kit.decoding.answers import GuidedAnswer
from prlhf_kit.decoding.generate import DecodingError, Prompt
from prlhf_kit.runs.stage import UNDER_RUNNER

STYLE = f"<style>{Path(__file__).with_name('widgets.css').read_text(encoding='utf-8')}</style>"


@dataclass
class Card:
    """One answer: of a system, for one user, or for all `users` alike where the system does not know who asks.

    Args:
        weight: PAD's w; of a system with a weight of its own, that.
        state: "waiting", "writing", "done", "stopped" or "failed".
        ended: the model ended the answer; an answer that is done without that was cut off at the longest length.
        rewards: (user, name of the reward, value).
    """

    system: System
    users: list[User]
    weight: float
    state: str = "waiting"
    answer: GuidedAnswer | None = None
    error: str = ""
    ended: bool = False
    rewards: list[tuple[User, str, float]] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.system.name}, w = {self.weight:g}" if self.system.weight is None else self.system.name

    @property
    def whom(self) -> str:
        return self.users[0].name if self.system.by_user else "anyone"

    @property
    def text(self) -> str:
        """Less a last character that was cut off."""
        return self.answer.text.rstrip(UNFINISHED) if self.answer else ""

    @property
    def by_reward(self) -> bool:
        """Whether a personal reward is what tells the system from the base: not other training or another prompt."""
        return self.system.reads == "user" or self.system.weight is None

    def made_by(self) -> dict[str, Any]:
        """What made the answer, in plain values, to be kept with a vote."""
        user = self.users[0] if self.system.by_user else None
        return {
            "system": self.system.name,
            "user": user and user.user_id,
            "for": self.whom,
            "weight": self.weight,
            "top_k": self.system.top_k,
            "fitted": user.fitted._asdict() if user and user.fitted else None,
            "ended": self.ended,
        }

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
                self.ended = self.answer is not None and self.system.ended(self.answer.tokens)
            if self.text and self.state == "done":
                for user in self.users:
                    found = {name: reward(user, prompt, self.text) for name, reward in rewards.items()}
                    self.rewards += [(user, name, value) for name, value in found.items() if value is not None]
        except Exception as error:  # whatever a model or a reward raises is shown where it happened
            kind = "" if isinstance(error, DecodingError) else f"{type(error).__name__}: "
            self.state, self.error = "failed", f"{kind}{error}"
        yield


def lay_out(systems: Sequence[System], users: Sequence[User], weight: float) -> list[Card]:
    """A card for each system and user, and one for all users where the system does not know who asks.

    Users of whom a system does not have what it goes by are left out.
    """
    return [
        Card(system, whom, weight if system.weight is None else system.weight)
        for system in systems
        for whom in ([[user] for user in users if system.knows(user)] if system.by_user else [list(users)])
    ]


def write_all(
    prompt: Prompt,
    systems: Sequence[System],
    users: Sequence[User],
    weight: float,
    rewards: Mapping[str, Reward],
    max_new_tokens: int,
) -> list[Card]:
    """The cards of `lay_out`, written one after the other.

    Raises:
        RuntimeError: one failed.
    """
    cards = lay_out(systems, users, weight)
    for card in tqdm(cards, desc="answers", disable=None, leave=False):
        for _ in card.write(prompt, rewards, threading.Event(), max_new_tokens):
            pass
        if card.error:
            raise RuntimeError(f"{card.title} has no answer for {card.whom}. {card.error}")
    return cards


def table(prompt: Prompt, cards: Sequence[Card]) -> pd.DataFrame:
    """One row a card: `prompt`, `system`, `for`, `answer` (or the error), `tokens`, `moved` (tokens
    unlike the base's), `ended` (or else cut off), and each reward.

    Rewards of an answer that is for all users alike are means over them.
    """
    rows = []
    for card in cards:
        names = dict.fromkeys(name for _, name, _ in card.rewards)
        rows.append(
            {
                "prompt": prompt_text(prompt),
                "system": card.title,
                "for": card.whom,
                "answer": card.text or card.error,
                "tokens": len(card.answer.tokens) if card.answer else 0,
                "moved": sum(card.answer.changed) if card.answer else 0,
                "ended": card.ended,
            }
            | {name: float(np.mean([v for _, n, v in card.rewards if n == name])) for name in names}
        )
    return pd.DataFrame(rows)


def live() -> bool:
    """Whether somebody may be at the screen: in JupyterLab and the like, which take input, or in voila. Not under
    `prlhf run`, papermill or `jupyter execute`, where a widget would be left without a kernel."""
    message: Any = getattr(get_ipython(), "get_parent", dict)()  # the request to run this cell
    page = os.environ.get("SERVER_SOFTWARE", "").startswith("voila") or message.get("content", {}).get("allow_stdin")
    return bool(page) and not os.environ.get(UNDER_RUNNER)


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
        text = marked(card.answer, card.system.tokenizer, card.by_reward) or "<i>an empty answer</i>"
    error = "This answer could not be written." if hidden else card.error  # an error may name what it is of
    below = f'<p class="prlhf-error" role="alert"><b>Error.</b> {escape(error)}</p>' if card.error else ""
    if card.answer is not None and card.state == "done" and not card.ended:
        below += f'<p class="prlhf-made prlhf-cut">cut off at {len(card.answer.tokens)} tokens</p>'
    if card.answer is not None and not hidden:
        moved, n = sum(card.answer.changed), len(card.answer.tokens)
        rate = f", {card.answer.tokens_per_second:.1f} a second" if card.answer.seconds else ""
        unlike = f"; {moved} {'moved by the reward' if card.by_reward else 'unlike the base model’s'}"
        counted = "" if card.system.weight == 0 else unlike  # that is the base
        below += f'{_rewards(card)}<p class="prlhf-made">{n} tokens{rate}{counted}</p>'
    aria = label if hidden else f"{label}: {card.title}, for {card.whom}"
    return (
        f'<article data-card="{number}" data-state="{card.state}"{names} aria-label="{escape(aria)}" '
        f'aria-busy="{str(busy).lower()}"><h4>{label}</h4>{who}'
        f'<div class="prlhf-text">{text}</div>{below}</article>'
    )


def _rewards(card: Card) -> str:
    rows = [
        f"<div><dt>{escape(name)}{'' if card.system.by_user else f'<br>of {escape(user.name)}'}</dt>"
        f'<dd data-reward="{escape(name)}" data-for="{escape(user.name)}">{value:+.2f}</dd></div>'
        for user, name, value in card.rewards
    ]
    return f'<dl class="prlhf-rewards">{"".join(rows)}</dl>' if rows else ""
