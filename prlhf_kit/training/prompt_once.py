"""Less work for the same loss: a pair's prompt is computed once, and the LM head never runs over prompts.

TRL's batch holds [prompt, chosen] and [prompt, rejected] as two rows. Here a pair is one row [user tokens, prompt,
chosen, rejected], in which each response sees the prompt and itself (a 4-D mask) at the positions that it has alone
(prefix sharing, arXiv 2410.20305). TRL gets the hidden states of the responses back in the shape that it expects,
[chosen; rejected], each with the prompt's last token in front, which predicts the response's first one. Its losses,
metrics and fused LM head never see a prompt.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import pad

from prlhf_kit.models.conditioning import embed_with_users, longest_shared

PROMPT_KEYS = ("prompt_ids", "prompt_mask")


@dataclass
class DataCollatorForPersonalizedPreference(DataCollatorForPreference):
    """TRL's preference collator plus `user_rows` `[2B]`: a batch is [chosen; rejected], so each row comes twice.

    Where prompts are kept apart, `input_ids` `[2B, 1 + C]` are the responses, each with its prompt's last token in
    front, and `prompt_ids`, `prompt_mask` `[B, P]` (`[2B, P]` if not shared) the prompts, padded on the left.

    Args:
        prompts_apart: leave prompts out of `input_ids`, so that the LM head does not run over them.
        share: a prompt's row serves both responses.
        longest: batches with texts of more tokens keep TRL's form (sliding windows don't go with a 4-D mask).
    """

    prompts_apart: bool = True
    share: bool = True
    longest: int | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        batch["user_rows"] = torch.tensor([example["user_row"] for example in examples] * 2)
        prompts = [example["prompt_ids"] for example in examples]
        texts = [e["prompt_ids"] + e[side] for side in ("chosen_ids", "rejected_ids") for e in examples]
        longest = max(map(len, texts))
        cut_in_front = self.truncation_mode == "keep_end" and longest > (self.max_length or longest)
        if not self.prompts_apart or cut_in_front or longest > (self.longest or longest):
            return batch
        rows = [text[len(prompt) - 1 : self.max_length] for text, prompt in zip(texts, prompts * 2, strict=True)]
        batch["input_ids"] = self._pad(rows, "right", self.pad_token_id)
        batch["attention_mask"] = self._pad([[1] * len(row) for row in rows], "right")
        batch["completion_mask"] = self._pad([[0] + [1] * (len(row) - 1) for row in rows], "right")
        prompts = prompts if self.share else prompts * 2
        batch["prompt_ids"] = self._pad(prompts, "left", self.pad_token_id)
        batch["prompt_mask"] = self._pad([[1] * len(prompt) for prompt in prompts], "left")
        return batch

    def _pad(self, rows: list[list[int]], side: str, value: int = 0) -> torch.Tensor:
        tensors = [torch.tensor(row) for row in rows]
        return pad(tensors, value, side, pad_to_multiple_of=self.pad_to_multiple_of)


def compute_prompts_once(model: PreTrainedModel) -> None:
    """Let `model` (a causal LM, conditioned or not) take `prompt_ids` and `prompt_mask` beside `input_ids`.

    Two hooks on the backbone put prompts and responses together and give back the responses' hidden states, so PEFT,
    DDP and TRL's fused LM head work as ever. Calls without `prompt_ids` are not touched.
    """
    if getattr(model, "_computes_prompts_once", False):
        return
    model._computes_prompts_once = True
    asked: tuple[int, int] | None = None  # of the call that is running: tokens in front of the responses, responses

    def join(_backbone, args, kwargs):
        nonlocal asked
        asked = None
        if kwargs.get("prompt_ids") is None:
            return args, kwargs
        prompt, mask = (kwargs.pop(name) for name in PROMPT_KEYS)  # [n, P]; n is B where prompts are shared, else 2B
        # [2B, C], without the prompt's last token, which the prompt's own row has
        responses, real = kwargs.pop("input_ids")[:, 1:], kwargs.pop("attention_mask")[:, 1:]
        users = kwargs.pop("user_rows", None)
        embed = model.get_input_embeddings()
        if users is None:
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            front = {"inputs_embeds": embed(prompt), "attention_mask": mask, "position_ids": positions}
        else:
            front = embed_with_users(model, users[: len(prompt)], prompt, mask)  # [n, T_u + P, d_model]
        copies = len(responses) // len(prompt)  # 2 where chosen and rejected share the prompt's row
        asked = front["attention_mask"].shape[1], copies
        counted = (real.cumsum(1) - 1).clamp(min=0)  # padding stays within the model's context
        beside = [torch.cat(part.chunk(copies), 1) for part in (responses, real, counted)]  # [n, copies * C]
        # each response goes on counting where the prompt ends, as if the other were not there
        positions = front["attention_mask"].sum(1, keepdim=True) + beside[2]
        embeds = torch.cat([front["inputs_embeds"], embed(beside[0]).to(front["inputs_embeds"].dtype)], 1)
        padding = torch.cat([front["attention_mask"], beside[1]], 1)
        return args, kwargs | {
            "inputs_embeds": embeds,
            "position_ids": torch.cat([front["position_ids"], positions], 1),
            "attention_mask": padding if copies == 1 else _mask(padding, *asked, embeds.dtype),
        }

    def part(_backbone, _args, _kwargs, output):
        if asked is not None:
            ahead, copies = asked

            def responses(hidden):
                last = hidden[:, ahead - 1 : ahead]
                return torch.cat([torch.cat([last, own], 1) for own in hidden[:, ahead:].chunk(copies, 1)])

            output.last_hidden_state = responses(output.last_hidden_state)
            if output.hidden_states is not None:
                output.hidden_states = tuple(map(responses, output.hidden_states))
        return output

    # first in line: the hook of a user model would put the user tokens in front of the responses
    model.base_model.register_forward_pre_hook(join, prepend=True, with_kwargs=True)
    model.base_model.register_forward_hook(part, with_kwargs=True)


def _mask(padding: torch.Tensor, ahead: int, copies: int, dtype: torch.dtype) -> torch.Tensor:
    """`[n, S]` (1 for real tokens) -> what is added to the attention's scores, `[n, 1, S, S]`: 0 where it may look."""
    slots = torch.arange(padding.shape[1], device=padding.device)
    length = (len(slots) - ahead) // copies
    of = torch.where(slots < ahead, 0, 1 + (slots - ahead) // max(length, 1))  # 0: in front; else the response
    sees = (slots[:, None] >= slots) & ((of == 0) | (of[:, None] == of))
    sees = (sees & padding[:, None].bool()) | torch.eye(len(slots), dtype=torch.bool, device=padding.device)
    return torch.zeros(sees.shape, dtype=dtype, device=padding.device).masked_fill(~sees, torch.finfo(dtype).min)[
        :, None
    ]


def same_outputs(model: PreTrainedModel, share: bool) -> bool:
    """Whether `model` gives padded responses apart from their prompts (`share`: two in one row) what it gives them in
    TRL's form. Recurrent layers can't share; others may not take embeddings or positions."""
    ids = torch.randint(
        min(model.config.get_text_config().vocab_size, 1000), (24,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    pairs = [
        {"prompt_ids": ids[:6], "chosen_ids": ids[6:10], "rejected_ids": ids[10:12], "user_row": 0},
        {"prompt_ids": ids[12:15], "chosen_ids": ids[15:18], "rejected_ids": ids[18:24], "user_row": 0},
    ]
    batches = [
        DataCollatorForPersonalizedPreference(0, prompts_apart=apart, share=share)(pairs) for apart in (False, True)
    ]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            plain, other = (model.base_model(**_inputs(batch, model.device)).last_hidden_state for batch in batches)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError):  # what the model says to a 4-D mask, or to embeddings
        return False
    finally:
        model.train(training)
    mask = batches[0]["completion_mask"].bool()
    found = other[:, 1:][batches[1]["completion_mask"][:, 1:].bool()].float()
    wanted = plain[mask].float()
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.05
    return bool((found - wanted).norm() < tolerance * wanted.norm())


def _inputs(batch: dict[str, torch.Tensor], device) -> dict[str, torch.Tensor]:
    names = ("input_ids", "attention_mask", *PROMPT_KEYS)
    return {name: batch[name].to(device) for name in names if name in batch}


def collator_for(model, args, pad_token_id: int, user_tokens: int) -> DataCollatorForPersonalizedPreference:
    """The collator that `args` (a `PersonalizedDPOConfig`) asks for, where `model` gives the same outputs with it."""
    apart, share, longest = args.completion_logits_only, args.share_prompt, longest_shared(model)
    if apart:
        compute_prompts_once(model)
        share = share and longest != 0 and same_outputs(model, share=True)
        apart = share or same_outputs(model, share=False)
    if (apart, share) != (args.completion_logits_only, args.share_prompt):
        warnings.warn(
            f"{type(model).__name__} does not give the same hidden states "
            f"{'with a prompt shared by two responses' if apart else 'where prompts are kept apart'} (or its "
            f"attention, {model.config._attn_implementation!r}, takes no 4-D mask). Training goes on without that.",
            stacklevel=3,
        )
    return DataCollatorForPersonalizedPreference(
        pad_token_id=pad_token_id,
        max_length=args.max_length,
        truncation_mode=args.truncation_mode,
        pad_to_multiple_of=args.pad_to_multiple_of,
        prompts_apart=apart,
        share=share,
        longest=longest - user_tokens if share and longest else None,
    )
