"""Personalised models on disk: an adapter or a whole model, the user model, and `users.json` beside them."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from prlhf_kit.files import write_json
from prlhf_kit.models.conditioning import ATTRIBUTE, ConditioningError, causal_lm, condition, user_models
from prlhf_kit.models.embedded import ModelError
from prlhf_kit.models.hub import downloaded, load_model, name_of, require_start, without_load_report
from prlhf_kit.models.tokenize import TOKENIZER
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.models.user_models import USER_MODELS, ClusterUserModel, IndividualUserModel, UserModel

WEIGHTS = "adapter_model.safetensors"


@contextlib.contextmanager
def reference_of(model) -> Iterator[PreTrainedModel | PeftModel]:
    """The model that `model` was trained from, not personalised: without its adapter, or, where the whole model was
    trained, loaded again by its name (once)."""
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield model
    else:
        yield reference_model(model)


def reference_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model that `model`, all of whose weights were trained, started from: loaded by its name (once)."""
    kept = model.__dict__  # not an attribute, which would make the reference a part of the model
    if "_reference" not in kept:
        kept["_reference"] = load_model(reference_name(model), model.dtype, str(model.device))
    return kept["_reference"]


def reference_name(model: PreTrainedModel) -> str:
    """Hub id, folder or short name of the model that a causal LM was trained from."""
    return getattr(model, "reference_name", None) or name_of(model)


def save_personalized(model, index: UserIndex, folder: str | Path) -> None:
    """Write what `load_personalized` reads: the adapter (or the whole model) with the user model, and `users.json`."""
    model.save_pretrained(str(folder))
    name_base(folder, model)
    save_index(model, index, folder)


def name_base(folder: str | Path, model: PreTrainedModel | PeftModel) -> None:
    """Let the adapter in `folder`, if there is one, name its base as the kit does: the embedded model by its short
    name; or the folder of the adapter that was merged into it, of which PEFT knows nothing."""
    file = Path(folder, "adapter_config.json")
    if file.is_file():
        write_json(file, json.loads(file.read_text()) | {"base_model_name_or_path": name_of(causal_lm(model))})
        card = Path(folder, "README.md")
        if card.is_file() and "[More Information Needed]" in card.read_text():  # PEFT's, which says nothing
            card.unlink()


def part_of_weights(folder: str | Path, name: str) -> dict[str, Any]:
    """The state of the module `name` in the folder of a model or adapter."""
    found: dict[str, Any] = {}
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118  (not a dict)
                own = key.removeprefix("base_model.model.")  # PEFT's
                if own.startswith(f"{name}."):
                    found[own.removeprefix(f"{name}.")] = weights.get_tensor(key)
    return found


def save_index(model, index: UserIndex, folder: str | Path) -> None:
    """Write `users.json` beside the weights in `folder`, to which it is bound: the users' rows, the model that was
    trained, and how to build the user model again. (`user_model` null: a vanilla model, without users.)"""
    user_model = next(iter(user_models(model)), None)
    index.save(
        folder,
        base_model=reference_name(causal_lm(model)),
        user_model=None if user_model is None else type(user_model).__name__,
        options=None if user_model is None else user_model.options(),
        tokenizer=getattr(causal_lm(model), TOKENIZER, None),
        binding=None if user_model is None else binding(part_of_weights(folder, ATTRIBUTE), index),
    )


