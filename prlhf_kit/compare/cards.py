"""Cards of a comparison: one system's answer each. How they look is in `cards.html.j2` and `widgets.css`."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment
from tqdm.auto import tqdm

from prlhf_kit.compare.systems import Offered, Reward, System, User
from prlhf_kit.data.chat import prompt_text
from prlhf_kit.decoding.answers import GuidedAnswer
from prlhf_kit.decoding.generate import DecodingError, Prompt
from prlhf_kit.models.conditioning import ConditioningError

STYLE = f"<style>{Path(__file__).with_name('widgets.css').read_text(encoding='utf-8')}</style>"
TEMPLATE = Path(__file__).with_name("cards.html.j2").read_text(encoding="utf-8")
LOOKS: Any = Environment(autoescape=True).from_string(TEMPLATE).module
UNFINISHED = "\ufffd"  # what a tokenizer makes of bytes that are no character yet


class Piece(NamedTuple):
    """Some of an answer's text: the least number of tokens that are whole characters, or spaces around them."""

    text: str
    base: str | None = None  # what the base would have said there, if not this
    gain: float = 0.0  # the reward gained
    depth: float = 0.0  # as a share of the answer's largest
    name: str = ""  # of what can't be seen, to be read out


def visible(text: str) -> tuple[str, str]:
    """A token as it is shown, and as it is read aloud: white space and the end of the answer get a sign and a name."""
    if UNFINISHED in text:
        return "▯", "part of a character"
    if text.strip():
        return text.strip(), text.strip()
    return ("↵", "line break") if "\n" in text else ("␣", "space") if text else ("∎", "end of the answer")


def pieces(answer: GuidedAnswer, tokenizer) -> list[Piece]:
    """The answer's tokens as text for people to read, those marked that the base would not have said."""

    def text_of(start: int, tokens: Sequence[int]) -> str:
        """Behind those before them, since a tokenizer may drop the space of what comes first."""
        ahead = answer.tokens[:start]
        whole = tokenizer.decode([*ahead, *tokens], skip_special_tokens=True)
        return whole[len(tokenizer.decode(ahead, skip_special_tokens=True)) :]

    gained = np.nan_to_num(np.array(answer.rewards) - np.array(answer.base_rewards))
    changed = np.array(answer.changed, dtype=bool)
    most = max(gained[changed].max(initial=0.0), 1e-9)
    found, start = [], 0
    for stop in range(1, len(answer.tokens) + 1):
        text = text_of(start, answer.tokens[start:stop])
        if text.endswith(UNFINISHED) and stop < len(answer.tokens):
            continue  # a character of several tokens
        moved = [i for i in range(start, stop) if changed[i]]
        if moved:
            _, base = visible(text_of(start, [*answer.tokens[start : moved[0]], answer.base_tokens[moved[0]]]))
            sign, name = visible(text)
            before, _, after = text.partition(sign) if sign in text else ("", "", "")
            gain = gained[moved].sum()
            found += [Piece(before), Piece(sign, base, gain, round(max(gain, 0.0) / most, 2), name), Piece(after)]
        else:
            found.append(Piece(text.rstrip(UNFINISHED)))
        start = stop
    return found


def picture(answer: GuidedAnswer, tokenizer) -> str:
    """An answer as HTML: marked where the reward overruled the base, the deeper the more it was worth; what the base
    would have said, and the reward gained, appear at the pointer."""
    return STYLE + LOOKS.picture_html(pieces(answer, tokenizer))


