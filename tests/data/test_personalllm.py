"""PersonalLLM: users' true utilities by hand."""

import numpy as np
import pandas as pd
from datasets import Dataset
from raw import pairs_of, refused, sizes, write

import prlhf_kit as kit
from prlhf_kit.data import personalllm


def test_a_missing_score_is_left_out_of_personalllm(personalllm_folder):
    options = {"users": 5, "pairs_per_user": 59, "test_pairs_per_user": 5}
    file = personalllm_folder / "data" / "train-00000-of-00001.parquet"
    rows = Dataset.from_parquet(str(file)).to_list()
    rows[7]["response_3_gemma_2b"] = None
    write(file, rows)
    data, report = kit.data.load_with_report("personalllm", personalllm_folder, **options)
    assert not any(pair[1] == "Prompt 7" for pair in pairs_of(data))
    assert report.table.reason.tolist() == ["prompt without all of its scores"]


def test_personalllm_truth(personalllm_folder):
    options = {"users": 10, "pairs_per_user": 20, "test_pairs_per_user": 10}
    data, report = kit.data.load_with_report("personalllm", personalllm_folder, **options)
    assert sizes(data) == [160, 80, 20, 40]
    assert report.counts["reward models"] == 3
    train = pd.read_parquet(personalllm_folder / "data" / "train-00000-of-00001.parquet").set_index("prompt")
    models = ["beaver_7b", "gemma_2b", "llama3_sfairx"]
    scores = np.array([[train[f"response_{k}_{m}"] for k in range(1, 9)] for m in models])  # [models, 8, prompts]
    scores = (scores - scores.mean((1, 2), keepdims=True)) / scores.std((1, 2), keepdims=True)
    truth = personalllm.weights(models, 10)
    assert np.allclose(truth.sum(axis=1), 1)
    for user, prompt, chosen, rejected in pairs_of(data):  # utility by hand
        at = train.index.get_loc(prompt)
        utility = truth.loc[user].to_numpy() @ scores[:, :, at]
        assert utility[int(chosen[1]) - 1] > utility[int(rejected[1]) - 1]
    refused("61 pairs a user, but the train split has 60", "personalllm", personalllm_folder, pairs_per_user=61)
