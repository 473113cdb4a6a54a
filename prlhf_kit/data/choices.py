"""What a person chose before, in words: for prompts (FSPO: Singh et al. 2025, arXiv 2502.19312), judges, personas."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets

from prlhf_kit.data.registry import share
from prlhf_kit.data.schema import SchemaError, message

SIDES = ("chosen", "rejected")
COLUMNS = ["pair_id", "user_id", "prompt", *SIDES]
SHORT = 400  # characters that are told of a question or an answer
UNKNOWN = "none known"

Prompt = str | list[dict[str, str]]


def known_pairs(data: DatasetDict) -> list[Dataset]:
    """The sets whose choices may be told: those of training, and those to adapt to unseen users."""
    return [data[split] for split in ("train", "adapt_unseen") if split in data]


class Choices:
    """Which of a user's pairs are told before a prompt: `k`, one a prompt, or as many as there are. Where all pairs
    have one prompt (Polis), one a chosen response.

    Each user's pairs stand in a circle, in an order that `seed` draws. The prompt draws where one begins, so that the
    pairs of k=2 are among those of k=4, and the rows' order does not matter.

    Args:
        sets: pairs that may be told: `known_pairs(data)`, never the held-out ones.

    Raises `SchemaError` for k below 1, or sets that are no pairs of users.
    """

    def __init__(self, sets: Sequence[Dataset], k: int, seed: int = 0):
        if k < 1:
            raise SchemaError(f"k={k!r} earlier choices: expected at least 1. Without choices the context is 'none'.")
        for pairs in sets:
            if missing := [name for name in COLUMNS if name not in pairs.column_names]:
                raise SchemaError(f"a set lacks {missing}, found {pairs.column_names}: give `known_pairs(data)`.")
        self.k, self._seed = k, seed
        none = Dataset.from_dict({name: [] for name in COLUMNS})
        self._pairs = concatenate_datasets([pairs.select_columns(COLUMNS) for pairs in sets or [none]])
        self._one_prompt = len({str(turns_of(prompt)) for prompt in self._pairs["prompt"]}) == 1
        drawn = [share(seed, "choice", pair) for pair in self._pairs["pair_id"]]
        users = self._pairs["user_id"][:]
        self._places: dict[str, list[int]] = defaultdict(list)
        for place in sorted(range(len(drawn)), key=drawn.__getitem__):
            self._places[users[place]].append(place)

    def __contains__(self, user: object) -> bool:
        return user in self._places

    def of(self, user: str, prompt: Prompt | None = None) -> list[dict[str, Any]]:
        """The pairs that are told of `user` before `prompt`: none of the same prompt, see `apart`. None: any."""
        if user not in self._places:
            return []
        places, asked = self._places[user], [] if prompt is None else turns_of(prompt)
        start = int(share(self._seed, user, asked) * len(places))
        found: dict[str, dict[str, Any]] = {}
        for place in places[start:] + places[:start]:
            if len(found) == self.k:
                break
            pair: Any = self._pairs[place]
            if prompt is None or apart(pair["prompt"], prompt):
                found.setdefault(str(pair["chosen"] if self._one_prompt else turns_of(pair["prompt"])), pair)
        return [*found.values()]

    def apart(self, pair: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Whether a pair can't give away another: their prompts are `apart`, or, where all have one, no response is in
        both."""
        if self._one_prompt:
            return not {str(pair[side]) for side in SIDES} & {str(other[side]) for side in SIDES}
        return apart(pair["prompt"], other["prompt"])


def apart(earlier: Prompt, judged: Prompt) -> bool:
    """Whether a choice after the prompt `earlier` can't give away the `judged` turn or a later one. It can if it
    contains the judged question, or if both begin alike (system messages ignored), unless `earlier` is a shorter
    beginning of `judged`."""
    told, asked = turns_of(earlier), turns_of(judged)
    before = len(told) < len(asked) and asked[: len(told)] == told
    return asked[-1] not in told and (told[:1] != asked[:1] or before)


def turns_of(prompt: Prompt) -> list[tuple[str, str]]:
    """A prompt's messages but for the system's, as (role, text)."""
    messages = message("user", prompt) if isinstance(prompt, str) else prompt
    return [(m["role"], m["content"].strip()) for m in messages if m["role"] != "system"]


def told(pairs: Iterable[Mapping[str, Any]]) -> str:
    """Choices in words; of a text over `SHORT` characters its beginning, and how many words it has.

    >>> from prlhf_kit.data.schema import record
    >>> print(told([record("p1", "ann", "Tea?", "Green.", "None.")]))
    Asked: Tea?
    Chose: Green.
    Rather than: None.
    """
    lines = "Asked: {}\nChose: {}\nRather than: {}"
    found = []
    for pair in pairs:
        texts = [turns_of(pair["prompt"])[-1][1], *(pair[side][-1]["content"] for side in SIDES)]
        found.append(lines.format(*map(_shortened, texts)))
    return "\n\n".join(found) or UNKNOWN


def _shortened(text: str) -> str:
    words = text.split()
    flat = " ".join(words)
    return flat if len(flat) <= SHORT else f"{flat[:SHORT]} ... ({len(words)} words)"
