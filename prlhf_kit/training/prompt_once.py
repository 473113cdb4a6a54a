"""Less work for the same loss (prefix sharing, arXiv 2410.20305): a pair is one row [user tokens, prompt, chosen,
rejected], in which each response sees the prompt and itself (a 4-D mask) at the positions that it has alone. Pairs of
one user and prompt share a row, where a batch's rows all have the same number of them (`data.select.in_blocks`). TRL
gets the responses' hidden states back in its own shape, [chosen; rejected], each behind the prompt's last token.
"""

import math
import warnings
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import pad

from prlhf_kit.models.conditioning import embed_with_users, longest_shared, same_outputs
from prlhf_kit.models.logprobs import REFERENCE

GENERIC_PROMPT = "generic_prompt_ids"  # columns of pairs whose generic user reads another prompt (user_text="authors")
GENERIC_REFERENCE = {name: name.replace("ref_", "ref_generic_") for name in REFERENCE}


@dataclass
class DataCollatorForPersonalizedPreference(DataCollatorForPreference):
    """TRL's preference collator plus `user_rows` `[2B]`: a batch is [chosen; rejected], so each row comes twice.

    Where prompts are shared, `prompt_ids` `[R, P]` are the prompts of the rows (B, or fewer), padded on the left,
    `input_ids` `[2B, 1 + C]` the responses, each with its prompt's last token in front, and `attention_mask` `[2B, P +
    C]` is of both.
    Where examples have other prompts for the generic user (`GENERIC_PROMPT`), perhaps with the reference's log-probs,
    `generic` is the same batch with those.

    Args:
        longest: prompts are shared in batches of which no text has more tokens; 0: in none.
    """

    longest: float = 0

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if GENERIC_PROMPT in examples[0]:
            bare = [{k: v for k, v in e.items() if k not in (GENERIC_PROMPT, *REFERENCE)} for e in examples]
            for own, example in zip(bare, examples, strict=True):
                own["prompt_ids"] = example[GENERIC_PROMPT]
                own |= {name: example[of] for name, of in GENERIC_REFERENCE.items() if of in example}
            batch["generic"] = self.torch_call(bare)
        batch["user_rows"] = torch.tensor([example["user_row"] for example in examples] * 2)
        prompts = [example["prompt_ids"] for example in examples]
        texts = [e["prompt_ids"] + e[side] for side in ("chosen_ids", "rejected_ids") for e in examples]
        longest = max(map(len, texts))
        if longest > self.longest:
            return batch
        rows = [text[len(prompt) - 1 : self.max_length] for text, prompt in zip(texts, prompts * 2, strict=True)]

        def padded(lists: list[list[int]], side: str = "right", value: int = 0) -> torch.Tensor:
            return pad(list(map(torch.tensor, lists)), value, side, pad_to_multiple_of=self.pad_to_multiple_of)

        batch["input_ids"] = padded(rows, value=self.pad_token_id)
        batch["completion_mask"] = padded([[0] + [1] * (len(row) - 1) for row in rows])
        whose = [(example["user_row"], prompt) for example, prompt in zip(examples, prompts, strict=True)]
        runs = [len(list(same)) for _, same in groupby(whose)]
        together = math.gcd(*runs)  # pairs a row
        batch["prompt_ids"] = padded(prompts, "left", self.pad_token_id)[::together]
        real = padded([[1] * len(prompt) for prompt in prompts * 2], "left")
        batch["attention_mask"] = torch.cat([real, batch["completion_mask"][:, 1:]], 1)
        return batch


