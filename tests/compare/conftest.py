"""One tiny run whose systems all tests compare, and systems that say what they are told to."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from conftest import build_tiny, with_lora
from datasets import Dataset, DatasetDict

import prlhf_kit as kit
from prlhf_kit.compare import systems
from prlhf_kit.data import simulated
from prlhf_kit.data.schema import record
from prlhf_kit.decoding.answers import GuidedAnswer


@pytest.fixture(scope="package")
def run(tokenizer, tmp_path_factory):
    """A run with a tiny P-DPO model, vanilla DPO, and simulated users; and the tiny base."""
    folder = tmp_path_factory.mktemp("run")
    base = folder / "lm"
    build_tiny("llama", len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    population = simulated.population(users_per_type=2)
    ids = [user for user in population.groups if user.endswith("1")]

    def pairs(split, users):
        said = ("Yes, very much.", "No.")
        rows = [
            (u, record(f"{split}-{u}-{i}", u, f"{split} {i}?", *said, f"I am {u}.", u)) for u in users for i in "123"
        ]
        return Dataset.from_list([row for _, row in rows])

    strangers = ["casual-2", "formal-2"]
    data = DatasetDict(train=pairs("train", ids), test_seen=pairs("test", ids), adapt_unseen=pairs("adapt", strangers))
    stages = folder / "r" / "01_data_preparation", folder / "r" / "03_pdpo_training"
    data.save_to_disk(stages[0] / "data")
    population.save(stages[0] / "population.json")
    model = kit.load_model(str(base))
    table = kit.IndividualUserModel(len(ids) + 1, model.get_input_embeddings(), 3)
    with torch.no_grad():
        table.own += 0.8 * torch.randn(table.own.shape, generator=torch.Generator().manual_seed(7))
    kit.condition(model, table)
    index = kit.UserIndex(ids)
    kit.save_personalized(with_lora(model), index, stages[1] / "pdpo")
    kit.save_personalized(with_lora(kit.load_model(str(base)), seed=6), index, stages[1] / "dpo")
    return folder / "r", str(base)


@pytest.fixture(scope="package")
def offered(run, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRLHF_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield systems.of_run(*run, k=2, steps=1, n_prompts=3)


@contextmanager
def serving(run, *options, stderr=None, **environment):
    """`prlhf app` in a process of its own; yields it and its address. Pages in a browser are closed before it ends,
    else they report that."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "JUPYTER_TOKEN": "", "PYTHONWARNINGS": "default"} | environment
    line = [sys.executable, "-m", "prlhf_kit.cli", "app", str(run), "--no-browser", *map(str, options)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=stderr, text=True, env=env) as server:
        try:
            yield server, server.stdout.readline().strip()
        finally:  # so that it takes its private folder away
            server.terminate()
            try:
                assert server.wait(30) == 0
            except subprocess.TimeoutExpired:
                server.kill()


def votes_in(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


class Says:
    """A system that says what it is told to: for what a tiny model can't be made to do."""

    reads, weight, top_k = None, 0.0, None

    def __init__(self, name, text, tokenizer, error=None, each=lambda n: None, ends=True):
        self.name, self.text, self.tokenizer = name, text, tokenizer
        self.error, self.each, self.ends, self.asked = error, each, ends, []

    def stream(self, prompt, user, weight, max_new_tokens):
        self.asked.append(prompt)
        tokens = self.tokenizer(self.text)["input_ids"]
        for n in range(1, len(tokens) + 1):
            if self.error and n > 2:
                raise self.error
            yield answered(self.tokenizer, tokens[:n], tokens[:n])
            self.each(n)

    def ended(self, answer, max_new_tokens):
        return self.ends


def answered(tokenizer, tokens, base_tokens, rewards=None, base_rewards=None):
    """An answer of these tokens."""
    some = [0.0] * len(tokens)
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return GuidedAnswer(text, tokens, base_tokens, some, some, rewards or some, base_rewards or some)
