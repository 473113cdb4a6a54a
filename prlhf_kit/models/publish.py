"""A personalised model on the Hugging Face hub, with a model card, and without its users' ids."""

import importlib.metadata
import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi

from prlhf_kit.models.conditioning import ATTRIBUTE
from prlhf_kit.models.embedded import EMBEDDED, ModelError
from prlhf_kit.models.hub import MADE_FROM
from prlhf_kit.models.reward_model import REWARD_FILE
from prlhf_kit.models.saving import binding, part_of_weights
from prlhf_kit.models.user_index import INDEX_FILE, UserIndex

# what loading needs, and nothing else: logs, metrics by user and checkpoints stay here
FILES = "*.safetensors *.safetensors.index.json config.json generation_config.json adapter_config.json".split()
FILES += "tokenizer* special_tokens_map.json added_tokens.json vocab.* merges.txt chat_template.jinja".split()
SETTINGS = "alpha beta loss_type learning_rate user_learning_rate num_train_epochs max_steps seed max_length".split()
SETTINGS += "per_device_train_batch_size gradient_accumulation_steps processes lr_scheduler_type warmup_steps".split()
MEASURES = ("accuracy*/test_*/*", "difference*/*")  # by split and method: names of users have no place in them


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    base: str = "",
    dataset_name: str = "",
    licence: str = "",
    record: str | Path | None = None,
    users: bool = False,
    private: bool = True,
) -> str:
    """Upload what `load_personalized(repo_id)` reads, with a model card, and return the repository's URL.

    **User ids are personal data** and are left out unless asked for: row n of the folder's `users.json` is then named
    "user-n", and of results only `MEASURES`, which are of all users together, are in the card. The rows themselves were
    fitted to single people too, so the repository is private by default. What was pushed once stays in its history.

    Args:
        folder: of a trained personalised model. Its tokenizer goes with it, `context.json` does not.
        base: hub id of the base model, where it was trained from a local folder.
        dataset_name, licence: for the card: hub id or name of the data, the licence's id on the hub ("cc-by-nc-4.0").
        record: a `run.json`, notebook 05's for instance: its metrics and the data's fingerprint are in the card.
        users: with their ids, and all results.
        private: of a repository that is new.

    Raises:
        ModelError: no personalised language model in `folder`, or a base that others can't load.
    """
    other = Path(folder, REWARD_FILE).is_file() or not Path(folder, INDEX_FILE).is_file()
    index, saved = (UserIndex([]), {}) if other else UserIndex.load(folder)
    if saved.get("user_model") is None:
        raise ModelError(
            f"{folder} holds no personalised language model. Call `hf upload OWNER/NAME {folder} --exclude users.json "
            "--exclude '*.parquet' --exclude context.json` for others: those files may have user ids."
        )
    base = base or saved["base_model"]
    if Path(base).exists() or Path(base).is_absolute() or base.count("/") > 1:
        raise ModelError(
            f"{folder} was trained from the local folder {base}: push that first, and pass its hub id as base."
        )
    known = len(index) - 1
    named = re.compile(rf"(?<![a-zA-Z0-9])({'|'.join(map(re.escape, index.user_ids))})(?![a-zA-Z0-9])")
    if not users:
        index = UserIndex([f"user-{row}" for row in range(1, len(index))])
    told = json.loads(Path(record).read_text()) if record else {}
    metrics = {
        name: value
        for name, value in told.get("metrics", {}).items()
        if users or (any(fnmatchcase(name, m) for m in MEASURES) and not named.search(name))
    }
    files: dict[str, Any] = {path.name: str(path) for pattern in FILES for path in sorted(Path(folder).glob(pattern))}
    if adapted := "adapter_config.json" in files:
        adapter = json.loads(Path(files["adapter_config.json"]).read_text()) | {"base_model_name_or_path": base}
        files["adapter_config.json"] = json.dumps(adapter, indent=1).encode()
    saved |= {"base_model": base, "binding": binding(part_of_weights(folder, ATTRIBUTE), index)}
    files[INDEX_FILE] = json.dumps({"user_ids": index.user_ids, **saved}, indent=1).encode()
    added = [CommitOperationAdd(name, content) for name, content in files.items()]  # reads them
    api = HfApi()
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    made_from = Path(folder, MADE_FROM)
    settings = json.loads(made_from.read_text()) if made_from.is_file() else {}
    print_of = told.get("provenance", {}).get("data", {}).get("fingerprint")
    kind, options = saved["user_model"], saved["options"]
    facts = {
        "base model": base,
        "data": f"{dataset_name or 'not stated'}{f', fingerprint {print_of}' if print_of else ''}",
        "users": f"{known}, `{kind}` ({', '.join(f'{name}={value}' for name, value in options.items())})",
        "trained": "a LoRA adapter and the user model" if adapted else "all weights and the user model",
        "settings": ", ".join(f"{name}={settings[name]}" for name in SETTINGS if name in settings) or "not recorded",
        "licence": f"{licence or 'not stated'}; those of the base model and of the data hold too",
    }
    head: dict[str, Any] = {"library_name": "peft" if adapted else "transformers", "tags": ["prlhf_kit", "dpo"]}
    head |= {"base_model": base} if base != EMBEDDED else {}
    head |= ({"license": licence} if licence else {}) | ({"datasets": [dataset_name]} if "/" in dataset_name else {})
    tokenizer = url.repo_id if Path(folder, "tokenizer_config.json").is_file() else base
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    results = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items() if value is not None)
    card = f"""---
{yaml.safe_dump(head)}---
# {url.repo_id.split("/")[-1]}

A language model that answers each of its users as that user prefers (P-DPO, arXiv 2402.05133), trained with
prlhf_kit {importlib.metadata.version("prlhf_kit")}.

```python
import prlhf_kit as kit

model, users = kit.load_personalized("{url.repo_id}")
prompt = [{{"role": "user", "content": "How do I make tea?"}}]
print(kit.generate(model, kit.load_tokenizer("{tokenizer}"), [prompt], users.rows(users.user_ids[:1])))
```

| | |
|---|---|
{rows}
""" + (f"\n## Results\n\n| measure | value |\n|---|---|\n{results}\n" if results else "")
    added.append(CommitOperationAdd("README.md", card.encode()))
    api.create_commit(url.repo_id, added, commit_message="Personalized model")
    return str(url)
