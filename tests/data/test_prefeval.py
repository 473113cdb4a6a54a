"""PrefEval."""

from raw import write_json

import prlhf_kit as kit


def test_prefeval(tmp_path):
    rows = [
        {
            "topic": f"topic{i % 3}",
            "preference": f"I like {i}.",
            "question": f"Which {i}?",
            "explanation": "",
            "classification_task_options": [f"right {i}", f"wrong {i}", f"bad {i}", f"no {i}"],
        }
        for i in range(30)
    ]
    data = kit.data.load("prefeval", write_json(tmp_path / "mcq.json", rows))
    assert set(data) == {"train", "test_unseen"}
    assert not set(data["train"]["user_id"]) & set(data["test_unseen"]["user_id"])
    assert sum(map(len, data.values())) == 90
    row = data["train"][0]
    assert row["chosen"][0]["content"].startswith("right")
    assert row["user_text"] == "I like 0."
    assert row["group"] == "topic0"
