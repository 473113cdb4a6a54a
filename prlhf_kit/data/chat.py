"""One chat format for everything: the model's own template, or a plain one where a tokenizer has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets import Dataset
from jinja2 import TemplateError

from prlhf_kit.data.schema import SchemaError, message

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

# The plain template: every message under a heading with its role, an empty line between messages, and the end-of-text
# token right after what the assistant says, so that a model learns to stop:
#
#     ### User:
#     How do I make tea?
#
#     ### Assistant:
#     With hot water.<eos>
PLAIN_TEMPLATE = (
    "{% for m in messages %}"
    "{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{{ '### ' + m['role'] | capitalize + ':\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\n### Assistant:\n' }}{% endif %}"
)

_ASKED = message("user", "What is tea?")
_PROBES = (  # prompt, answer: a single question, one with a system message, and a dialogue
    (_ASKED, message("assistant", "A drink.")),
    (message("system", "Be brief.") + _ASKED, message("assistant", "A drink.")),
    (_ASKED + message("assistant", "A drink.") + message("user", "And coffee?"), message("assistant", "Another one.")),
)


def require_prefix(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a chat template for which the prompt is not a prefix of prompt + completion.

    A log-probability of the completion *given the prompt* means nothing where adding the completion changes how the
    prompt itself is laid out (templates that drop earlier reasoning do that, for instance).

    Raises:
        SchemaError: with both texts and the way out.
    """
    name = repr(tokenizer.name_or_path or type(tokenizer).__name__)
    if tokenizer.chat_template is None:
        raise SchemaError(
            f"{name} has no chat template. Load it with prlhf_kit.load_tokenizer, which gives it the plain one, or set "
            "tokenizer.chat_template."
        )
    for prompt, answer in _PROBES:
        try:
            asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            whole = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
        except TemplateError as error:
            if prompt[0]["role"] == "system":
                continue  # a template may know no system role; texts that have one are refused when they come
            raise SchemaError(
                f"the chat template of {name} takes no plain dialogue of user and assistant: {error}"
            ) from error
        if not whole.startswith(asked):
            raise SchemaError(
                f"the chat template of {name} does not keep the prompt in front of the completion: the prompt is laid "
                f"out as {asked[-80:]!r}, prompt and completion as {whole[-120:]!r}. Set tokenizer.chat_template to "
                "one that does: for many models trl.chat_template_utils.get_training_chat_template(tokenizer) has it, "
                "and prlhf_kit.data.chat.PLAIN_TEMPLATE always works, for a model that is trained with it."
            )


def prompt_texts(tokenizer: PreTrainedTokenizerBase, dialogues: list[list[dict]], answered: bool) -> list[str]:
    """Each dialogue as the model reads it. `answered`: it ends with the completion, not with the user's question.

    Raises:
        SchemaError: the template refuses a dialogue (an unknown role, or roles that don't alternate).
    """
    texts = []
    for dialogue in dialogues:
        try:
            text = tokenizer.apply_chat_template(dialogue, add_generation_prompt=not answered, tokenize=False)
        except TemplateError as error:
            raise SchemaError(
                f"the chat template of {tokenizer.name_or_path!r} refuses the roles "
                f"{[m['role'] for m in dialogue]} ({error}), first message {str(dialogue[0]['content'])[:60]!r}. Merge "
                "or drop those messages, or use a model whose template knows them."
            ) from None
        texts.append(text)
    return texts


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    """Tokens of each text that a chat template has laid out."""
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []


def shorten(prompt: list[dict], fits) -> list[dict] | None:
    """`prompt` without its oldest turns, as few as make it fit; None if its last user turn alone does not.

    System messages in front stay. What is left begins with a user turn, and the last one is always kept.

    Args:
        fits: called with a shorter prompt; True if it is short enough.
    """
    head = 0
    while head < len(prompt) and prompt[head]["role"] == "system":
        head += 1
    for start in range(head + 1, len(prompt)):
        if prompt[start]["role"] == "user" and fits(prompt[:head] + prompt[start:]):
            return prompt[:head] + prompt[start:]
    return None


def tell(prompt: list[dict[str, str]], user_text: str | None) -> list[dict[str, str]]:
    """`prompt` with `user_text` as its system message, in place of the one that is there; without a text as it is."""
    if not user_text:
        return prompt
    return [{"role": "system", "content": user_text}, *(m for m in prompt if m["role"] != "system")]


def with_user_text(pairs: Dataset) -> Dataset:
    """`pairs` with each user's `user_text` in the prompt (`tell`)."""
    return pairs.map(lambda row: {"prompt": tell(row["prompt"], row["user_text"])})


def prompt_text(prompt: list[dict[str, str]]) -> str:
    """All of a prompt's messages as one text."""
    return "\n\n".join(message["content"] for message in prompt)
