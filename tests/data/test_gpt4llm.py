"""GPT-4-LLM comparisons."""

from raw import pairs_of, write_json

import prlhf_kit as kit
from prlhf_kit.data.dialogue import layout


def test_gpt4llm_original(tmp_path):
    rows = [
        {
            "user_input": f"Do {i}.",
            "responses_and_scores": [
                {"response": f"gpt4 {i}", "source": "gpt4", "score": 9},
                {"response": f"text {i}", "source": "davinci", "score": 7},
                {"response": f"opt {i}", "source": "OPT", "score": 7},
            ],
        }
        for i in range(10)
    ]
    data, report = kit.data.load_with_report("gpt4llm", write_json(tmp_path / "comparison_data_v2.json", rows))
    assert sum(map(len, data.values())) == 20
    assert report.table.pairs.sum() == 10  # ties
    assert all(chosen.startswith("gpt4") for split in data for _, _, chosen, _ in pairs_of(data, split))
    scored = [
        {
            "text": [
                layout([{"role": "user", "content": f"Do {i}."}], [{"role": "assistant", "content": a}])
                for a in ("good", "bad")
            ],
            "score": [1.0, 0.2],
        }
        for i in range(4)
    ]
    write_json(tmp_path / "d" / "gpt4llm.train.json", scored[:3])
    write_json(tmp_path / "d" / "gpt4llm.test.json", scored[3:])
    cleaned = kit.data.load("gpt4llm", tmp_path / "d")
    assert {split: len(rows) for split, rows in cleaned.items()} == {"train": 3, "test_seen": 1}
