"""The one preference record that every dataset of the kit becomes. More columns pass through."""

from typing import Any

from datasets import Features, List, Value

_TEXT = Value("string")
_MESSAGES = List({"role": _TEXT, "content": _TEXT})  # as TRL reads them
FEATURES = Features(
    {
        "pair_id": _TEXT,  # unique in the dataset
        "user_id": _TEXT,  # who stated the preference
        "user_text": _TEXT,  # what that person says of themselves or wants, in words; may be null
        "group": _TEXT,  # known type of user, for analysis only, never an input; may be null
        "prompt": _MESSAGES,
        "chosen": _MESSAGES,
        "rejected": _MESSAGES,
    }
)
COLUMNS = tuple(FEATURES)
MESSAGES = COLUMNS[-3:]
# test_seen: users of train, new prompts; test_unseen: users never in train, and their few pairs for adaptation
SPLITS = ("train", "test_seen", "test_unseen", "adapt_unseen")
ANSWERS = ("system", "user_id", "prompt", "answer")  # columns of the table of answers


class SchemaError(ValueError):
    """The data can't be used; the message names the split, the column and the way out."""


def message(role: str, text: str) -> list[dict[str, str]]:
    """One message as a list, the form that TRL reads."""
    return [{"role": role, "content": text}]


def record(
    pair_id: str,
    user_id: str,
    prompt: str | list[dict[str, str]] | None,
    chosen: str | None,
    rejected: str | None,
    user_text: str | None = None,
    group: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One row. `prompt`: a single question, or a whole dialogue that ends with the user; `more`: further columns.

    A null text becomes an empty one, which the checks drop and count.
    """
    return {
        "pair_id": pair_id,
        "user_id": user_id,
        "user_text": user_text,
        "group": group,
        "prompt": prompt if isinstance(prompt, list) else message("user", "" if prompt is None else prompt),
        "chosen": message("assistant", "" if chosen is None else chosen),
        "rejected": message("assistant", "" if rejected is None else rejected),
        **more,
    }
