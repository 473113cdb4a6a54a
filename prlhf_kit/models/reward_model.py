"""Reward models: a transformers sequence classifier with one output, with the base's LM head. The attention
mask says where a text ends, not the padding token, which may be the end-of-text token too."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import ModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from prlhf_kit.files import write_json
from prlhf_kit.models.conditioning import causal_lm
from prlhf_kit.models.embedded import ModelError
from prlhf_kit.models.hub import from_hub, weights_in, without_load_report
from prlhf_kit.models.saving import condition_as_saved, part_of_weights, reference_name, save_index
from prlhf_kit.models.user_index import INDEX_FILE, UserIndex

POOLING = ("last", "before_eos", "mean", "max", "own")
REWARD_FILE = "reward.json"


@dataclass
class RewardOutput(ModelOutput):
    """`logits` `[N, num_labels]`, the rewards; `nll` `[N]`, nats a token of the texts asked for, where LM is asked."""

    logits: torch.Tensor | None = None
    nll: torch.Tensor | None = None


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector a text: `[N, L, d]` and `[N, L]` -> `[N, d]`, of real tokens only, on whichever side the padding is.
    `pooling`: "last" (real token; DSP's "eos"), "before_eos" (the one before, if any; DSP's "last"), "mean", "max"."""
    if pooling in ("last", "before_eos"):
        number = attention_mask.long().cumsum(1)  # [N, L], of each real token in its text, from 1
        wanted = (number[:, -1:] - int(pooling == "before_eos")).clamp(min=1)
        place = (number == wanted).int().argmax(1)  # where it is first met
        return hidden[torch.arange(len(hidden), device=hidden.device), place]
    real = attention_mask[..., None].bool()
    if pooling == "mean":
        return (hidden * real).sum(1) / real.sum(1)
    return hidden.masked_fill(~real, -torch.inf).amax(1)


class _Pooled:
    """A sequence classifier pooled by the mask, with an LM term."""

    def forward(self, input_ids=None, attention_mask=None, lm_asked=None, **kwargs):
        """As the class's own; `lm_asked` `[N, L]`: tokens whose log-likelihood is wanted."""
        model: Any = self
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if is_decoder(model) and kwargs.get("position_ids") is None and "user_rows" not in kwargs:
            kwargs["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        pooled = pool(hidden, attention_mask, model.pooling)  # [N, L, d_model] -> [N, d_model]
        rewards = getattr(model, head_name(model))(pooled)  # [N, 1]
        if lm_asked is None:
            return RewardOutput(logits=rewards)
        # a text's first token has nothing to be predicted from, wherever it stands
        lm_asked = lm_asked * nn.functional.pad(attention_mask[:, :-1], (1, 0))
        rows = lm_asked.any(1).nonzero().squeeze(1)  # the LM head runs only over texts of which something is asked
        own = getattr(model, "lm_head", None)  # where it is not the word embeddings
        words = model.get_input_embeddings().weight
        logits = nn.functional.linear(hidden[rows], words) if own is None else own(hidden[rows])
        cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        nll, asked = logits.new_zeros(len(hidden), dtype=torch.float32), lm_asked[rows, 1:].float()
        each = nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), input_ids[rows, 1:], reduction="none"
        )
        return RewardOutput(logits=rewards, nll=nll.index_put((rows,), (each * asked).sum(1) / asked.sum(1)))


def is_decoder(model) -> bool:
    """Whether a model reads its text from left to right (else it is an encoder such as BERT)."""
    return model.config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def two_types(model) -> bool:
    """Whether a model has `token_type_ids` that tell prompt and response apart."""
    return not is_decoder(model) and getattr(model.config, "type_vocab_size", 0) > 1


def head_name(model) -> str:
    """Name of the reward head of a sequence classifier."""
    return "score" if hasattr(model, "score") else "classifier"