def binding(state: Mapping[str, torch.Tensor], index: UserIndex) -> str:
    """Hash of who has which row and of the user model's weights."""
    digest = hashlib.sha256(json.dumps(index.user_ids).encode())
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def import_prlhf(
    folder: str | Path,
    out: str | Path,
    base: str = "",
    user_ids: Sequence[str] | None = None,
    num_tokens: int = 10,
    add_generic_user: bool = True,
    user_text: bool = False,
) -> UserIndex:
    """Write into `out` what `load_personalized` reads, from an adapter that P-RLHF's own trainer wrote (github.com/
    HumainLab/Personalized_RLHF: LoRA, and its tables of users or clusters, whole); its user tokens stay after BOS.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        base: the model it was trained on; "": as the adapter names it.
        user_ids: of the rows from 1 on. None: their numbers, "1" to "n".
        num_tokens, add_generic_user, user_text: `n_user_tokens`, `add_generic_user` and `add_textual_info` there.

    Raises `ModelError` where the tables are missing or their sizes go with other arguments.
    """
    kept = load_file(Path(folder, WEIGHTS))
    found = {key.split(".")[-2]: kept.pop(key).float() for key in [*kept] if f".{ATTRIBUTE}." in key}
    weights = found.get("user_weight")  # [n + 1, K]
    table = found.get("user_embedding" if weights is None else "cluster_embedding", torch.zeros(0, 1))
    rows = len(table) / num_tokens  # table: [rows * T_u, d], of users or clusters
    users = rows if weights is None else len(weights)
    index = UserIndex([str(row) for row in range(1, int(users))] if user_ids is None else user_ids)
    if users != len(index) or rows != (users if weights is None else weights.shape[1]):
        shapes = {name: list(one.shape) for name, one in found.items()}
        raise ModelError(
            f"{folder} has the tables {shapes}, expected user_embedding [{len(index)} * {num_tokens}, d], or "
            f"user_weight [{len(index)}, K] and cluster_embedding [K * {num_tokens}, d]. Check user_ids and num_tokens."
        )
    options: dict[str, Any] = {"num_tokens": num_tokens, "after_bos": True, "user_text": user_text and "authors"}
    table = table.unflatten(0, (-1, num_tokens))
    if weights is None:
        kind: type[UserModel] = IndividualUserModel
        state = {"own": table}
        options["add_generic_user"] = add_generic_user
        if add_generic_user:  # row 0 is a part of every user
            state["generic"] = table[0].clone()
            table[0] = 0
    else:
        kind = ClusterUserModel
        state = {"own": weights / ClusterUserModel.SCALE, "centres": table}
        options["clusters"] = len(table)
    config = json.loads(Path(folder, "adapter_config.json").read_text())
    config |= {"modules_to_save": [ATTRIBUTE], "base_model_name_or_path": base or config["base_model_name_or_path"]}
    Path(out).mkdir(parents=True, exist_ok=True)
    kept |= {f"base_model.model.{ATTRIBUTE}.{key}": value for key, value in state.items()}
    save_file(kept, Path(out, WEIGHTS))
    write_json(Path(out, "adapter_config.json"), config)
    known = {"user_model": kind.__name__, "options": options, "tokenizer": None, "binding": binding(state, index)}
    index.save(out, base_model=config["base_model_name_or_path"], **known)
    return index


def condition_as_saved(model: PreTrainedModel, folder: str | Path, index: UserIndex, saved: dict[str, Any]) -> None:
    """Condition `model` on a user model of the class in `users.json` (`saved`), with a whole model's weights. Raises
    `ConditioningError` where that class is not in `USER_MODELS`, and `ModelError` where `users.json` is not of the user
    model in `folder`."""
    state = part_of_weights(folder, ATTRIBUTE)
    if saved.get("binding") not in (None, binding(state, index)):
        raise ModelError(
            f"{folder}: users.json does not belong to the user model beside it. Put it back as training wrote it."
        )
    kinds = {kind.__name__: kind for kind in USER_MODELS.values()}
    if saved["user_model"] not in kinds:
        raise ConditioningError(
            f"{folder} was trained with user_model={saved['user_model']}(...). Put that class into USER_MODELS first."
        )
    user_model: Any = kinds[saved["user_model"]]
    condition(model, user_model(len(index), model.get_input_embeddings(), **saved["options"]))
    setattr(model, TOKENIZER, saved.get("tokenizer"))
    if not Path(folder, "adapter_config.json").exists():  # PEFT reads an adapter's
        getattr(model, ATTRIBUTE).load_state_dict(state)


def load_personalized(
    folder: str | Path, base: str | PreTrainedModel | None = None
) -> tuple[PreTrainedModel | PeftModel, UserIndex]:
    """Load what `PersonalizedDPOTrainer.save_model` wrote: the adapter (or the model), the user model, the user index.

    Args:
        folder: or the name of a repository on the hub, `"owner/name"` (`push_to_hub`).
        base: base model (a name, or a loaded model that is not conditioned yet); default: the one it was trained on.
            Of a fully fine-tuned model, the reference.

    Raises:
        ConditioningError: there is no user model in `folder`, or it is of no class in `USER_MODELS`.
        ModelError: `users.json` belongs to other weights.
    """
    folder = downloaded(folder)
    whole = not Path(folder, "adapter_config.json").exists()
    if not whole and list(Path(folder).glob("model*.safetensors")):
        raise ConditioningError(f"{folder} holds an adapter and a whole model, of two trainings. Delete the older one.")
    index, saved = UserIndex.load(folder)
    if saved["user_model"] is None:
        raise ConditioningError(
            f"{folder} holds a model without users. Load it with prlhf_kit.training.controls.load_control."
        )
    if not isinstance(base, PreTrainedModel):
        require_start(folder, base or saved["base_model"])
    if whole:
        with without_load_report():  # transformers does not know the users
            model = load_model(str(folder))
    else:
        model = base if isinstance(base, PreTrainedModel) else load_model(base or saved["base_model"])
    condition_as_saved(model, folder, index, saved)
    if whole:
        model.reference_name = name_of(base) if isinstance(base, PreTrainedModel) else (base or saved["base_model"])
    else:
        model = PeftModel.from_pretrained(model, folder)
    return model.eval(), index
