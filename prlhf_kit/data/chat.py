"""One chat format for everything: the model's own template, or a plain one where a tokenizer has none."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pandas as pd
from datasets import Dataset
from jinja2 import TemplateError

from prlhf_kit.data.collect import changed
from prlhf_kit.data.schema import SchemaError, message

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

# "### User:\nHow do I make tea?\n\n### Assistant:\nWith hot water.<eos>": a model learns to stop after what it says
PLAIN_TEMPLATE = (
    "{% for m in messages %}"
    "{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{{ '### ' + m['role'] | capitalize + ':\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\n### Assistant:\n' }}{% endif %}"
)

# ComPO's layout (Kumar et al. 2024, arXiv 2410.16027; sft.py, predict.py) for base models, with the context template
# "compo": "<|domain|>\nr/tea\n<|user|>\nGreen tea?\nI like it.\n<|assistant|>\nYes.<eos>", and "Reddit" in place of the
# community without context. The whole text is theirs but for white space around a post and the "_train" that they leave
# at a community's name; in dpo.py, by a slip, no line break follows "<|user|>".
COMPO_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|domain|>\nReddit\n' }}{% endif %}"
    "{% for m in messages %}"
    "{{ '<|' + ('domain' if m['role'] == 'system' else m['role']) + '|>\n' + m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# In front of a template that has no place for a system message (Gemma 2, the first Mistrals): its words begin the
# user's first message, as in Gemma 3's own template. "+" keeps white space with which the template itself begins.
SYSTEM_INTO_USER = (
    "{% if messages | length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' %}"
    "{% set words = messages[0]['content'] + '\n\n' + messages[1]['content'] %}"
    "{% set messages = [{'role': 'user', 'content': words}] + messages[2:] %}"
    "{% endif +%}"
)

_ASKED = message("user", "What is tea?")
_SAID = message("assistant", "A drink.")
_SYSTEM = message("system", "Be brief.")
_PROBES = (_ASKED, _ASKED + _SAID + message("user", "And coffee?"), _SYSTEM + _ASKED)
log = logging.getLogger(__name__)


def allow_system(tokenizer: PreTrainedTokenizerBase) -> None:
    """Change a chat template that refuses a system message, or drops it, to put it into the user's message: so every
    model reads what users say of themselves."""
    if _reads_system(tokenizer):
        return
    known = tokenizer.chat_template
    tokenizer.chat_template = SYSTEM_INTO_USER + known
    if not _reads_system(tokenizer):  # then it is no template for plain dialogues, which `require_prefix` says
        tokenizer.chat_template = known
        return
    log.warning(
        "the chat template of %r has no system message: its words (a user's own, say) begin the user's message.",
        tokenizer.name_or_path,
    )


def _reads_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a system message is in the prompt, with an answer behind it too."""
    try:
        return all(_SYSTEM[0]["content"] in text for text in _laid_out(tokenizer, _SYSTEM + _ASKED))
    except (TemplateError, TypeError):
        return False


