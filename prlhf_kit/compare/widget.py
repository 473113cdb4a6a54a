"""Answers side by side in JupyterLab or voila: for several users, by several systems, with votes that become data."""

from __future__ import annotations

import importlib.metadata
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as ui
import numpy as np

from prlhf_kit.compare import votes as voting
from prlhf_kit.compare.cards import Card, as_html, lay_out
from prlhf_kit.compare.people import User
from prlhf_kit.compare.systems import Reward, System
from prlhf_kit.compare.widget_form import Form, named
from prlhf_kit.data.schema import message
from prlhf_kit.decoding.generate import Prompt
from prlhf_kit.files import git_state

BETWEEN_DRAFTS = 0.1  # seconds
WRITING = threading.Lock()  # adapters are switched on and off in the models, which comparisons may share
ACTIVE: set[Comparison] = set()  # those that write, or wait to
SETTLE = 0.25  # seconds: a browser sends the last move of a slider after the click that followed it


def compare(
    systems: Sequence[System],
    users: Sequence[User],
    prompts: Sequence[Prompt],
    *,
    votes: str | Path | None = None,
    rewards: Mapping[str, Reward] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    weight: float = 1.0,
    max_new_tokens: int = 64,
    blind: bool = False,
    seed: int | None = None,
) -> Comparison:
    """The comparison as a widget. Show it as a cell's last expression, or by `display`.

    One answer is written after the other, in a thread of its own, so the kernel stays free; don't use the same models
    elsewhere meanwhile. Making another comparison, or generating in one, stops this one's writing. In blind mode the
    cards stand in a random order, without names, rewards or colours until the vote, or until they are asked for; how
    fast a card is written still differs between systems.

    Args:
        systems, users, prompts: on offer (`systems.of_run`). The first two users and all systems are chosen at first.
        votes: file that votes are appended to, see `votes.records`; None: there are no votes.
        rewards: name with its unit -> reward of an answer.
        fingerprints: model -> hash of its weights, kept with every vote.
        weight, max_new_tokens, blind: at first.
        seed: of the order in blind mode; None: another one each time. It is kept with every vote.
    """
    if not systems or not users:
        raise ValueError(f"{len(systems)} systems and {len(users)} users: expected at least one of each to compare.")
    for things in (systems, users):
        names = [thing.name for thing in things]
        if len(set(names)) < len(names):
            raise ValueError(f"names must differ, since people choose by them: {names}.")
    return Comparison(
        systems, users, prompts, votes, rewards or {}, fingerprints or {}, weight, max_new_tokens, blind, seed
    )


