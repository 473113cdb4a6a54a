"""Answers side by side in JupyterLab or voila: for several users, by several systems, with votes that become data."""

import importlib.metadata
import os
import random
import threading
import time
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as ui
from IPython.core.getipython import get_ipython
from IPython.display import Javascript

from prlhf_kit.compare import votes as voting
from prlhf_kit.compare.cards import LOOKS, STYLE, Card, lay_out
from prlhf_kit.compare.systems import Offered
from prlhf_kit.data.schema import message
from prlhf_kit.decoding.generate import Prompt
from prlhf_kit.files import git_state
from prlhf_kit.runs.stage import UNDER_RUNNER

SCRIPT = Path(__file__).with_name("widgets.js").read_text(encoding="utf-8")
LONGEST = 4096  # tokens of an answer that a visitor may ask for
BETWEEN_DRAFTS = 0.1  # seconds
SETTLE = 0.25  # seconds: a browser sends the last move of a slider after the click that followed it
WRITING = threading.Lock()  # adapters are switched on and off in the models, which comparisons may share


def live() -> bool:
    """Whether somebody may be at the screen: in JupyterLab and the like, which take input, or in voila."""
    request: Any = getattr(get_ipython(), "get_parent", dict)()  # to run this cell
    page = os.environ.get("SERVER_SOFTWARE", "").startswith("voila") or request.get("content", {}).get("allow_stdin")
    return bool(page) and not os.environ.get(UNDER_RUNNER)