def require_prefix(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a chat template for which the prompt is not a prefix of prompt + completion (those that drop earlier
    reasoning, say): there a log-probability of the completion *given the prompt* means nothing."""
    name = repr(tokenizer.name_or_path or type(tokenizer).__name__)
    if tokenizer.chat_template is None:
        raise SchemaError(f"{name} has no chat template: load it with prlhf_kit.load_tokenizer, or set chat_template.")
    allow_system(tokenizer)
    for prompt in _PROBES:
        try:
            asked, whole = _laid_out(tokenizer, prompt)
        except TemplateError as error:
            raise SchemaError(f"{name}'s chat template takes no plain dialogue: {error}. Set another.") from error
        if not whole.startswith(asked):
            raise SchemaError(
                f"the chat template of {name} does not keep the prompt in front of the completion: it lays out the "
                f"prompt as {asked[-80:]!r}, both as {whole[-120:]!r}. Set tokenizer.chat_template to that of "
                "trl.chat_template_utils.get_training_chat_template(tokenizer) or prlhf_kit.data.chat.PLAIN_TEMPLATE."
            )


def _laid_out(tokenizer: PreTrainedTokenizerBase, prompt: list[dict]) -> tuple[str, str]:
    asked: Any = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    whole: Any = tokenizer.apply_chat_template(prompt + _SAID, tokenize=False)
    return asked, whole


def apply_template(tokenizer: PreTrainedTokenizerBase, dialogue: list[dict], **options: Any) -> Any:
    """`tokenizer.apply_chat_template`; `SchemaError` where the template refuses the dialogue's roles."""
    try:
        return tokenizer.apply_chat_template(dialogue, **options)
    except TemplateError as error:
        raise SchemaError(
            f"the chat template of {tokenizer.name_or_path!r} refuses the roles {[m['role'] for m in dialogue]} "
            f"({error}), first message {str(dialogue[0]['content'])[:60]!r}. Merge those messages, or leave them out."
        ) from None


def prompt_texts(tokenizer: PreTrainedTokenizerBase, dialogues: list[list[dict]], answered: bool) -> list[str]:
    """Each dialogue as the model reads it. `answered`: it ends with the completion, not with the user's question."""
    layout = {"add_generation_prompt": not answered, "tokenize": False}
    return [apply_template(tokenizer, dialogue, **layout) for dialogue in dialogues]


def count_tokens(tokenizer: PreTrainedTokenizerBase, dialogues: list[list[dict]], answered: bool) -> list[int]:
    """Tokens of each dialogue, see `prompt_texts`."""
    texts = prompt_texts(tokenizer, dialogues, answered)
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []


def token_quantiles(tokenizer: PreTrainedTokenizerBase, pairs: Dataset) -> pd.DataFrame:
    """Quantiles of the tokens of the first 1,000 prompts, and of these pairs (with the longer response)."""
    rows: Any = pairs.select(range(min(len(pairs), 1000))).to_list()
    both = [count_tokens(tokenizer, [row["prompt"] + row[c] for row in rows], True) for c in ("chosen", "rejected")]
    counts = {"prompt": count_tokens(tokenizer, [row["prompt"] for row in rows], False), "pair": list(map(max, *both))}
    found = pd.DataFrame(counts, dtype=float).quantile([0.5, 0.9, 0.99, 1.0]).T
    return found.set_axis(["median", "90%", "99%", "most"], axis=1).rename_axis("tokens of").reset_index()


def shorten(prompt: list[dict], fits) -> list[dict] | None:
    """`prompt` without its oldest turns, as few as make it fit (`fits(shorter)`); None if its last user turn alone does
    not. System messages in front stay, and what is left begins with a user turn."""
    head = next((i for i, m in enumerate(prompt) if m["role"] != "system"), len(prompt))
    for start in range(head + 1, len(prompt)):
        if prompt[start]["role"] == "user" and fits(prompt[:head] + prompt[start:]):
            return prompt[:head] + prompt[start:]
    return None


def tell(prompt: list[dict[str, str]], user_text: str | None, wording: str = "{}") -> list[dict[str, str]]:
    """`prompt` with `user_text`, put into `wording`, as its system message, in place of the one that is there; or in
    front of the last message's own text, where the wording ends with "{prompt}". Without a text as it is."""
    if not user_text:
        return prompt
    words = wording.removesuffix("{prompt}").replace("{}", user_text)
    if wording.endswith("{prompt}"):
        return [*prompt[:-1], {**prompt[-1], "content": words + prompt[-1]["content"]}]
    return [{"role": "system", "content": words}, *(m for m in prompt if m["role"] != "system")]


def with_user_text(pairs: Dataset) -> Dataset:
    """`pairs` with each user's `user_text` in the prompt (`tell`)."""
    return changed(pairs, lambda row: {"prompt": tell(row["prompt"], row["user_text"])})


def without_user_text(pairs: Dataset) -> Dataset:
    """`pairs` whose users say nothing of themselves."""
    return changed(pairs, lambda _: {"user_text": None})


def prompt_text(prompt: list[dict[str, str]]) -> str:
    """All of a prompt's messages as one text."""
    return "\n\n".join(message["content"] for message in prompt)


def prompt_texts_of(pairs: Dataset) -> list[str]:
    """The text by which each pair is grouped: its prompt; or, where all have one (Polis), the chosen response."""
    prompts = [prompt_text(prompt) for prompt in pairs["prompt"]]
    if "chosen" in pairs.column_names and len(set(prompts)) == 1:
        return [prompt_text(chosen) for chosen in pairs["chosen"]]
    return prompts
