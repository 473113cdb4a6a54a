"""What the comparison's widget is made of, and where it stands; what it does is in `widget.py`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import ipywidgets as ui
from IPython.display import Javascript

from prlhf_kit.compare.cards import STYLE
from prlhf_kit.compare.people import User
from prlhf_kit.compare.systems import System
from prlhf_kit.data.schema import message
from prlhf_kit.decoding.generate import Prompt

SCRIPT = Path(__file__).with_name("widgets.js").read_text(encoding="utf-8")
OWN = "(a prompt of your own)"


class Form(ui.VBox):
    """What to compare, buttons, and room for the cards. `voted`: whether there are votes; the rest as in `compare`."""

    def __init__(
        self,
        systems: Sequence[System],
        users: Sequence[User],
        prompts: Sequence[Prompt],
        voted: bool,
        weight: float,
        max_new_tokens: int,
        blind: bool,
    ):
        super().__init__()
        self.add_class("prlhf-compare")
        self.prompts = list(prompts)
        self.context: Prompt = []  # the turns before the question
        short = [" ".join(prompt[-1]["content"].split())[:90] for prompt in self.prompts]
        options = [(OWN, -1), *((f"{i + 1}. {text}", i) for i, text in enumerate(short))]
        wide = {"layout": {"width": "100%"}, "style": {"description_width": "initial"}}
        self.choose = named(ui.Dropdown(options=options, description="Choose a prompt", **wide), "choose")
        self.earlier = named(ui.HTML(), "earlier")
        self.prompt = named(ui.Textarea(description="or type one (Ctrl-Enter generates)", rows=3, **wide), "prompt")
        self.users = {user: ui.Checkbox(i < 2, description=user.name, indent=False) for i, user in enumerate(users)}
        self.systems = {system: ui.Checkbox(True, description=system.name, indent=False) for system in systems}
        initial = {"style": {"description_width": "initial"}}
        self.weight = named(
            ui.FloatSlider(weight, min=0, max=max(4.0, weight), step=0.25, description="PAD weight w", **initial),
            "weight",
        )
        self.length = named(
            ui.BoundedIntText(max_new_tokens, min=1, max=4096, description="Longest answer, tokens", **initial),
            "length",
        )
        self.blind = named(ui.Checkbox(blind, description="Blind: hide who wrote what", indent=False), "blind")
        self.voter = named(ui.Text(description="Your name, to vote", **initial), "voter")
        self.about = named(ui.Text(description="What you like, in words (optional)", **initial), "about")
        self.generate = named(
            ui.Button(description="Generate", button_style="primary", tooltip="Ctrl-Enter"), "generate"
        )
        self.stop = named(ui.Button(description="Stop", disabled=True, tooltip="Stop after this token"), "stop")
        self.reveal = named(ui.Button(description="Show who wrote what", disabled=True), "reveal")
        self.status = named(ui.HTML(), "status")
        self.cards = named(ui.Box(), "cards")
        script = named(ui.Output(), "script")
        script.append_display_data(Javascript(SCRIPT))
        groups = [
            named(ui.VBox([ui.HTML("<h3>Users</h3>"), *self.users.values()]), "users"),
            named(ui.VBox([ui.HTML("<h3>Systems</h3>"), *self.systems.values()]), "systems"),
            ui.VBox([ui.HTML("<h3>Settings</h3>"), self.weight, self.length, self.blind]),
        ]
        if voted:
            groups.append(ui.VBox([ui.HTML("<h3>Votes</h3>"), self.voter, self.about]))
        self.children = [
            ui.HTML(STYLE),
            self.choose,
            self.earlier,
            self.prompt,
            named(ui.Box(groups), "options"),
            named(ui.Box([self.generate, self.stop, self.reveal, self.status]), "actions"),
            self.cards,
            script,
        ]
        self.choose.observe(self._chosen, "value")
        self.choose.value = 0 if self.prompts else -1

    def _say(self, state: str, text: str) -> None:
        self.status.value = f'<span data-state="{state}">{escape(text)}</span>'

    def _chosen(self, change) -> None:
        prompt = self.prompts[change["new"]] if change["new"] >= 0 else message("user", "")
        self.context, self.prompt.value = prompt[:-1], prompt[-1]["content"]
        turns = "".join(f"<p><b>{escape(m['role'])}:</b> {escape(m['content'])}</p>" for m in self.context)
        self.earlier.value = turns


def named(widget, name: str):
    """`widget`, with a class for the style sheet, the script and the tests."""
    widget.add_class(f"prlhf-{name}")
    return widget