class Comparison(ui.VBox):
    """The comparison as a widget: show it as a cell's last expression, or by `display`.

    One answer is written after the other, in a thread of its own; don't use the same models elsewhere meanwhile. Making
    a comparison, or generating in one, stops whichever is writing. In blind mode the cards stand in a random order,
    without names, rewards or colours until the vote, or until they are asked for; how fast a card is written still
    differs between systems.

    Args:
        offered: of `systems.of_run`.
        votes: file that votes are appended to.
        weight, max_new_tokens, blind: at first.
    """

    stopping = threading.Event()  # ends what is being written now, by whichever comparison

    def __init__(
        self,
        offered: Offered,
        *,
        votes: str | Path,
        weight: float = 2.0,
        max_new_tokens: int = 256,
        blind: bool = False,
    ):
        Comparison.stopping.set()  # a cell that is run again leaves the widget that it showed without a Stop button
        self.offered, self.votes = offered, votes
        self.context: Prompt = []  # the turns before the question
        self.asked: Prompt = []
        self.settings: dict[str, Any] = {}
        self.shown: list[Card] = []
        self.hidden = self.voted = False
        self.thread = threading.Thread()

        short = [" ".join(prompt[-1]["content"].split())[:90] for prompt in offered.prompts]
        options = [("(a prompt of your own)", -1), *((f"{i + 1}. {text}", i) for i, text in enumerate(short))]
        narrow = {"style": {"description_width": "initial"}}
        wide = narrow | {"layout": {"width": "100%"}}
        self.choose = ui.Dropdown(options=options, description="Choose a prompt", **wide)
        self.earlier = ui.HTML()
        self.prompt = ui.Textarea(description="or type one (Ctrl-Enter generates)", rows=3, **wide)
        self.users = {u: ui.Checkbox(i < 2, description=u.name, indent=False) for i, u in enumerate(offered.users)}
        self.systems = {system: ui.Checkbox(True, description=system.name, indent=False) for system in offered.systems}
        most = max(4.0, weight)
        self.weight = ui.FloatSlider(weight, min=0, max=most, step=0.25, description="PAD weight w", **narrow)
        tokens = "Longest answer, tokens"
        self.length = ui.BoundedIntText(max_new_tokens, min=1, max=LONGEST, description=tokens, **narrow)
        self.blind = ui.Checkbox(blind, description="Blind: hide who wrote what", indent=False)
        self.voter = ui.Text(description="Your name, to vote", **narrow)
        self.about = ui.Text(description="What you like, in words (optional)", **narrow)
        # none of these is ever disabled, which would take the focus away: what can't be done now is refused in words
        self.generate = ui.Button(description="Generate", button_style="primary", tooltip="Ctrl-Enter")
        self.stop = ui.Button(description="Stop", tooltip="Stop after this token")
        self.reveal = ui.Button(description="Show who wrote what", layout={"display": "none"})
        self.status = ui.HTML()
        self.cards = ui.Box()
        script = ui.Output()
        script.append_display_data(Javascript(SCRIPT))
        users = ui.VBox([ui.HTML("<h3>Users</h3>"), *self.users.values()])
        systems = ui.VBox([ui.HTML("<h3>Systems</h3>"), *self.systems.values()])
        settings = ui.VBox([ui.HTML("<h3>Settings</h3>"), self.weight, self.length, self.blind])
        own_votes = ui.VBox([ui.HTML("<h3>Votes</h3>"), self.voter, self.about])
        form = ui.Box([users, systems, settings, own_votes])
        actions = ui.Box([self.generate, self.stop, self.reveal, self.status])
        super().__init__([ui.HTML(STYLE), self.choose, self.earlier, self.prompt, form, actions, self.cards, script])
        self.add_class("prlhf-compare")
        named = {"users": users, "systems": systems, "options": form, "actions": actions, "script": script}
        own = ("choose", "prompt", "weight", "voter", "about", "generate", "status", "cards")
        for name, part in (named | {name: getattr(self, name) for name in own}).items():
            part.add_class(f"prlhf-{name}")  # for the style sheet, the script and the tests
        self.choose.observe(self._chosen, "value")
        self.choose.value = 0 if offered.prompts else -1
        self.generate.on_click(self._begin)
        self.stop.on_click(lambda _: Comparison.stopping.set())
        self.reveal.on_click(self._reveal)
        self._say("ready", "Ready.")

    def _say(self, state: str, text: str) -> None:
        self.status.value = f'<span data-state="{state}">{escape(text)}</span>'

    def _chosen(self, change) -> None:
        prompt = self.offered.prompts[change["new"]] if change["new"] >= 0 else message("user", "")
        self.context, self.prompt.value = prompt[:-1], prompt[-1]["content"]
        self.earlier.value = "".join(
            f"<p><b>{escape(turn['role'])}:</b> {escape(turn['content'])}</p>" for turn in self.context
        )

    # Writing -------------------------------------------------------------------------------------------------------

    def _begin(self, _) -> None:
        Comparison.stopping.set()
        Comparison.stopping = threading.Event()
        self._say("writing", "Waiting until other answers stop ..." if WRITING.locked() else "Writing ...")
        self.thread = threading.Thread(target=self._run, args=[Comparison.stopping], daemon=True)
        self.thread.start()

    def _run(self, stop: threading.Event) -> None:
        with WRITING:
            try:
                state, text = self._write(stop)
            except Exception as error:  # nobody reads a thread's traceback
                state, text = "refused", f"That failed. {type(error).__name__}: {error}"
            self._say(state, text)

    def _write(self, stop: threading.Event) -> tuple[str, str]:
        """Take the settings, and write one card after the other; what is to be said then."""
        time.sleep(SETTLE)
        users = [user for user, box in self.users.items() if box.value]
        systems = [system for system, box in self.systems.items() if box.value]
        cards, left_out = lay_out(systems, users, self.weight.value)
        out = (
            f" Left out, because these users have no text about themselves: {', '.join(left_out)}." if left_out else ""
        )
        if not self.prompt.value.strip():
            return "refused", "The prompt is empty. Choose one or type one."
        if not cards or not users:
            return "refused", f"Choose at least one user and one system that can answer them.{out}"
        self.asked = [*self.context, *message("user", self.prompt.value.strip())]
        self.settings = {"max_new_tokens": min(self.length.value, LONGEST), "do_sample": False}
        self.hidden, self.voted = self.blind.value, False
        self.shown = random.sample(cards, len(cards)) if self.hidden else cards
        self.reveal.layout.display = None if self.hidden else "none"
        self.cards.children = [self._box(number, card) for number, card in enumerate(self.shown)]
        for number, card in enumerate(self.shown):
            if not stop.is_set():
                self._say("writing", f"Writing answer {number + 1} of {len(cards)} ...")
            last = -BETWEEN_DRAFTS
            for _ in card.write(self.asked, self.offered.rewards, self.settings["max_new_tokens"], stop):
                if time.monotonic() - last >= BETWEEN_DRAFTS:
                    self._show(number)
                    last = time.monotonic()
            self._show(number)
        if stop.is_set():
            return "stopped", f"Stopped. An answer that was cut off can't be voted for.{out}"
        failed = sum(card.state == "failed" for card in cards)
        return "done", f"Done{f'; {failed} failed' if failed else ''}.{out}"

    def _box(self, number: int, card: Card) -> ui.VBox:
        vote = ui.Button(description=f"Vote for answer {number + 1}")
        vote.on_click(lambda _: self._vote(number))
        box = ui.VBox([ui.HTML(LOOKS.card_html(card, number + 1, self.hidden)), vote])
        return box.add_class("prlhf-card")

    def _show(self, number: int) -> None:
        self.cards.children[number].children[0].value = LOOKS.card_html(self.shown[number], number + 1, self.hidden)

    # Votes ---------------------------------------------------------------------------------------------------------

    def _vote(self, number: int) -> None:
        """Write the vote for this card against the others that are done, and show who wrote what."""
        try:
            if self._unfinished():
                raise ValueError("Answers are still being written. Vote when all are there.")
            if self.voted:
                raise ValueError("You have voted on these answers, or seen who wrote them. Generate others.")
            done = [card for card in self.shown if card.state == "done"]
            if self.shown[number] not in done:
                raise ValueError("This answer is not complete, so it can't be preferred.")
            rows = voting.records(
                self.voter.value,
                self.asked,
                [(card.text, card.made_by()) for card in done],
                done.index(self.shown[number]),
                self.about.value,
                blind=self.hidden,
                order=[card.made_by() for card in self.shown],
                settings=self.settings,
                models=self.offered.fingerprints,
                kit={"version": importlib.metadata.version("prlhf_kit"), **git_state()},
            )
            voting.append(self.votes, rows)
        except (ValueError, OSError) as error:  # a lock that is not given up is one, too
            self._say("refused", f"Not counted. {error}")
            return
        self._uncover()
        self.cards.children[number].children[1].icon = "check"
        self._say("voted", f"Thank you: {len(rows)} preference{'s' * (len(rows) != 1)} added to {self.votes}.")

    def _unfinished(self) -> bool:
        return any(card.state in ("waiting", "writing") for card in self.shown)

    def _reveal(self, _) -> None:
        if self._unfinished():
            self._say("refused", "Answers are still being written. Wait, or press Stop first.")
        else:
            self._uncover()
            self._say("revealed", "Shown. These answers can't be voted for any more.")

    def _uncover(self) -> None:
        """Show who wrote what, after which there is no vote."""
        self.voted, self.hidden = True, False
        for number in range(len(self.shown)):
            self._show(number)