def pooled_by_mask(model: PreTrainedModel, pooling: str | None = None) -> Any:
    """`model`, a sequence classifier, pooled by the mask and with an LM term; saved, an ordinary one of its class.

    `pooling`: one of `POOLING`, of which "own" changes nothing; None: "last" for decoders, "own" for encoders. Raises
    `ValueError` for one that the model's head does not go with.
    """
    model.pooling = pooling or ("last" if is_decoder(model) else "own")
    if model.pooling not in POOLING:
        raise ValueError(f"pooling={pooling!r}: expected one of {', '.join(POOLING)}.")
    if model.pooling == "own":
        return model
    if not isinstance(getattr(model, head_name(model), None), nn.Linear):
        raise ValueError(f"{type(model).__name__}'s head is not one linear map, so it goes with pooling='own' only.")
    if getattr(model.base_model, "pooler", None) is not None:
        model.base_model.pooler = None  # of an encoder's own way: it would get no gradient
    kind = type(model)
    model.__class__ = type(kind.__name__, (_Pooled, kind), {"__module__": kind.__module__})
    return model


def new_reward_model(
    name: str,
    pooling: str | None = None,
    lm_head: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
) -> Any:
    """A reward model to train: the backbone of `name` (a language model, an encoder) and a new head with one output.

    Args:
        pooling: see `pooled_by_mask`.
        lm_head: keep the base's own LM head, for DSP's language-modelling term. Raises `ModelError` if it has none.
        seed: of the new head.
    """
    with without_load_report(), torch.random.fork_rng():  # a language model's checkpoint has no reward head
        torch.manual_seed(seed)
        options = {"num_labels": 1, "dtype": dtype, "output_loading_info": True}
        model, info = from_hub(AutoModelForSequenceClassification, name, **options)
    model = pooled_by_mask(model, pooling)
    # what no checkpoint brought must be trained and saved, with an adapter too
    fresh = {key.rsplit(".", 1)[0] for key in info["missing_keys"]} | {head_name(model)}
    model.fresh = sorted(fresh & {name for name, _ in model.named_modules()})
    if lm_head:
        _attach_lm_head(model, name)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _attach_lm_head(model, name: str) -> None:
    scaled = any(getattr(model.config, scale, None) not in (None, 1) for scale in ("logit_scale", "logits_scaling"))
    if not is_decoder(model) or model.pooling == "own" or scaled:
        raise ModelError(
            f"{type(model).__name__} with pooling={model.pooling!r} has no LM term, which needs a decoder with plain "
            "logits and a pooling other than 'own'. Set lm_loss_coeff=0."
        )
    if not model.config.tie_word_embeddings:
        model.lm_head = from_hub(AutoModelForCausalLM, name, dtype=model.dtype).get_output_embeddings()
    model.has_lm_head = True


def save_beside(model, folder: str | Path, index: UserIndex | None, **more: object) -> None:
    """Write `reward.json`, with `more`, and the users beside the weights in `folder`."""
    bare: Any = causal_lm(model)
    write_json(Path(folder, REWARD_FILE), {"pooling": bare.pooling, "base_model": reference_name(bare), **more})
    if index is not None:
        save_index(model, index, folder)


def load_reward_model(
    name: str,
    trainable: bool = False,
    lm_head: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, UserIndex | None]:
    """A trained reward model, and its users if it has any.

    Args:
        name: folder that training wrote; or any published sequence classifier, whose pooling stays its own.
        trainable: go on training: its adapter, or the whole model.
        lm_head: with the LM head, for DSP's language-modelling term.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not Path(name, REWARD_FILE).is_file():
        options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
        return from_hub(AutoModelForSequenceClassification, name, **options).to(device).eval(), None
    written = json.loads(Path(name, REWARD_FILE).read_text())
    adapter = Path(name, "adapter_config.json").is_file()
    model = new_reward_model(written["base_model"] if adapter else name, written["pooling"], dtype=dtype, device=device)
    model.reference_name = written["base_model"]
    model.starts_from = weights_in(name)  # tells apart what goes on from it (`fit`)
    if lm_head:
        _attach_lm_head(model, written["base_model"])
        if hasattr(model, "lm_head") and (state := part_of_weights(name, "lm_head")):  # trained with the whole model
            model.lm_head.load_state_dict(state)
        model.to(device)
    index, saved = UserIndex.load(name) if Path(name, INDEX_FILE).is_file() else (None, {})
    if index is not None:
        condition_as_saved(model, name, index, saved)
    if adapter:
        model = PeftModel.from_pretrained(model, name, is_trainable=trainable)
    return model.eval(), index
