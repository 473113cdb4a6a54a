"""What is compared side by side: a run's models and users, and how each system answers a prompt for a user."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import DatasetDict, load_from_disk
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prlhf_kit.compare.people import ANYONE, User, add_new, seen
from prlhf_kit.data.schema import message
from prlhf_kit.data.select import unique_prompts
from prlhf_kit.data.simulated import Population
from prlhf_kit.decoding.answers import GuidedAnswer
from prlhf_kit.decoding.generate import DecodingError, Prompt, eos_ids
from prlhf_kit.decoding.guided import GuidedDecoder
from prlhf_kit.decoding.guides import PAD, Guide, Who, start_of
from prlhf_kit.decoding.implicit import ImplicitReward
from prlhf_kit.evaluation.accuracy import TEXT
from prlhf_kit.models import embedded, hub
from prlhf_kit.models.conditioning import causal_lm
from prlhf_kit.models.saving import load_personalized
from prlhf_kit.runs.stage import StageError
from prlhf_kit.training.controls import LABELS, load_control
from prlhf_kit.training.persrm import load_persrm

BASE, PERSONAL, STEERED, PERSRM = "base model", "P-DPO", "PAD", "PAD, PersRM"
VANILLA = LABELS["dpo"]
NAMES = (BASE, VANILLA, PERSONAL, STEERED, TEXT, PERSRM)


@dataclass(frozen=True, eq=False)
class System:
    """One way to answer.

    Args:
        name: as shown.
        guide: what steers the model that its own was trained from; `weight` 0: that model alone.
        tokenizer: of that model.
        reads: what it is told of the user: their row ("user"), their own "words", or "nothing".
        weight: its w; None: the one that is asked for.
        top_k: candidates a step; None: the whole vocabulary. At w = 1 that is the guide's own policy.
    """

    name: str
    guide: Guide
    tokenizer: PreTrainedTokenizerBase
    reads: Literal["user", "words", "nothing"] = "nothing"
    weight: float | None = None
    top_k: int | None = None

    @property
    def by_user(self) -> bool:
        """Whether its answers depend on the user."""
        return self.reads != "nothing"

    def stream(
        self,
        prompt: Prompt,
        user: User,
        weight: float = 1.0,
        stop: threading.Event | None = None,
        max_new_tokens: int = 64,
    ) -> Iterator[GuidedAnswer]:
        """One greedy answer as it grows: after every token all there is so far, until it ends or `stop` is set.

        Raises:
            DecodingError: an empty prompt, one beyond the context, or a user of whom it knows nothing.
        """
        sizes = [len(self.tokenizer), self.guide.model.get_input_embeddings().weight.shape[0]]
        decoder = GuidedDecoder(
            None,
            self.tokenizer,
            self.guide,
            weight=weight if self.weight is None else self.weight,
            top_k=self.top_k or min(sizes),
            max_new_tokens=max_new_tokens,
        )
        for draft in decoder.stream(prompt, self._who(user)):
            yield draft
            if stop is not None and stop.is_set():
                return

    def ended(self, tokens: Sequence[int]) -> bool:
        """Whether the model ended this answer, rather than the number of tokens that it may have."""
        base = start_of(self.guide.model, 0, ()).model
        return bool(tokens) and tokens[-1] in eos_ids(causal_lm(base), self.tokenizer)

    def knows(self, user: User) -> bool:
        """Whether it has what it goes by: only a user's own words may be missing."""
        return self.reads != "words" or bool(user.words)

    def _who(self, user: User) -> Who:
        if not self.knows(user):
            raise DecodingError(
                f"{user.name} says nothing of themselves (no user_text), so {self.name!r} has nothing to go by."
            )
        return {"user": user.user_id, "words": user.words, "nothing": None}[self.reads]


Reward = Callable[[User, Prompt, str], float | None]  # of an answer, for a user; None: it does not know the user


