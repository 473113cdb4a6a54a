"""Answers side by side in JupyterLab or voila: for several users, by several systems, with votes that become data."""

from __future__ import annotations

import importlib.metadata
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as ui
import numpy as np
from IPython.display import Javascript

from prlhf_kit import votes as voting
from prlhf_kit.cards import STYLE, Card, as_html, lay_out
from prlhf_kit.data.schema import said
from prlhf_kit.decoding.generate import Prompt
from prlhf_kit.people import User
from prlhf_kit.record import git_state
from prlhf_kit.systems import Reward, System

SCRIPT = Path(__file__).with_name("widgets.js").read_text(encoding="utf-8")
OWN = "(a prompt of your own)"
BETWEEN_DRAFTS = 0.1  # seconds
SETTLE = 0.25  # seconds: a browser sends the last move of a slider after the click that followed it


def compare(
    systems: Sequence[System], users: Sequence[User], prompts: Sequence[Prompt], *, votes: str | Path | None = None,
    rewards: Mapping[str, Reward] | None = None, fingerprints: Mapping[str, str] | None = None, weight: float = 1.0,
    max_new_tokens: int = 64, blind: bool = False, seed: int | None = None,
) -> Comparison:  # fmt: skip
    """The comparison as a widget. Show it as a cell's last expression, or by `display`.

    One answer is written after the other, in a thread of its own, so the kernel stays free; don't use the same models
    elsewhere meanwhile. In blind mode the cards stand in a random order, without names, rewards or colours until the
    vote; how fast a card is written still differs between systems.

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


class Comparison(ui.VBox):
    """The widget that `compare` makes; its parts are attributes, so that it can be driven without a browser."""

    def __init__(self, systems, users, prompts, votes, rewards, fingerprints, weight, max_new_tokens, blind, seed):
        super().__init__()
        self.add_class("prlhf-compare")
        self.prompts, self.rewards, self.fingerprints = list(prompts), rewards, dict(fingerprints)
        self.votes = None if votes is None else Path(votes).resolve()
        self.seed, self.round = secrets.randbits(32) if seed is None else seed, 0
        self.shown: list[Card] = []
        self.writing = self.hidden = self.voted = False
        self.asked: Prompt = []
        self.settings: dict[str, Any] = {}
        self.context: Prompt = []  # the turns before the question
        self.thread: threading.Thread | None = None
        self.stopping = threading.Event()
        self.kit = {"version": importlib.metadata.version("prlhf_kit"), **git_state()}
        short = [" ".join(prompt[-1]["content"].split())[:90] for prompt in self.prompts]
        options = [(OWN, -1), *((f"{i + 1}. {text}", i) for i, text in enumerate(short))]
        wide = {"layout": {"width": "100%"}, "style": {"description_width": "initial"}}
        self.choose = _named(ui.Dropdown(options=options, description="Choose a prompt", **wide), "choose")
        self.earlier = _named(ui.HTML(), "earlier")
        self.prompt = _named(ui.Textarea(description="or type one (Ctrl-Enter generates)", rows=3, **wide), "prompt")
        self.users = {user: ui.Checkbox(i < 2, description=user.name, indent=False) for i, user in enumerate(users)}
        self.systems = {system: ui.Checkbox(True, description=system.name, indent=False) for system in systems}
        initial = {"style": {"description_width": "initial"}}
        self.weight = _named(
            ui.FloatSlider(weight, min=0, max=max(4.0, weight), step=0.25, description="PAD weight w", **initial),
            "weight",
        )
        self.length = _named(
            ui.BoundedIntText(max_new_tokens, min=1, max=4096, description="Longest answer, tokens", **initial),
            "length",
        )
        self.blind = _named(ui.Checkbox(blind, description="Blind: hide who wrote what", indent=False), "blind")
        self.voter = _named(ui.Text(description="Your name, to vote", **initial), "voter")
        self.about = _named(ui.Text(description="What you like, in words (optional)", **initial), "about")
        self.generate = _named(
            ui.Button(description="Generate", button_style="primary", tooltip="Ctrl-Enter"), "generate"
        )
        self.stop = _named(ui.Button(description="Stop", disabled=True, tooltip="Stop after this token"), "stop")
        self.status = _named(ui.HTML(), "status")
        self.cards = _named(ui.Box(), "cards")
        script = _named(ui.Output(), "script")
        script.append_display_data(Javascript(SCRIPT))
        groups = [
            _named(ui.VBox([ui.HTML("<h3>Users</h3>"), *self.users.values()]), "users"),
            _named(ui.VBox([ui.HTML("<h3>Systems</h3>"), *self.systems.values()]), "systems"),
            ui.VBox([ui.HTML("<h3>Settings</h3>"), self.weight, self.length, self.blind]),
        ]
        if votes is not None:
            groups.append(ui.VBox([ui.HTML("<h3>Votes</h3>"), self.voter, self.about]))
        self.children = [
            ui.HTML(STYLE), self.choose, self.earlier, self.prompt, _named(ui.Box(groups), "options"),
            _named(ui.Box([self.generate, self.stop, self.status]), "actions"), self.cards, script,
        ]  # fmt: skip
        self.choose.observe(self._chosen, "value")
        self.generate.on_click(self._begin)
        self.stop.on_click(lambda _: self.stopping.set())
        self.choose.value = 0 if self.prompts else -1
        self._say("ready", (voting.mend(votes) if votes is not None else "") or "Ready.")

    def wait(self, timeout: float | None = None) -> None:
        """Until all answers are written, or `timeout` seconds."""
        if self.thread is not None:
            self.thread.join(timeout)

    def _say(self, state: str, text: str) -> None:
        self.status.value = f'<span data-state="{state}">{escape(text)}</span>'

    def _chosen(self, change) -> None:
        prompt = self.prompts[change["new"]] if change["new"] >= 0 else said("user", "")
        self.context, self.prompt.value = prompt[:-1], prompt[-1]["content"]
        turns = "".join(f"<p><b>{escape(m['role'])}:</b> {escape(m['content'])}</p>" for m in self.context)
        self.earlier.value = turns

    # Writing -------------------------------------------------------------------------------------------------------

    def _begin(self, _=None) -> None:
        if self.writing:
            self._say("refused", "Answers are still being written. Wait, or press Stop first.")
            return
        self.writing = self.generate.disabled = True
        self.stop.disabled = False
        self.stopping.clear()
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
            else:
                self._lay_out(systems, users)
                said_last = self._write()
        except Exception as error:  # nobody reads a thread's traceback
            said_last = "refused", f"That failed. {type(error).__name__}: {error}"
        finally:
            self.writing = self.generate.disabled = False
            self.stop.disabled = True
            for number in range(len(self.shown)):
                self._show(number)
        self._say(*said_last)

    def _lay_out(self, systems: list[System], users: list[User]) -> None:
        self.round += 1
        self.asked = [*self.context, *said("user", self.prompt.value.strip())]
        cards = lay_out(systems, users, self.weight.value)
        self.hidden, self.voted = self.blind.value, False
        if self.hidden:
            cards = [cards[i] for i in np.random.default_rng([self.seed, self.round]).permutation(len(cards))]
        self.shown = cards
        self.settings = {"max_new_tokens": self.length.value, "do_sample": False}
        self.cards.children = [self._box(i) for i in range(len(cards))]

    def _box(self, number: int) -> ui.VBox:
        vote = _named(ui.Button(description=f"Vote for answer {number + 1}", disabled=True), "vote")
        vote.on_click(lambda _: self._vote(number))
        body = ui.HTML(as_html(self.shown[number], number, self.hidden))
        return _named(ui.VBox([body] if self.votes is None else [body, vote]), "card")

    def _show(self, number: int) -> None:
        card, (body, *vote) = self.shown[number], self.cards.children[number].children
        body.value = as_html(card, number, self.hidden)
        for button in vote:
            button.disabled = self.writing or self.voted or card.state != "done"

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
            refused = "You have voted on these answers. Generate others."
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
        made_by = [
            {"system": card.system.name, "user": card.users[0].user_id if card.system.by_user else None,
             "for": card.whom, "weight": card.weight, "top_k": card.system.top_k}
            for card in self.shown
        ]  # fmt: skip
        rows = voting.records(
            self.voter.value, self.asked, [(self.shown[i].text, made_by[i]) for i in done], done.index(number),
            self.about.value, blind=self.hidden, order=made_by, seed=self.seed, round=self.round,
            settings=self.settings, models=self.fingerprints, kit=self.kit,
        )  # fmt: skip
        assert self.votes is not None  # else there is no button
        told = voting.append(self.votes, rows)
        self.voted, self.hidden = True, False
        for i in range(len(self.shown)):
            self._show(i)
        pairs = f"{len(rows)} preference{'s' * (len(rows) != 1)}"
        self._say("voted", f"Thank you: {pairs} added to {self.votes}. {told}")


def _named(widget, name: str):
    widget.add_class(f"prlhf-{name}")
    return widget