def compute_prompts_once(model: PreTrainedModel) -> None:
    """Let `model` (a causal LM, conditioned or not) take `prompt_ids` beside `input_ids`, as the collator makes them.

    Two hooks on the backbone put prompts and responses together and give back the responses' hidden states, so PEFT,
    DDP and TRL's fused LM head work as ever. Calls without `prompt_ids` are not touched.
    """
    if getattr(model, "_computes_prompts_once", False):
        return
    model._computes_prompts_once = True
    ahead = width = 0  # of the running call: tokens before the responses, with the user's; tokens of a response

    def join(_backbone, args, kwargs):
        nonlocal ahead, width
        ahead = 0
        if "prompt_ids" not in kwargs:
            return args, kwargs
        prompts, responses = kwargs.pop("prompt_ids"), kwargs.pop("input_ids")[:, 1:]  # [R, P], [2B, C]
        (rows, length), pairs = prompts.shape, len(responses) // 2
        mask, real = kwargs.pop("attention_mask").split([length, responses.shape[1]], 1)
        first = slice(0, pairs, pairs // rows)  # pair of each row
        mask, users, embed = mask[first], kwargs.pop("user_rows", None), model.get_input_embeddings()
        if users is None:
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            front = {"inputs_embeds": embed(prompts), "attention_mask": mask, "position_ids": positions}
        else:
            front = embed_with_users(model, users[first], prompts, mask)  # [R, T_u + P, d_model]
        ahead, width = front["attention_mask"].shape[1], responses.shape[1]
        counted = (real.cumsum(1) - 1).clamp(min=0)  # padding stays within the model's context
        # a row's chosen and rejected responses side by side: [2B, C] -> [R, n * C]
        ids, real, counted = (
            part.unflatten(0, (2, rows, -1)).transpose(0, 1).flatten(1) for part in (responses, real, counted)
        )
        embeds = torch.cat([front["inputs_embeds"], embed(ids).to(front["inputs_embeds"].dtype)], 1)
        # each response goes on counting where the prompt ends, as if the other were not there
        positions = torch.cat([front["position_ids"], front["attention_mask"].sum(1, keepdim=True) + counted], 1)
        seen = _mask(torch.cat([front["attention_mask"], real], 1), ahead, width, embeds.dtype)
        return args, kwargs | {"inputs_embeds": embeds, "position_ids": positions, "attention_mask": seen}

    def part(_backbone, _args, _kwargs, output):
        if ahead:  # [R, ahead + n * C, d_model] -> [2B, 1 + C, d_model]
            hidden = output.last_hidden_state
            own = hidden[:, ahead:].unflatten(1, (2, -1, width)).transpose(0, 1)  # [2, R, n / 2, C, d_model]
            last = hidden[:, ahead - 1, None, None].expand(2, -1, own.shape[2], -1, -1)
            output.last_hidden_state = torch.cat([last, own], 3).flatten(0, 2)
        return output

    # first in line: the hook of a user model would put the user tokens in front of the responses
    model.base_model.register_forward_pre_hook(join, prepend=True, with_kwargs=True)
    model.base_model.register_forward_hook(part, with_kwargs=True)


def _mask(real: torch.Tensor, ahead: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """`[R, S]` (1 for real tokens) -> what is added to the attention's scores, `[R, 1, S, S]`: 0 where it may look."""
    slots = torch.arange(real.shape[1], device=real.device)
    part = torch.where(slots < ahead, 0, 1 + (slots - ahead) // max(width, 1))  # 0: in front; 1, 2, ...: a response
    sees = (slots[:, None] >= slots) & ((part == 0) | (part[:, None] == part))  # [S, S]
    sees = (sees & real[:, None].bool()) | torch.eye(len(slots), dtype=torch.bool, device=real.device)
    return torch.zeros(sees.shape, dtype=dtype, device=real.device).masked_fill(~sees, torch.finfo(dtype).min)[:, None]


def collator_for(model, args, pad_token_id: int, user_tokens: int) -> DataCollatorForPersonalizedPreference:
    """The collator that `args` (a `PersonalizedDPOConfig`) asks for, where `model` gives the same outputs with it."""
    settings = args.max_length, args.truncation_mode, args.pad_to_multiple_of
    collator = DataCollatorForPersonalizedPreference(pad_token_id, *settings)
    longest = longest_shared(model)
    # cut in front, the two texts of a pair have two prompts
    wanted = args.share_prompt and args.truncation_mode == "keep_start"
    if wanted and longest and shares_prompts(model):
        collator.longest = longest - user_tokens
    elif wanted:
        told = f"{type(model).__name__}, attention {model.config._attn_implementation!r}"
        warnings.warn(f"share_prompt gives other hidden states ({told}). Training goes on without it.", stacklevel=3)
    return collator


def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether `model` gives responses that share a prompt what it gives them in TRL's form: recurrent layers can't,
    others may not take embeddings or positions. From then on it takes `prompt_ids`."""
    compute_prompts_once(model)
    known = min(model.config.get_text_config().vocab_size, 1000)
    ids = torch.randint(known, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = [
        {"prompt_ids": ids[:6], "chosen_ids": ids[6:10], "rejected_ids": ids[10:12], "user_row": 0},
        {"prompt_ids": ids[12:15], "chosen_ids": ids[15:18], "rejected_ids": ids[18:24], "user_row": 0},
    ]

    def responses(longest: int) -> torch.Tensor:
        batch = DataCollatorForPersonalizedPreference(0, longest=longest)(pairs)
        asked = batch.pop("completion_mask").bool()
        inputs = {name: value.to(model.device) for name, value in batch.items() if name != "user_rows"}
        return model.base_model(**inputs).last_hidden_state[asked]

    return same_outputs(model, lambda: responses(0), lambda: responses(len(ids)))
