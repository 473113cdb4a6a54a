"""A few rows of every dataset in its real schema, written by hand, and files of them."""

import gzip
import json

import numpy as np
import pytest
from datasets import Dataset

from prlhf_kit.data import compred, dsp


def write_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(path)
    return path


def pairs_of(data, split="train"):
    """(user, last question, chosen, rejected) of a split."""
    return [
        (row["user_id"], row["prompt"][-1]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"])
        for row in data[split]
    ]


def comparison(number, worker, split="train", texts=("Short one.", "A much longer summary."), choice=0, policy="sup1"):
    return {
        "info": {
            "id": f"t3_{number}",
            "post": f"Post {number}.",
            "title": f"Title {number}",
            "subreddit": "tifu",
            "site": None,
            "article": None,
        },
        "summaries": [
            {"text": texts[0], "policy": policy, "note": ""},
            {"text": texts[1], "policy": "sup4_t.7", "note": ""},
        ],
        "choice": choice,
        "worker": worker,
        "batch": "batch3",
        "split": split,
        "extra": {"confidence": None},
    }


def participant(number, completed=3):
    return {
        "user_id": f"user{number}",
        "num_completed_conversations": completed,
        "self_description": f"I am {number}.",
        "system_string": "Be honest with me.",
        "age": "25-34 years old",
        "gender": "Female",
        "education": "Prefer not to say",
        "employment_status": "Student",
        "marital_status": "Single",
        "english_proficiency": "Fluent",
        "order_stated_prefs": {
            "values": 4,
            "creativity": 1,
            "fluency": 5,
            "factuality": 2,
            "diversity": 6,
            "safety": 3,
            "personalisation": 7,
            "helpfulness": 8,
            "other": None,
        },
    }


def conversation(number, user, turns=2, first="Hello", length=10):
    history = []
    for turn in range(turns):
        history.append(
            {"turn": turn, "role": "user", "content": f"{first} {number}.{turn}?", "if_chosen": None, "score": None}
        )
        for i in range(4 if turn == 0 else 2):
            history.append(
                {
                    "turn": turn,
                    "role": "model",
                    "content": f"answer {number}.{turn}.{i} " + "x" * length,
                    "if_chosen": i == 1,
                    "score": 50 + i,
                }
            )
    return {
        "conversation_id": f"c{number}",
        "user_id": user,
        "conversation_turns": turns,
        "conversation_history": history,
        "open_feedback": "",
    }


def post(number, domain, k=0, labels=0, ratio=3.0, split="train"):
    return {
        "domain": f"{domain}_{split}",
        "post_id": f"p{number}",
        "title": f"Title {number}",
        "history": f"Text {number}.",
        "c_root_id_A": "a",
        "c_root_id_B": "b",
        "created_at_utc_A": 1.0,
        "created_at_utc_B": 2.0,
        "score_A": 2,
        "score_B": 6,
        "human_ref_A": f"A{number}.{k}",
        "human_ref_B": f"B{number}.{k}",
        "labels": labels,
        "overlap_ratio": 0.0,
        "seconds_difference": 9.0,
        "score_ratio": ratio,
        "len_ratio": 1.0,
    }


def dialogue(question, answer):
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


@pytest.fixture
def tldr_rows():
    train = [comparison(i, "ann" if i < 5 else "bob" if i < 8 else "cy", choice=i % 2) for i in range(9)]
    train.append(comparison(20, "ann", policy="sup4_ppo_rm4"))
    valid = [comparison(100 + i, worker, "valid1") for i, worker in enumerate(["ann", "bob", "cy", "dee"])]
    return train, valid


@pytest.fixture
def prism_folder(tmp_path):
    people = [participant(i) for i in range(20)] + [participant(99, completed=0)]
    talks = [conversation(10 * i + k, f"user{i}") for i in range(20) for k in range(1 if i == 7 else 4)]
    talks.append(conversation(999, "user3", length=5000))
    write_lines(tmp_path / "survey.jsonl", people)
    write_lines(tmp_path / "conversations.jsonl", talks)
    return tmp_path


@pytest.fixture
def compred_folder(tmp_path):
    root = tmp_path / "allenai" / "compred"
    for f, factor in enumerate(compred.FACTORS):
        base = 1000 * f
        train = [post(base + 1, f"{factor}A", k) for k in range(9)] + [post(base + 2, f"{factor}B", labels=1)]
        train += [post(base + 3, f"{factor}A", ratio=1.5)]
        test = [post(base + 50 + i, f"{factor}{'AB'[i % 2]}", split="test") for i in range(4)]
        write_parquet(root / factor / "train_pref-00000-of-00001-ab.parquet", train)
        write_parquet(root / factor / "validation_pref-00000-of-00001-ab.parquet", test)
        write_parquet(root / factor / "test_pref-00000-of-00001-ab.parquet", test)
        asked = [
            {"rank": 1, "only_comment": False, "domain": f"{factor}A", "post_id": "x", "title": "Why?", "history": ""}
        ]
        write_parquet(root / f"{factor}_test_prompts" / "test_prompts-00000-of-00001-ab.parquet", asked)
    splits = ("train_pref", "validation_pref", "test_pref")
    configs = [
        {"config_name": f, "data_files": [{"split": s, "path": f"{f}/{s}-*"} for s in splits]} for f in compred.FACTORS
    ] + [
        {"config_name": f"{f}_test_prompts", "data_files": [{"split": "test_prompts", "path": f"{f}_test_prompts/*"}]}
        for f in compred.FACTORS
    ]
    (root / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return root


@pytest.fixture
def dsp_file(tmp_path):
    rows = [{"query": f"Question {i}?", "responses": {d: f"{d} says {i}." for d in dsp.DOMAINS}} for i in range(40)]
    return write_json(tmp_path / "domain_specific_preference.json", rows)


@pytest.fixture
def personalllm_folder(tmp_path):
    rng = np.random.default_rng(0)

    def row(i):
        return (
            {"prompt": f"Prompt {i}", "subset": "x", "prompt_id": i}
            | {f"response_{k}": f"r{k} of {i}" for k in range(1, 9)}
            | {f"response_{k}_model": "gpt" for k in range(1, 9)}
            | {
                f"response_{k}_{m}": float(s * rng.normal() + s)
                for k in range(1, 9)
                for m, s in (("gemma_2b", 1), ("beaver_7b", 100), ("llama3_sfairx", 3))
            }
        )

    root = tmp_path / "namkoong-lab" / "PersonalLLM"
    write_parquet(root / "data" / "train-00000-of-00001.parquet", [row(i) for i in range(60)])
    write_parquet(root / "data" / "test-00000-of-00001.parquet", [row(i) for i in range(60, 90)])
    return root