@dataclass(frozen=True)
class Compared:
    """What a run offers for comparison.

    Args:
        rewards: name with its unit -> reward of an answer.
        fingerprints: model -> hash of its weights, those of P-DPO with the new user's.
    """

    systems: list[System]
    users: list[User]
    prompts: list[Prompt]
    rewards: dict[str, Reward]
    fingerprints: dict[str, str]
    data: DatasetDict


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A second model on the very same tensors, so that another adapter costs no second base in memory."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


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
    seed: int = 0,
) -> Compared:
    """Load what a run's stages 01 and 03 left (and the PersRM of 04, if it is there), all on one base in memory.

    Args:
        model: the base model that notebook 03 trained on.
        users: seen users on offer; none: up to `MANY` of them, those of different groups first.
        systems: some of `NAMES`; none: all that the run has.
        prompts: texts on offer; none: `n_prompts` test prompts, drawn by `seed`.
        k: known pairs of the new user, one of those who were never in training; 0: no such user.
        steps: of Adam when that user is fitted; 0 chooses the nearest known user. Fitted once, then kept in the cache.
        top_k: candidates a step of PAD.

    Raises:
        StageError: the run lacks a stage.
        ValueError: a user has no row in the model, or the run has no such system.
    """
    if unknown := [name for name in systems if name not in NAMES]:
        raise ValueError(f"there is no system {unknown[0]!r}. Expected some of: {', '.join(NAMES)}.")
    run_dir = Path(run_dir).resolve()
    data: Any = load_from_disk(_left(run_dir, "01_data_preparation", "data"))
    trained = _left(run_dir, "03_pdpo_training", "pdpo")
    tokenizer, base = hub.load_tokenizer(model), hub.load_model(model)
    personal, index = load_personalized(trained, twin(base) if _adapter(trained) else model)
    _share(personal, base)
    people = seen(data, index, users)
    if k and "adapt_unseen" in data:
        new, index = add_new(data, personal, index, tokenizer, k, steps, seed)
        people.append(new)
    fingerprints = {BASE: hub.weights_hash(base), PERSONAL: hub.weights_hash(personal)}  # the new user's row, too
    words = {user.user_id: user.words for user in people if user.user_id and user.words}
    guide = PAD(personal, index, words)
    found = [System(BASE, PAD(base), tokenizer, weight=0.0)]
    control, persrm = run_dir / "03_pdpo_training" / "dpo", run_dir / "04_pad_decoding" / "persrm"
    if control.exists() and (not systems or VANILLA in systems):
        vanilla = _vanilla(control, base, model)
        fingerprints[VANILLA] = hub.weights_hash(vanilla)
        found.append(System(VANILLA, PAD(vanilla), tokenizer, weight=1.0))
    found.append(System(PERSONAL, guide, tokenizer, "user", weight=1.0))
    found.append(System(STEERED, guide, tokenizer, "user", top_k=top_k))
    if words:
        found.append(System(TEXT, PAD(base), tokenizer, "words", weight=1.0))
        if persrm.exists() and (not systems or PERSRM in systems):
            steering = load_persrm(persrm, twin(base))
            fingerprints[PERSRM] = hub.weights_hash(steering)
            found.append(System(PERSRM, PAD(steering), tokenizer, "words", top_k=top_k))
    offered = [system.name for system in found]
    if missing := [name for name in systems if name not in offered]:
        raise ValueError(f"{run_dir.name} has no {missing[0]!r}, only {', '.join(offered)}.")
    rewards = {"personal reward, nats": personal_reward(guide, tokenizer)}
    if (population := run_dir / "01_data_preparation" / "population.json").exists():
        rewards["true utility, SD"] = true_utility(Population.load(population))
    asked = [message("user", text) for text in prompts]
    return Compared(
        [system for system in found if not systems or system.name in systems],
        [*people, ANYONE],
        asked or unique_prompts(data["test_seen" if "test_seen" in data else "train"], n_prompts, seed),
        rewards,
        fingerprints,
        data,
    )


def _vanilla(folder: Path, base: PreTrainedModel, model: str):
    """Vanilla DPO's model, whose reference is `base`."""
    if _adapter(folder):
        return PeftModel.from_pretrained(twin(base), folder).eval()
    whole = load_control(folder, model).model
    whole.reference_name = model
    _share(whole, base)
    return whole


def personal_reward(guide: PAD, tokenizer: PreTrainedTokenizerBase) -> Reward:
    """What PAD adds up over an answer, whoever wrote it: log pi_pers(y | p, x) - log pi_ref(y | x), in nats."""
    reward = ImplicitReward(guide, tokenizer, unfinished=True)  # answers may be cut off
    return lambda user, prompt, answer: reward.score([prompt], [answer], [user.user_id]).item()


def true_utility(people: Population) -> Reward:
    """What simulated users truly like, in standard deviations of the attributes."""

    def utility(user: User, prompt: Prompt, answer: str) -> float | None:
        return float(people.utility([user.user_id], [answer])[0]) if user.user_id in people.user_ids else None

    return utility


def _left(run_dir: Path, stage: str, name: str) -> Path:
    path = run_dir / stage / name
    if not path.exists():
        raise StageError(
            f"{path} is missing: it is written by notebook {stage}. Run that first (`prlhf run notebooks/{stage}.ipynb "
            f"--run {run_dir.name}`), or choose a run that has it."
        )
    return path


def _adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists()


def _share(trained, base: PreTrainedModel) -> None:
    """Where all weights were trained, the reference is this base, not a copy (`saving.reference_model`)."""
    if not isinstance(trained, PeftModel):
        vars(trained)["_reference"] = base
