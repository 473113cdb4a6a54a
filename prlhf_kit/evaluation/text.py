"""Measures of text: repetition, diversity, coherence, readability, refusals. Words are lower-cased runs of letters and
digits: scripts without spaces give few long words. A measure that a text is too short for is NaN."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics.pairwise import paired_cosine_distances
from textstat import automated_readability_index as readability_index

from prlhf_kit.data.schema import message
from prlhf_kit.evaluation.judges import require_answers
from prlhf_kit.models.features import Embedder
from prlhf_kit.models.rewards import Text

NAN = float("nan")
SCORES = ("measure", "method", "user_id", "item", "prompt", "value")

_WORD = re.compile(r"\w+(?:['’]\w+)*")
# "I'm sorry, but", "As an AI language model,", "I apologize for the confusion.": up to two of them, and then a refusal
_REFUSAL = re.compile(
    r"\W*(?:(?:(?:i'm |i am )?(?:so |very )?sorry|(?:i |my )apolog\w+|as an ai|unfortunately|no)\b[^.!?,]{0,60}[.,]\s*"
    r"(?:but )?){0,2}(?:i (?:can't|can ?not|won't|will not|(?:must|have to) (?:\w+ly )?(?:decline|refuse)|"
    r"(?:don't|do not) have the ability)|(?:i'm|i am) (?:unable|not able|not comfortable)|"
    r"that(?:'s not| is not| isn't) something i can)\b(?! (?:wait|help but))",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The words of a text: "Don't panic: it's 5!" has don't, panic, it's, 5."""
    return _WORD.findall(text.lower())


def unique_share(tokens: Sequence[str], n: int) -> float:
    """Unique n-grams over all n-grams of a text; NaN where it has less than n tokens. It is 1 - rep-n (Welleck et al.
    2019, arXiv 1908.04319); ARGS' code (arXiv 2402.01694) divides by one n-gram more."""
    found = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(found)) / len(found) if found else NAN


def coherence(
    embedder: Embedder, prompts: Sequence[Text], answers: Sequence[str], cache: Path | None = None
) -> np.ndarray:
    """Cosine `[n]` between the embeddings of prompt and answer; NaN where one of them is empty. As in ARGS (arXiv
    2402.01694), which embeds by SimCSE; here by any sentence encoder, so don't compare values with that paper's."""
    asked = [message("user", prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    pairs = list(zip(asked, [message("assistant", answer) for answer in answers], strict=True))
    full = [i for i, pair in enumerate(pairs) if all(any(m["content"].strip() for m in text) for text in pair)]
    found = np.full(len(pairs), np.nan)
    if full:
        texts = [pairs[i][side] for side in (0, 1) for i in full]
        vectors = embedder([[]] * len(texts), texts, cache).astype(float)
        found[full] = 1 - paired_cosine_distances(*np.split(vectors, 2))
    return found


def is_refusal(text: str) -> bool:
    """Whether an English text opens with a refusal: "I'm sorry, but I am unable to", "As an AI, I cannot". Later ones
    are missed; an answer that goes on to help counts.

    >>> [is_refusal(text) for text in ("I'm sorry, but I can't help with that.", "I can't wait!")]
    [True, False]
    """
    return bool(_REFUSAL.match(text.replace("’", "'")))


def text_scores(answers: pd.DataFrame, embedder: Embedder | None = None, cache: Path | None = None) -> pd.DataFrame:
    """Measures of each answer: `SCORES`, one row an answer and measure ("words", "rep-2" to "rep-4", "diversity",
    "readability" (Automated Readability Index: a US school grade), "refusal", and, by an `embedder`, "coherence").
    `answers` has `ANSWERS`; `method` is the system, `item` the prompt's text."""
    require_answers(answers)
    texts = list(answers.answer)
    tokens = [words(text) for text in texts]
    unique = {n: np.array([unique_share(found, n) for found in tokens]) for n in (2, 3, 4)}
    values = {
        "words": [len(found) for found in tokens],
        **{f"rep-{n}": 1 - share for n, share in unique.items()},
        "diversity": unique[2] * unique[3] * unique[4],  # SimCTG, Su et al. 2022, arXiv 2202.06417; ARGS
        "readability": [readability_index(text) if found else NAN for text, found in zip(texts, tokens, strict=True)],
        "refusal": [is_refusal(text) for text in texts],
    }
    if embedder is not None:
        values["coherence"] = coherence(embedder, list(answers.prompt), texts, cache)
    keys = answers[["system", "user_id", "prompt"]].rename(columns={"system": "method"}).assign(item=answers.prompt)
    tables = [keys.assign(measure=name, value=np.asarray(value, float)) for name, value in values.items()]
    return pd.concat(tables, ignore_index=True)[list(SCORES)]
