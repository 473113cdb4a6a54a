"""The reader in the prompt: who a response is for, in words (ComPO, Kumar et al. 2024, arXiv 2410.16027)."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from datasets import Dataset, Features, List, Value

from prlhf_kit.data.choices import Choices, told
from prlhf_kit.data.collect import changed
from prlhf_kit.data.registry import share
from prlhf_kit.data.schema import SchemaError
from prlhf_kit.data.templates import read_template
from prlhf_kit.files import write_json

# What stands in the prompt:
# none: nothing about the user; true: the community (`user_id`) that stated the preference;
# random: another one, drawn for each user and prompt, as a control; shuffled: another one, the same for all prompts of
# a user: as consistent as the truth, and wrong; user_text: what they say about themselves; choices: what they chose.
Context = Literal["none", "true", "random", "shuffled", "user_text", "choices"]
CONTEXTS: tuple[str, ...] = get_args(Context)
TEMPLATES = ("community", "user_text", "choices", "compo")
OF_THE_PERSON = ("user_text", "choices")  # contexts that are a template's field and its name
CONTEXT_FILE = "context.json"  # beside a model: what it was told of its readers in training
# columns that say what was put into a row's prompt: which context, of whom, and which pairs were told, in this order
RECORDED = {"context": Value("string"), "context_user": Value("string"), "context_pairs": List(Value("string"))}

Messages = list[dict[str, str]]


def require_context(context: object) -> None:
    """Refuse what is not the name of a context; "none" is the only value that means no context."""
    if context not in CONTEXTS:
        raise SchemaError(f"context={context!r}: expected one of {str(CONTEXTS)[1:-1]}. No context at all is 'none'.")


@dataclass
class Contexts:
    """Puts a reader into prompts, by a text with the fields {community}, {user_text}, {choices}: a system message, or,
    where it has the field {prompt}, the user's last message.

    Args:
        context: see `Context`.
        people: who there is to speak of, `user_id` -> `user_text` (`people_of`).
        template: "community", "user_text" or "choices", or a text file with their fields; "": the one of the context's
            name, else "community". `Contexts("random", people, "user_text")` gives each prompt somebody else's own
            words. "compo": the community's name alone, "r/tea", to which `chat.COMPO_TEMPLATE` gives ComPO's layout.
        seed: of the draws, which depend on it, the user, the prompt, and on who may be drawn.
        among: users whom "random" and "shuffled" draw; None: all of `people`. Give the training users in all stages.
        earlier: pairs from which {choices} are told (`choices.known_pairs(data)`); `k`: how many, see `Choices`. Who
            has none is told of as "none known", and not drawn.

    Raises:
        SchemaError: an unknown context, a template that can't be used, people of whom it has nothing to say, or the
            same of all where others are to be drawn.
    """

    context: Context
    people: Mapping[str, str | None] = field(repr=False)
    template: str | Path = ""
    seed: int = 0
    among: Collection[str] | None = field(default=None, repr=False)
    earlier: Sequence[Dataset] = field(default=(), repr=False)
    k: int = 4

    def __post_init__(self) -> None:
        require_context(self.context)
        name = self.template or (self.context if self.context in OF_THE_PERSON else "community")
        self._text = read_template(name, "data/context_prompts", TEMPLATES, alone="system")
        if self.context == "none":
            return
        parts, fields = self._text.parts, self._text.fields
        wrong = ""
        if self.context in OF_THE_PERSON and self.context not in fields:
            wrong = f"does not say what context={self.context!r} is about: use the field {self.context}, or 'true'"
        elif not fields <= {"community", *OF_THE_PERSON, "prompt"} or fields <= {"prompt"}:
            wrong = f"has the fields {sorted(fields)}: expected community, user_text or choices, and perhaps prompt"
        elif "{prompt}" in "".join(text for _, text in parts[:-1]) or (len(parts) > 1 and "prompt" not in fields):
            wrong = "has a system message and a user message, so {prompt} belongs into the user message, after the ---"
        if wrong:
            raise SchemaError(f"the template {self._text.name!r} {wrong}.")
        silent = [user for user, text in self.people.items() if not (text or "").strip()]
        if "user_text" in self._text.fields and silent:
            raise SchemaError(
                f"{len(silent)} of {len(self.people)} users have no user_text, first {silent[0]!r}. Use 'community'."
            )
        self._choices = Choices(self.earlier if "choices" in fields else (), self.k, self.seed)
        if "choices" in fields and not self.earlier:
            raise SchemaError(f"the template {self._text.name!r} tells choices: pass earlier=known_pairs(data).")
        # what can be said of those who may be drawn -> the first user of whom it is, in an order that the seed draws
        drawn = sorted(self.people if self.among is None else self.among, reverse=True)
        others = {self._says(user): user for user in drawn if "choices" not in fields or user in self._choices}
        self._others = dict(sorted(others.items(), key=lambda item: share(self.seed, "circle", *item[0])))
        if self.context in ("random", "shuffled") and len(others) < 2:
            raise SchemaError(
                f"{self.context!r} draws among users of whom different things are said, found {len(others)}: add some."
            )

    def _fields(self, user_id: str) -> dict[str, str]:
        if user_id not in self.people:
            raise SchemaError(f"nothing is known of the user {user_id!r}: add them to people ({len(self.people)}).")
        # choices differ between any two users; their words depend on the prompt, see `say`
        return {"community": user_id, "user_text": (self.people[user_id] or "").strip(), "choices": user_id}

    def _says(self, user_id: str) -> tuple[str, ...]:
        """What the template's own fields say of a user: by this two users differ."""
        return tuple(value for name, value in self._fields(user_id).items() if name in self._text.fields)

    def whose(self, user_id: str, prompt: Messages) -> str | None:
        """The user whose context stands in `prompt` when `user_id` asks; None without context.

        With "random" and "shuffled", never one of whom the same would be said as of `user_id`.
        """
        if self.context == "none":
            return None
        if self.context in ("true", *OF_THE_PERSON):
            return user_id
        says, circle = self._says(user_id), list(self._others)
        asked = "" if self.context == "shuffled" else "\0".join(message["content"] for message in prompt)
        drawn = share(self.seed, self.context, user_id, asked)
        if says not in self._others:  # somebody who can't be drawn, so everybody who can is another
            return self._others[circle[int(drawn * len(circle))]]
        step = 1 if self.context == "shuffled" else 1 + int(drawn * (len(circle) - 1))
        return self._others[circle[(circle.index(says) + step) % len(circle)]]

    def put(self, prompt: Messages, user_id: str) -> Messages:
        """`prompt` as `user_id`'s reader is put into it; a system message takes the place of the one that is there."""
        whose = self.whose(user_id, prompt)
        return prompt if whose is None else self.say(prompt, whose)

    def record(self, prompt: Messages, user_id: str) -> dict[str, Any]:
        """`RECORDED` of what is put into `prompt` when `user_id` asks."""
        whose, pairs = self.whose(user_id, prompt), None
        if whose is not None and "choices" in self._text.fields:
            pairs = [pair["pair_id"] for pair in self._choices.of(whose, prompt)]
        return dict(zip(RECORDED, (self.context, whose, pairs), strict=True))

    def say(self, prompt: Messages, user_id: str, whole: Messages | None = None) -> Messages:
        """`prompt` with what the template says of `user_id` in any context; `whole`: the prompt, if this is cut."""
        values = self._fields(user_id) | {"prompt": prompt[-1]["content"]}
        if "choices" in self._text.fields:
            values["choices"] = told(self._choices.of(user_id, whole or prompt))
        said = [(role, text.format_map(values)) for role, text in self._text.parts]
        if "prompt" in self._text.fields:
            said[-1] = ("user", said[-1][1])
            prompt = prompt[:-1]
        system = [{"role": role, "content": text} for role, text in said if role == "system"]
        last = [{"role": role, "content": text} for role, text in said if role == "user"]
        return [*system, *(m for m in prompt if not system or m["role"] != "system"), *last]

    def save(self, folder: str | Path) -> None:
        """Write beside a model what it was told of its readers in training, for `context_of`."""
        drawn = None if self.among is None or self.context not in ("random", "shuffled") else sorted(self.among)
        known = {**self.config, "template": str(self.template), "among": drawn}
        write_json(Path(folder, CONTEXT_FILE), known)

    @property
    def config(self) -> dict[str, Any]:
        """What decides the prompts, for records: `people` aside, plain values."""
        if self.context == "none":
            return {"context": "none"}
        return {
            "context": self.context,
            "template": self._text.name,
            "template_sha256": self._text.sha256,
            "text": [list(part) for part in self._text.parts],
            "seed": self.seed,
            **({"k": self.k} if "choices" in self._text.fields else {}),
        }


