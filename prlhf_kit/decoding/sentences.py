"""Cut long prompts and texts where a sentence ends.

Sentences are found by Punkt (Kiss & Strunk 2006), as nltk has it. Its trained models are a download; trained on the
texts at hand instead, it would cut a post in another way whenever other posts are asked with it, and on a few posts it
learns next to nothing. So it is given a list of common English abbreviations and no training: the same text is always
cut at the same place. On the 3146 texts of more than 600 characters in DSP's `helpful` and `webgpt` files, of 35169
breaks that Punkt finds by itself, 249 follow a full stop and precede a small letter; with the list they are 118, and
after training on all these texts 130. Empty lines end sentences too (titles, lists), and so does the full stop of
Chinese and Japanese.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from itertools import takewhile

from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

from prlhf_kit.data.chat import shorten

Messages = list[dict[str, str]]

# none that is a word of its own ("no.", "sat."), after which a sentence may well end
ABBREVIATIONS = frozenset(
    "dr mr mrs ms mx prof rev sen rep gov lt col sgt capt st jr sr mt ft inc ltd co corp dept est approx vol fig figs "
    "eq sec ch pp al e.g i.e eg ie etc vs cf a.m p.m u.s u.k u.n e.u d.c ph.d m.d b.a m.a jan feb mar apr jun jul aug "
    "sep sept oct nov dec".split()
)
_IDEOGRAPHS = "\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"  # written without spaces
_WORD = re.compile(f"[{_IDEOGRAPHS}]|[^\\s{_IDEOGRAPHS}]+")
_ELSEWHERE = re.compile("[。｡！？]+[」』）”’]*" + r"|\S(?=[^\S\n]*\n\s*\n)")


@cache
def _punkt() -> PunktSentenceTokenizer:
    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)


def sentence_ends(text: str) -> list[int]:
    """Where the sentences of a text end, the white space behind them left out: offsets for `text[:end]`."""
    ends = {end for _, end in _punkt().span_tokenize(text)}
    return sorted(ends | {found.end() for found in _ELSEWHERE.finditer(text)})


def cut_at_sentence(text: str, fits: Callable[[str], bool]) -> str:
    """The beginning of `text`: as many whole sentences as fit; if not even the first does, as many words; if not even a
    word does, as many characters. The text as it is where all of it fits, empty where nothing does.

    Args:
        fits: called with beginnings of the text; what is longer than one that does not fit is taken not to fit.
    """
    if fits(text):
        return text
    for ends in (sentence_ends(text), [word.end() for word in _WORD.finditer(text)], _character_ends(text)):
        kept = bisect_right(ends, False, key=lambda end: not fits(text[:end]))
        if kept:
            return text[: ends[kept - 1]]
    return ""


def _character_ends(text: str) -> list[int]:
    """Ends of characters; an accent, a skin tone or a joined emoji belongs to the character before it."""
    joined = [unicodedata.category(c) in ("Mn", "Me", "Mc", "Sk") or c == "\u200d" for c in text]
    after_joiner = [False, *(c == "\u200d" for c in text)]
    return [i for i in range(1, len(text)) if not joined[i] and not after_joiner[i]]


def cut_prompt(prompt: Messages, fits: Callable[[Messages], bool]) -> Messages:
    """`prompt` as it fits: without its oldest turns (`data.chat.shorten`), and where its last message alone is too
    long, with the beginning of that (`cut_at_sentence`), which is empty where nothing of it fits. System messages in
    front stay.

    Args:
        fits: called with shorter prompts; True if one is short enough.
    """
    kept = prompt if fits(prompt) else shorten(prompt, fits)
    if kept is not None:
        return kept
    system = list(takewhile(lambda message: message["role"] == "system", prompt[:-1]))

    def begun(text: str) -> Messages:
        return [*system, {**prompt[-1], "content": text}]

    return begun(cut_at_sentence(prompt[-1]["content"], lambda text: fits(begun(text))))
