"""A few rows of every dataset, written by hand with the columns that are read, and files of them."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

import prlhf_kit as kit
from prlhf_kit.data import compred, dsp
from prlhf_kit.data.schema import SPLITS


def write(path, rows):
    """Rows in a file of the kind that its name says, ".jsonl" if it says none of the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def sizes(data):
    """Pairs of each of the four splits."""
    return [len(data[split]) if split in data else 0 for split in SPLITS]


def pairs_of(data, split="train"):
    """(user, last question, chosen, rejected) of a split."""
    return [
        (row["user_id"], row["prompt"][-1]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"])
        for row in data[split]
    ]


TEXTS = ("Short one.", "A much longer summary.")


def comparison(number, worker, split="train", texts=TEXTS, choice=0, policies=("sup1", "sup4")):
    info = {"post": f"Post {number}.", "title": f"Title {number}", "subreddit": "tifu", "article": None}
    summaries = [{"text": text, "policy": name} for text, name in zip(texts, policies, strict=True)]
    return {"info": info, "summaries": summaries, "choice": choice, "worker": worker, "split": split}


def participant(number, completed=3):
    said = {"self_description": f"I am {number}.", "system_string": "Be honest with me."}
    facts = {"age": "25-34 years old", "gender": "Female", "education": "Prefer not to say"}
    facts |= {"employment_status": "Student", "marital_status": "Single", "english_proficiency": "Fluent"}
    ranks = {"values": 4, "creativity": 1, "fluency": 5, "factuality": 2, "diversity": 6, "safety": 3, "other": None}
    own = {"user_id": f"user{number}", "num_completed_conversations": completed, "order_stated_prefs": ranks}
    return own | said | facts


def conversation(number, user, turns=2, length=10):
    history = []
    for turn in range(turns):
        history.append({"turn": turn, "role": "user", "content": f"Hello {number}.{turn}?", "if_chosen": None})
        for i in range(4 if turn == 0 else 2):
            text = f"answer {number}.{turn}.{i} " + "x" * length
            history.append({"turn": turn, "role": "model", "content": text, "if_chosen": i == 1})
    return {"conversation_id": f"c{number}", "user_id": user, "conversation_history": history}


def post(number, domain, k=0, labels=0, ratio=3.0, split="train"):
    about = {"domain": f"{domain}_{split}", "post_id": f"p{number}", "title": f"Title {number}"}
    comments = {"human_ref_A": f"A{number}.{k}", "human_ref_B": f"B{number}.{k}", "labels": labels}
    return about | comments | {"history": f"Text {number}.", "score_ratio": ratio}


def refused(reason, *args, **options):
    """`kit.data.load` of these arguments is refused for a reason (a regular expression)."""
    with pytest.raises(kit.data.SchemaError, match=reason):
        kit.data.load(*args, **options)


def dialogue(question, answer):
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def write_configs(root, configs):
    """As a repository of the hub says where its configurations lie."""
    (root / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return root


@pytest.fixture
def tldr_folder(tmp_path):
    root = tmp_path / "openai" / "summarize_from_feedback"
    train = [comparison(i, "ann" if i < 5 else "bob" if i < 8 else "cy", choice=i % 2) for i in range(9)]
    train.append(comparison(20, "ann", policies=("sup4_ppo_rm4", "sup1")))
    valid = [comparison(100 + i, worker, "valid1") for i, worker in enumerate(["ann", "bob", "cy", "dee"])]
    for split, rows in (("train", train), ("validation", valid)):
        write(root / "comparisons" / split / "0000.parquet", rows)
    return root


@pytest.fixture
def prism_folder(tmp_path):
    root = tmp_path / "HannahRoseKirk" / "prism-alignment"
    talks = [conversation(10 * i + k, f"user{i}") for i in range(20) for k in range(1 if i == 7 else 4)]
    write(root / "survey.jsonl", [participant(i) for i in range(20)] + [participant(99, completed=0)])
    write(root / "conversations.jsonl", [*talks, conversation(999, "user3", length=5000)])
    configs = ("survey", "conversations")
    return write_configs(root, [{"config_name": config, "data_files": f"{config}.jsonl"} for config in configs])


@pytest.fixture
def compred_folder(tmp_path):
    root, splits, configs = tmp_path / "allenai" / "compred", ("train_pref", "validation_pref", "test_pref"), []
    for f, factor in enumerate(compred.FACTORS):
        base = 1000 * f
        train = [post(base + 1, f"{factor}A", k) for k in range(9)] + [post(base + 2, f"{factor}B", labels=1)]
        train += [post(base + 3, f"{factor}A", ratio=1.5)]
        test = [post(base + 50 + i, f"{factor}{'AB'[i % 2]}", split="test") for i in range(4)]
        for split, rows in zip(splits, (train, test, test), strict=True):
            write(root / factor / f"{split}-00000-of-00001-ab.parquet", rows)
        files = [{"split": split, "path": f"{factor}/{split}-*"} for split in splits]
        configs.append({"config_name": factor, "data_files": files})
    return write_configs(root, configs)


@pytest.fixture
def dsp_file(tmp_path):
    rows = [{"query": f"Question {i}?", "responses": {d: f"{d} says {i}." for d in dsp.DOMAINS}} for i in range(40)]
    return write(tmp_path / "domain_specific_preference.json", rows)


@pytest.fixture
def personalllm_folder(tmp_path):
    rng = np.random.default_rng(0)

    def row(i):
        answers = {f"response_{k}": f"r{k} of {i}" for k in range(1, 9)} | {"response_1_model": "gpt"}
        return (
            {"prompt": f"Prompt {i}"}
            | answers
            | {
                f"response_{k}_{model}": float(scale * rng.normal() + scale)
                for k in range(1, 9)
                for model, scale in (("gemma_2b", 1), ("beaver_7b", 100), ("llama3_sfairx", 3))
            }
        )

    root = tmp_path / "namkoong-lab" / "PersonalLLM"
    write(root / "data" / "train-00000-of-00001.parquet", [row(i) for i in range(60)])
    write(root / "data" / "test-00000-of-00001.parquet", [row(i) for i in range(60, 90)])
    return root