def context_of(folder: str | Path, people: Mapping[str, str | None], earlier: Sequence[Dataset] = ()) -> Contexts:
    """What the model in `folder` was told of its readers in training, for `people` and, where it tells choices, from
    `earlier` pairs; "none" where nothing says so."""
    file = Path(folder, CONTEXT_FILE)
    saved: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"context": "none"}
    if saved["context"] == "none":
        return Contexts("none", people)
    known = {name: saved[name] for name in ("template", "seed", "among", "k") if name in saved}
    contexts = Contexts(saved["context"], people, earlier=earlier, **known)
    if contexts.config["template_sha256"] != saved["template_sha256"]:
        raise SchemaError(f"{saved['template']!r} has changed since {folder}: it said {saved['text']}, restore it.")
    return contexts


def people_of(*sets: Dataset) -> dict[str, str | None]:
    """`user_id` -> `user_text` of all users of some sets."""
    found: dict[str, str | None] = {}
    for pairs in sets:
        for user, text in zip(pairs["user_id"], pairs["user_text"], strict=True):
            found[user] = found.get(user) or text
    return found


def with_context(pairs: Dataset, contexts: Contexts) -> Dataset:
    """`pairs` (or prompts with a `user_id`) with the reader in every prompt, and the columns `RECORDED`: what was put
    in, who it speaks of (null without context), and which pairs it tells (null if it tells none)."""
    if set(RECORDED) & set(pairs.column_names):
        raise SchemaError(f"the rows have a context already (columns {', '.join(RECORDED)}). Start from rows without.")

    def put(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": contexts.put(row["prompt"], row["user_id"]), **contexts.record(row["prompt"], row["user_id"])}

    return changed(pairs, put, Features({**pairs.features, **RECORDED}))
