"""PAD's personalised reward model (PersRM; Chen et al. 2025, arXiv 2410.04070, Eq. 9): a policy that reads a preference
in words, trained by DPO in two stages: the backbone (LoRA) while the preference head stays the identity, then the head.
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from prlhf_kit.data import fingerprint
from prlhf_kit.data.chat import tell
from prlhf_kit.data.collect import changed
from prlhf_kit.files import sha256, short_hash, write_json
from prlhf_kit.models.embedded import ModelError
from prlhf_kit.models.hub import load_model, load_tokenizer, weights_hash
from prlhf_kit.models.logprobs import require_lengths, save_with_reference
from prlhf_kit.models.preference_head import HEAD, attach_head
from prlhf_kit.models.saving import WEIGHTS
from prlhf_kit.training.config import PersonalizedDPOConfig
from prlhf_kit.training.controls import require_user_text
from prlhf_kit.training.launch import load_base
from prlhf_kit.training.pdpo import FROZEN_BASE, PersonalizedDPOTrainer
from prlhf_kit.training.presets import preset
from prlhf_kit.training.resume import fit
from prlhf_kit.training.sft import without_reference

PERSRM_FILE = "persrm.json"
VALUE_HEADS = ("value_head.safetensors", "value_head.bin")  # of LLaMA-Factory, with which PAD's authors trained
WORDING = "Write for one reader, and follow what this reader asks of every answer: {}"
# where the authors' release puts a principle: in front of the user's own text
RELEASED = (
    "[Guidelines] Your task is to generate response by considering the following principle. "
    "[Principles] {} [Instruction] {prompt}"
)


@dataclass(frozen=True)
class PersRMRecipe:
    """What is trained, and where it goes. Defaults are the presets `pad_stage1` and `pad_stage2`."""

    model: str  # base model, as `load_model` takes it
    out: str  # folder of the trained PersRM; stages and checkpoints lie beside it, in `<out>-stages`
    # how preferences are put into the prompt: as its system message, or, ending with {prompt}, as `RELEASED`
    wording: str = WORDING
    # arguments of `PersonalizedDPOConfig` in the two stages, and of PEFT's `LoraConfig`
    backbone: dict[str, Any] = field(default_factory=lambda: preset("pad_stage1")["settings"])
    head: dict[str, Any] = field(default_factory=lambda: preset("pad_stage2")["settings"])
    adapter: dict[str, Any] = field(default_factory=lambda: preset("pad_stage1")["adapter"])

    def __post_init__(self):
        if self.wording.count("{}") != 1 or "{prompt}" in self.wording.removesuffix("{prompt}"):
            expected = "a text with one {}, where the preference goes; {prompt} may stand at its end (see RELEASED)"
            raise ValueError(f"wording={self.wording!r}: expected {expected}.")


def with_preference(pairs: Dataset, wording: str = WORDING) -> Dataset:
    """`pairs` with each pair's `user_text` in its prompt, as a PersRM reads it."""
    if not len(pairs):
        raise ValueError("there are no pairs to train on. See what was filtered out (length, users without user_text).")
    require_user_text(pairs)
    return changed(pairs, lambda row: {"prompt": tell(row["prompt"], row["user_text"], wording)})


