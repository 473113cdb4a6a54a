"""Reading the numbers that the papers' own code gave, and the tiny models that it gave them for."""

import json
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import prlhf_kit as kit
from prlhf_kit.models.user_models import UserModel

HERE = Path(__file__).parent
MODELS = HERE / "models"
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{% if loop.first %}{{ bos_token }}{% endif %}{{ m['content'] }}{% endif %}"
    "{% endfor %}"
)


def golden(name: str) -> dict:
    return json.loads((HERE / name).read_text())


def language_model(name: str = "base") -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()


def load_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(MODELS / "tokenizer.json"),
        chat_template=TEMPLATE,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
    )


def until_end(tokens: list[int]) -> list[int]:
    """Up to the token that ends the text, that one included: the authors' decoding goes on after it."""
    return tokens[: tokens.index(2) + 1] if 2 in tokens else tokens


@torch.no_grad()
def fill(users: UserModel, tensors: dict[str, torch.Tensor]) -> None:
    """Give a user model the authors' values."""
    if isinstance(users, kit.ClusterUserModel):
        users.centres.copy_(tensors["centres"])
        users.own.copy_(tensors["user_weights"] / users.SCALE)
        return
    users.own.copy_(tensors["users"])
    if users.generic is not None:  # row 0 is then a tensor of its own, and part of every user
        users.generic.copy_(tensors["users"][0])
        users.own[0] = 0