@dataclass(eq=False)
class Card:
    """One answer: of a system, for one user, or for all `users` alike where the system ignores who asks."""

    system: System
    users: Sequence[User]
    weight: float  # PAD's w; of a system with a weight of its own, that
    state: Literal["waiting", "writing", "done", "stopped", "failed"] = "waiting"
    answer: GuidedAnswer | None = None
    error: str = ""
    ended: bool = False  # by the model; done without that, it was cut off at the longest length
    rewards: list[tuple[User, str, float]] = field(default_factory=list)  # user, name of the reward, value

    @property
    def title(self) -> str:
        return f"{self.system.name}, w = {self.weight:g}" if self.system.weight is None else self.system.name

    @property
    def whom(self) -> str:
        return self.users[0].name if self.system.reads else "anyone"

    @property
    def pieces(self) -> list[Piece]:
        return pieces(self.answer, self.system.tokenizer) if self.answer else []

    @property
    def text(self) -> str:
        """Less a last character that was cut off."""
        return self.answer.text.rstrip(UNFINISHED) if self.answer else ""

    @property
    def by_reward(self) -> bool:
        """Whether a personal reward is what tells the system from the base: not other training or another prompt."""
        return self.system.reads == "user_id" or self.system.weight is None

    def made_by(self) -> dict[str, Any]:
        """What made the answer, in plain values, to be kept with a vote."""
        user = self.users[0].user_id if self.system.reads else None
        shown = {"system": self.system.name, "user": user, "for": self.whom, "weight": self.weight}
        return shown | {"top_k": self.system.top_k, "ended": self.ended}

    def write(
        self, prompt: Prompt, rewards: Mapping[str, Reward], max_new_tokens: int, stop: threading.Event
    ) -> Iterator[None]:
        """Write the answer until `stop` is set, yielding after every token, and then its rewards. An error ends this
        card alone."""
        try:
            if not stop.is_set():
                self.state = "writing"
                for draft in self.system.stream(prompt, self.users[0], self.weight, max_new_tokens):
                    self.answer = draft
                    yield
                    if stop.is_set():
                        break
            self.state = "stopped" if stop.is_set() else "done"
            if self.answer and self.state == "done":
                self.ended = self.system.ended(self.answer, max_new_tokens)
            if self.text and self.state == "done":
                for user in self.users:
                    found = {name: reward(user, prompt, self.text) for name, reward in rewards.items()}
                    self.rewards += [(user, name, value) for name, value in found.items() if value is not None]
        except Exception as error:  # whatever a model or a reward raises is shown where it happened
            kind = "" if isinstance(error, DecodingError | ConditioningError) else f"{type(error).__name__}: "
            self.state, self.error = "failed", f"{kind}{error}"


def lay_out(systems: Sequence[System], users: Sequence[User], weight: float) -> tuple[list[Card], list[str]]:
    """A card for each system and user, and one for all users where the system ignores who asks; and which are
    left out, since a user has no text about themselves."""
    cards, left_out = [], []
    for system in systems:
        for whom in [[user] for user in users] if system.reads else [users]:
            if system.reads == "words" and not whom[0].words:
                left_out.append(f"{system.name} for {whom[0].name}")
            else:
                cards.append(Card(system, whom, weight if system.weight is None else system.weight))
    return cards, left_out


def answered(
    offered: Offered, prompt: Prompt, users: Sequence[User], weight: float, max_new_tokens: int
) -> tuple[str, pd.DataFrame]:
    """One prompt answered where nobody is at the screen: cards as HTML that needs no kernel and no script, and a table.

    The table has a row an answer: `prompt`, what made it (`made_by`), `answer`, `tokens`, `moved` (tokens unlike the
    base's), and each reward, of an answer that is for all users alike its mean over them. Raises `RuntimeError` where
    an answer fails.
    """
    cards, _ = lay_out(offered.systems, users, weight)
    rows = []
    for card in tqdm(cards, desc="answers", disable=None, leave=False):
        for _ in card.write(prompt, offered.rewards, max_new_tokens, threading.Event()):
            pass
        if card.answer is None or card.error:
            raise RuntimeError(f"{card.title} has no answer for {card.whom}. {card.error}")
        values = pd.DataFrame(card.rewards, columns=["user", "name", "value"]).groupby("name", sort=False).value.mean()
        numbers = {"tokens": len(card.answer.tokens), "moved": sum(card.answer.changed), **values}
        rows.append({"prompt": prompt_text(prompt), **card.made_by(), "answer": card.text, **numbers})
    return f"{STYLE}{LOOKS.static_html(prompt_text(prompt), cards)}", pd.DataFrame(rows)