class Comparison(Form):
    """The widget that `compare` makes; its parts are attributes, so that it can be driven without a browser."""

    def __init__(self, systems, users, prompts, votes, rewards, fingerprints, weight, max_new_tokens, blind, seed):
        super().__init__(systems, users, prompts, votes is not None, weight, max_new_tokens, blind)
        self.rewards, self.fingerprints = rewards, dict(fingerprints)
        self.votes = None if votes is None else Path(votes).resolve()
        self.seed, self.round = secrets.randbits(32) if seed is None else seed, 0
        self.shown: list[Card] = []
        self.writing = self.hidden = self.voted = False
        self.asked: Prompt = []
        self.settings: dict[str, Any] = {}
        self.thread: threading.Thread | None = None
        self.stopping = threading.Event()
        self.kit = {"version": importlib.metadata.version("prlhf_kit"), **git_state()}
        stop_all()  # a cell that is run again leaves the widget that it showed without a Stop button
        self.generate.on_click(self._begin)
        self.stop.on_click(lambda _: self.stopping.set())
        self.reveal.on_click(self._reveal)
        try:
            self._say("ready", (voting.mend(votes) if votes is not None else "") or "Ready.")
        except OSError as error:
            self._say("refused", f"Votes can't be kept. {error}")

    def wait(self, timeout: float | None = None) -> None:
        """Until all answers are written, or `timeout` seconds."""
        if self.thread is not None:
            self.thread.join(timeout)

    # Writing -------------------------------------------------------------------------------------------------------

    def _begin(self, _=None) -> None:
        if self.writing:
            self._say("refused", "Answers are still being written. Wait, or press Stop first.")
            return
        self.writing = True
        self._enable()
        stop_all()
        self.stopping.clear()
        ACTIVE.add(self)
        self.thread = threading.Thread(target=self._run, name="prlhf-compare", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        """In the thread: take the settings, and write one card after the other."""
        try:
            time.sleep(SETTLE)
            users = [user for user, box in self.users.items() if box.value]
            systems = [system for system, box in self.systems.items() if box.value]
            if not self.prompt.value.strip():
                said_last = "refused", "The prompt is empty. Choose one or type one."
            elif not users or not systems:
                said_last = "refused", "Choose at least one user and one system."
            elif not (cards := lay_out(systems, users, self.weight.value)):
                said_last = "refused", "These users say nothing of themselves, so these systems have nothing to go by."
            else:
                self._put_down(cards)
                if WRITING.locked():
                    self._say("writing", "Waiting until another comparison stops ...")
                with WRITING:
                    state, text = self._write()
                out = [f"{s.name} for {u.name}" for s in systems if s.by_user for u in users if not s.knows(u)]
                why = f" Left out, since they say nothing of themselves: {', '.join(out)}." if out else ""
                said_last = state, text + why
        except Exception as error:  # nobody reads a thread's traceback
            said_last = "refused", f"That failed. {type(error).__name__}: {error}"
        finally:
            ACTIVE.discard(self)
            self.writing = False
        self._say(*said_last)
        self._enable()  # last: what a vote says is not to be overwritten

    def _put_down(self, cards: list[Card]) -> None:
        self.round += 1
        self.asked = [*self.context, *message("user", self.prompt.value.strip())]
        self.hidden, self.voted = self.blind.value, False
        if self.hidden:
            cards = [cards[i] for i in np.random.default_rng([self.seed, self.round]).permutation(len(cards))]
        self.shown = cards
        self.settings = {"max_new_tokens": self.length.value, "do_sample": False}
        self.cards.children = [self._box(i) for i in range(len(cards))]

    def _box(self, number: int) -> ui.VBox:
        vote = named(ui.Button(description=f"Vote for answer {number + 1}", disabled=True), "vote")
        vote.on_click(lambda _: self._vote(number))
        body = ui.HTML(as_html(self.shown[number], number, self.hidden))
        return named(ui.VBox([body] if self.votes is None else [body, vote]), "card")

    def _show(self, number: int) -> None:
        self.cards.children[number].children[0].value = as_html(self.shown[number], number, self.hidden)

    def _enable(self) -> None:
        """Enable and disable the buttons by what can be done now."""
        off = [
            (self.generate, self.writing),
            (self.stop, not self.writing),
            (self.reveal, self.writing or not self.hidden),
        ]
        for card, box in zip(self.shown, self.cards.children, strict=False):  # fewer boxes, where laying out failed
            off += [(vote, self.writing or self.voted or card.state != "done") for vote in box.children[1:]]
        for button, disabled in sorted(off, key=lambda one: one[1]):  # focus needs somewhere to go: enable first
            button.disabled = disabled

    def _write(self) -> tuple[str, str]:
        for number, card in enumerate(self.shown):
            if not self.stopping.is_set():
                self._say("writing", f"Writing answer {number + 1} of {len(self.shown)} ...")
            last = -BETWEEN_DRAFTS
            for _ in card.write(self.asked, self.rewards, self.stopping, self.settings["max_new_tokens"]):
                if time.monotonic() - last >= BETWEEN_DRAFTS:
                    self._show(number)
                    last = time.monotonic()
            self._show(number)
        if self.stopping.is_set():
            return "stopped", "Stopped. An answer that was cut off can't be voted for."
        failed = sum(card.state == "failed" for card in self.shown)
        return "done", f"Done{f'; {failed} failed' if failed else ''}."

    # Votes ---------------------------------------------------------------------------------------------------------

    def _vote(self, number: int) -> None:
        done = [i for i, card in enumerate(self.shown) if card.state == "done"]
        if self.writing:
            refused = "Answers are still being written. Vote when all are there."
        elif self.voted:
            refused = "You have voted on these answers, or seen who wrote them. Generate others."
        elif number not in done:
            refused = "This answer is not complete, so it can't be preferred."
        else:
            try:
                self._count(number, done)
                return
            except (voting.VoteError, OSError) as error:  # a lock that is not given up is one, too
                refused = f"Not counted. {error}"
        self._say("refused", refused)

    def _count(self, number: int, done: list[int]) -> None:
        """Write the vote for `number` against the others of `done`, and show who wrote what."""
        made_by = [card.made_by() for card in self.shown]
        rows = voting.records(
            self.voter.value,
            self.asked,
            [(self.shown[i].text, made_by[i]) for i in done],
            done.index(number),
            self.about.value,
            blind=self.hidden,
            order=made_by,
            seed=self.seed,
            round=self.round,
            settings=self.settings,
            models=self.fingerprints,
            kit=self.kit,
        )
        assert self.votes is not None  # else there is no button
        told = voting.append(self.votes, rows)
        self._uncover()
        pairs = f"{len(rows)} preference{'s' * (len(rows) != 1)}"
        self._say("voted", f"Thank you: {pairs} added to {self.votes}. {told}")

    def _reveal(self, _=None) -> None:
        if not self.writing and self.hidden:
            self._uncover()
            self._say("revealed", "Shown. These answers can't be voted for any more." if self.votes else "Shown.")

    def _uncover(self) -> None:
        """Show who wrote what, after which there is no vote."""
        self.voted, self.hidden = True, False
        for number in range(len(self.shown)):
            self._show(number)
        self._enable()


def stop_all() -> None:
    """Stop whatever comparison is writing, after its present token."""
    for comparison in ACTIVE.copy():
        comparison.stopping.set()
