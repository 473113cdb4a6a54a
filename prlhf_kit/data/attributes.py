"""Attributes of a response, measured from its text alone. They are what simulated users have tastes about."""

import math
import re
from collections.abc import Iterable

import pandas as pd

ATTRIBUTES = ("length", "readability", "lists", "questions", "warmth", "formality")

_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S")
_WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)?")
_WARM = frozenset(
    "amazing awesome beautiful brave cheer cheers congratulations darling dear delighted delightful enjoy excited "
    "fantastic friend friends fun glad good great happy heart hug hope joy kind love lovely lucky perfect please proud "
    "smile sweet thank thanks welcome wonderful wow yay".split()
)
_FORMAL = frozenset(
    "accordingly additionally advisable advised appropriate approximately commonly consequently considered consists "
    "crucial defined due ensure essential facilitate furthermore generally hence important individuals moreover "
    "necessary obtain particular primarily recommended regarding relative require required requires respect results "
    "significant significantly such sufficient suggested therefore thus typically utilize various whereas which".split()
)
_INFORMAL = frozenset(
    "i me my you your yours we us our hey hi oh ok okay yeah yes no wow gonna wanna kinda stuff things thing guys lot "
    "lots really just pretty".split()
)


def measure(text: str) -> dict[str, float]:
    """Attributes of one response.

    - `length`: log(1 + words);
    - `readability`: Automated Readability Index (US school grade; higher is harder), clipped to [0, 20];
    - `lists`: share of the non-empty lines that are list items;
    - `questions`: log(1 + question marks);
    - `warmth`: log(1 + warm words + exclamation marks);
    - `formality`: formal words minus informal ones and contractions, per 10 words.
    """
    import textstat  # takes two seconds, which `prlhf data list` need not wait for

    words = [w.lower().replace("’", "'") for w in _WORD.findall(text)]
    lines = [line for line in text.splitlines() if line.strip()]
    formal = sum(w in _FORMAL for w in words) - sum(w in _INFORMAL or "'" in w for w in words)
    return {
        "length": math.log1p(len(words)),
        "readability": min(max(textstat.automated_readability_index(text), 0.0), 20.0) if words else 0.0,
        "lists": sum(bool(_LIST_ITEM.match(line)) for line in lines) / max(len(lines), 1),
        "questions": math.log1p(text.count("?")),
        "warmth": math.log1p(sum(w in _WARM for w in words) + text.count("!")),
        "formality": 10 * formal / max(len(words), 1),
    }


def measure_all(texts: Iterable[str]) -> pd.DataFrame:
    """`measure` of many texts: one row a text, one column an attribute."""
    return pd.DataFrame([measure(t) for t in texts], columns=list(ATTRIBUTES))
