"""What is compared side by side: a run's models and users, and how each system answers a prompt for a user."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prlhf_kit.data.chat import prompt_text
from prlhf_kit.data.schema import message
from prlhf_kit.data.select import few_shot, unique_prompts
from prlhf_kit.data.simulated import Population
from prlhf_kit.decoding.answers import GuidedAnswer
from prlhf_kit.decoding.generate import Prompt
from prlhf_kit.decoding.guided import GuidedDecoder
from prlhf_kit.decoding.guides import PAD, Guide, ImplicitReward
from prlhf_kit.evaluation import heads
from prlhf_kit.evaluation.accuracy import TEXT, VANILLA
from prlhf_kit.files import in_chunks, short_hash
from prlhf_kit.models import embedded, hub
from prlhf_kit.models.features import embed, feature_cache, load_embedder
from prlhf_kit.models.saving import load_personalized
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.runs.stage import left_by
from prlhf_kit.training.controls import load_control
from prlhf_kit.training.new_users import Adapted, adapt, add_users
from prlhf_kit.training.persrm import load_persrm

BASE, PERSONAL, STEERED, PERSRM = "base model", "P-DPO", "PAD", "PAD, PersRM"
KNOWS = {
    BASE: "nothing; not trained here",
    VANILLA: "nothing; trained on everybody's pairs",
    PERSONAL: "soft tokens, learned from their pairs (notebook 03)",
    STEERED: "the same soft tokens, which steer the untrained base with weight w (notebook 04)",
    TEXT: "their own words, in the prompt of the base",
    PERSRM: "their own words, steering the base (notebook 04b)",
}
MANY = 12  # seen users on offer where none are named


@dataclass(frozen=True, eq=False)
class User:
    """Whom an answer is for, by the name that is shown."""

    name: str
    user_id: str | None = None  # None: the generic user
    words: str | None = None  # what they say of themselves
    fitted: int | None = None  # pairs that a new user's row was fitted to; None: they were in training


ANYONE = User("anyone (generic user)")


@dataclass(frozen=True, eq=False)
class System:
    """One way to answer.

    Args:
        guide: what steers the model that its own was trained from; `weight` 0: that model alone.
        tokenizer: of that model.
        reads: what it knows of the user: their row ("user_id"), their own "words", or nothing.
        weight: its w; None: the one that is asked for.
        top_k: candidates a token; None: the whole vocabulary. At w = 1 that is the guide's own policy.
    """

    name: str
    guide: Guide
    tokenizer: PreTrainedTokenizerBase
    reads: Literal["user_id", "words"] | None = None
    weight: float | None = None
    top_k: int | None = None

    def stream(self, prompt: Prompt, user: User, weight: float = 1.0, max_new_tokens: int = 64) -> Iterator[Any]:
        """One greedy answer as it grows: after every token a `GuidedAnswer` of all there is so far."""
        vocabulary = min(len(self.tokenizer), self.guide.model.get_input_embeddings().weight.shape[0])
        options: dict[str, Any] = {"top_k": self.top_k or vocabulary, "max_new_tokens": max_new_tokens}
        own = weight if self.weight is None else self.weight
        decoder = GuidedDecoder(None, self.tokenizer, self.guide, weight=own, **options)
        return decoder.stream(prompt, self.reads and getattr(user, self.reads))

    def ended(self, answer: GuidedAnswer, max_new_tokens: int) -> bool:
        """Whether the model ended this answer, rather than the number of tokens that it may have."""
        return len(answer.tokens) < max_new_tokens or answer.tokens[-1] == self.tokenizer.eos_token_id


Reward = Callable[[User, Prompt, str], float | None]  # of an answer, for a user; None: it does not know the user


@dataclass(frozen=True)
class Offered:
    """What a run offers for comparison."""

    systems: list[System]
    users: list[User]
    prompts: list[Prompt]
    rewards: dict[str, Reward]  # by name with its unit
    fingerprints: dict[str, str]  # model -> hash of its weights, those of P-DPO with the new user's
    data: DatasetDict


def of_run(
    run_dir: str | Path,
    model: str = embedded.EMBEDDED,
    *,
    users: Sequence[str] = (),
    systems: Sequence[str] = (),
    prompts: Sequence[str] = (),
    n_prompts: int = 6,
    k: int = 4,
    steps: int = 2,
    top_k: int = 10,
    informative: bool = False,
    seed: int = 0,
) -> Offered:
    """Load what a run's stages 01 and 03 left (and the PersRM of 04b, if it is there), adapters all on one base in
    memory. The parameters are those of notebook 07.

    Raises:
        StageError: the run lacks a stage, or a file of it was changed since.
        KeyError, ValueError: a user has no row in the model, or the run has no such system.
    """
    run_dir = Path(run_dir).resolve()
    data: Any = load_from_disk(left_by("01_data_preparation", run_dir, "data"))
    trained = left_by("03_pdpo_training", run_dir, "pdpo")
    control, persrm = trained.with_name("dpo"), run_dir / "04b_persrm" / "persrm"
    spoken = any(data["train"]["user_text"])
    there = {VANILLA: control.exists(), TEXT: spoken, PERSRM: spoken and persrm.exists()}
    has = [name for name in KNOWS if there.get(name, True)]
    if unknown := [name for name in systems if name not in has]:
        raise ValueError(f"{run_dir.name} has no system {unknown[0]!r}. It has: {', '.join(has)}.")
    names = [name for name in has if not systems or name in systems]

    tokenizer, base = hub.load_tokenizer(model), hub.load_model(model)
    hub.require_start(trained, model)
    personal, index = load_personalized(trained, twin(base))
    people = _seen(data, index, users)
    if k and "adapt_unseen" in data:
        new, index = _new(data, personal, index, tokenizer, k, steps, seed)
        people.append(new)
    words = {user.user_id: user.words for user in people if user.user_id and user.words}
    guide = PAD(personal, index, words, tokenizer=tokenizer)
    models: dict[str, Any] = {BASE: base, PERSONAL: personal}
    found = {
        BASE: System(BASE, PAD(base), tokenizer, weight=0.0),
        PERSONAL: System(PERSONAL, guide, tokenizer, "user_id", weight=1.0),
        STEERED: System(STEERED, guide, tokenizer, "user_id", top_k=top_k),
        TEXT: System(TEXT, PAD(base), tokenizer, "words", weight=1.0),
    }
    if VANILLA in names:
        models[VANILLA] = load_control(control, twin(base)).model
        models[VANILLA].reference_name = model
        found[VANILLA] = System(VANILLA, PAD(models[VANILLA], tokenizer=tokenizer), tokenizer, weight=1.0)
    if PERSRM in names:
        models[PERSRM] = load_persrm(persrm, twin(base))
        found[PERSRM] = System(PERSRM, PAD(models[PERSRM]), tokenizer, "words", top_k=top_k)

    # what PAD adds up over an answer, whoever wrote it: log pi_pers(y | p, x) - log pi_ref(y | x)
    implicit = ImplicitReward(guide, tokenizer, unfinished=True)  # answers may be cut off
    rewards: dict[str, Reward] = {
        "personal reward, nats": lambda user, prompt, text: implicit.score([prompt], [text], [user.user_id]).item()
    }
    if (truth := run_dir / "01_data_preparation" / "population.json").exists():
        population = Population.load(truth)
        rewards["true utility, SD"] = lambda user, _, text: (
            float(population.utility([user.user_id], [text])[0]) if user.user_id in population.groups else None
        )
    questions = [message("user", text) for text in prompts]
    if not questions:
        pairs = data["test_seen" if "test_seen" in data else "train"]
        questions = unique_prompts(pairs, n_prompts, seed)
        if informative:
            questions = _tell_most(data["train"], pairs, n_prompts)
    fingerprints = {name: hub.weights_hash(one) for name, one in models.items()}
    return Offered([found[name] for name in names], [*people, ANYONE], questions, rewards, fingerprints, data)


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A second model on the very same tensors, so that another adapter costs no second base in memory."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


def _seen(data: DatasetDict, index: UserIndex, wanted: Sequence[str]) -> list[User]:
    """The users `wanted`; or up to `MANY` who were trained on, the first of every group first."""
    index.rows(wanted)  # raises where one has none
    train, known = data["train"], list(index.user_ids)
    words = dict(zip(train["user_id"], train["user_text"], strict=True))
    groups = dict(zip(train["user_id"], train["group"], strict=True))
    place = pd.Series(known).groupby([str(groups.get(user)) for user in known]).cumcount()
    first = [known[i] for i in place.sort_values(kind="stable").index[:MANY]]
    return [User(user, user, words.get(user)) for user in dict.fromkeys(wanted or first)]


def _tell_most(train: Dataset, pairs: Dataset, n: int) -> list[Prompt]:
    """The prompts of the up to `n` pairs that would tell most about somebody new, under low-rank heads fitted to
    `train`."""
    sets = {"train": train, "pairs": pairs}
    features = embed(sets, [load_embedder(embedded.SENTENCES)], feature_cache())
    low_rank, difference = heads.fit("low_rank", train, features["train"]), features["pairs"].difference
    chosen = heads.most_informative(low_rank, None, difference, difference[:0], n)
    return list({prompt_text(pairs[i]["prompt"]): pairs[i]["prompt"] for i in chosen}.values())


def _new(
    data: DatasetDict, personal, index: UserIndex, tokenizer, k: int, steps: int, seed: int
) -> tuple[User, UserIndex]:
    """The first user of `adapt_unseen`, with a row in `personal` that is fitted to `k` of their pairs (once: it is kept
    in the cache), and the index with that row."""
    pairs = few_shot(data, k, seed, allow_fewer=True)
    name = min(pairs["user_id"])
    theirs = pairs.filter(lambda row: row["user_id"] == name)
    made_from = [list(theirs[column]) for column in ("prompt", "chosen", "rejected", "user_text")]
    folder = embedded.cache_dir() / "adapted" / short_hash(hub.weights_hash(personal), steps, made_from)

    def fit(_) -> np.ndarray:
        return adapt(personal, tokenizer, theirs, steps=steps).own.float().cpu().numpy()

    own = torch.from_numpy(in_chunks(fit, [name], folder, what=f"fitting {name}"))
    index = add_users(personal, index, Adapted([name], own))
    return User(f"{name} (new, {len(theirs)} pairs known)", name, theirs["user_text"][0], len(theirs)), index