def train_persrm(recipe: PersRMRecipe, pairs: Dataset) -> dict[str, pd.DataFrame]:
    """Train both stages on pairs with `user_text` to the end, or resume, write the PersRM into `recipe.out`, and return
    the logs of the stages "backbone" and "head"."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RuntimeError("train_persrm runs in one process, but several were started. Leave accelerate launch out.")
    told = with_preference(pairs, recipe.wording)
    stages = Path(f"{recipe.out}-stages")
    settings = {"use_cpu": not torch.accelerator.is_available(), "personalized": False}
    backbone, head = (
        PersonalizedDPOConfig(**{"output_dir": str(stages / f"{name}-checkpoints"), **settings, **own})
        for name, own in (("backbone", recipe.backbone), ("head", recipe.head))
    )
    tokenizer = load_tokenizer(recipe.model)
    pairs = without_reference(pairs)
    made_from = short_hash(fingerprint(DatasetDict(train=pairs)))
    for args in (backbone, head):
        require_lengths(tokenizer, told, args.max_length)

    def with_reference(name: str, model) -> Dataset:
        """The pairs with the preference in their prompts, and the log-probs of `model`, which does not see it."""
        folder = stages / f"pairs-{name}-{short_hash(made_from, weights_hash(model))}"
        return with_preference(save_with_reference(pairs, model, tokenizer, folder), recipe.wording)

    # The reference does not see the preference, as in decoding (Eq. 13): in stage 1 it is the model before training, in
    # stage 2 the stage-1 backbone without head. (The paper does not say which; its code is not published.)
    model: Any = attach_head(load_base(recipe.model))
    told = with_reference("backbone", model)
    adapter = LoraConfig(**{**recipe.adapter, "modules_to_save": [HEAD]})
    trainer = PersonalizedDPOTrainer(model, backbone, told, None, tokenizer, None, adapter)
    for name, parameter in trainer.model.named_parameters():
        if HEAD in name:  # the identity, in this stage
            parameter.requires_grad = False
    logs = {"backbone": fit(trainer, stages / "backbone")}
    # the backbone, frozen and merged, is the reference of the head
    model = PeftModel.from_pretrained(attach_head(load_base(recipe.model)), stages / "backbone")
    model = model.merge_and_unload()
    model.starts_from = sha256(stages / "backbone" / WEIGHTS)  # tells trainings apart (`fit`)
    told = with_reference("head", model)
    adapter = LoraConfig(target_modules=FROZEN_BASE.target_modules, modules_to_save=[HEAD])
    logs["head"] = fit(PersonalizedDPOTrainer(model, head, told, None, tokenizer, None, adapter), stages / "head")
    # stage 1's adapter with stage 2's head
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(stages / "backbone" / "adapter_config.json", out)
    trained = {name: value for name, value in load_file(stages / "head" / WEIGHTS).items() if HEAD in name}
    save_file(load_file(stages / "backbone" / WEIGHTS) | trained, out / WEIGHTS)
    # last, so that a folder with it is complete
    write_json(out / PERSRM_FILE, {"base_model": recipe.model, "wording": recipe.wording})
    return logs


def load_persrm(folder: str | Path, base=None) -> PeftModel | PreTrainedModel:
    """A trained PersRM, for `PAD(model)`: one of `train_persrm`, or one as the authors released theirs, a merged model
    with LLaMA-Factory's value head beside it, which is told preferences by `RELEASED`.

    Args:
        base: the model below the head, by name or loaded without a head (in bfloat16, say), instead of the one that the
            folder names or is.

    Raises:
        ModelError: `folder` holds none.
    """
    folder = Path(folder)
    value_head = next((folder / name for name in VALUE_HEADS if (folder / name).is_file()), None)
    if value_head is None:
        whole = all((folder / name).is_file() for name in (PERSRM_FILE, WEIGHTS))
        if not whole or sum(HEAD in name for name in load_file(folder / WEIGHTS)) != 2:
            raise ModelError(
                f"{folder} holds no whole PersRM: expected {PERSRM_FILE} and, in {WEIGHTS}, a preference head, or a "
                f"merged model with {' or '.join(VALUE_HEADS)}. Copy all that train_persrm wrote, or train again."
            )
        saved = json.loads((folder / PERSRM_FILE).read_text())
    else:
        saved = {"base_model": str(folder), "wording": RELEASED}
    if base is None or isinstance(base, str):
        base = load_model(base or saved["base_model"])
    base = attach_head(base)
    base.wording = saved["wording"]
    if value_head is None:
        return PeftModel.from_pretrained(base, folder).eval()
    found = load_file(value_head) if value_head.suffix != ".bin" else torch.load(value_head, "cpu", weights_only=True)
    found = {name.removeprefix("v_head.summary."): value for name, value in found.items()}
    head = getattr(base, HEAD)
    shapes, wanted = ({name: tuple(value.shape) for name, value in s.items()} for s in (found, head.state_dict()))
    if shapes != wanted:  # one output only: an ordinary reward model's
        raise ModelError(f"{value_head} has {shapes}, expected v_head.summary of {wanted}, as in PAD's release.")
    head.load_state_dict(found)
    return base.eval()
