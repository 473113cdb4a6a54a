"""WebGPT comparisons."""

from raw import pairs_of, write_lines

import prlhf_kit as kit


def test_webgpt_original(tmp_path):
    rows = [
        {
            "question": {"dataset": "eli5", "id": str(i), "full_text": f"Why {i}?"},
            "quotes_0": {"title": []},
            "answer_0": f"Zero {i}.",
            "answer_1": f"One {i}.",
            "score_0": s,
            "score_1": -s,
        }
        for i, s in enumerate([0.5, -0.25, 0.0, 1.0, -1.0, 0.5])
    ]
    data, report = kit.data.load_with_report("webgpt", write_lines(tmp_path / "webgpt.jsonl", rows), test_share=0.4)
    found = {question: chosen for split in data for _, question, chosen, _ in pairs_of(data, split)}
    assert found == {
        "Why 0?": "Zero 0.",
        "Why 1?": "One 1.",
        "Why 3?": "Zero 3.",
        "Why 4?": "One 4.",
        "Why 5?": "Zero 5.",
    }
    assert report.table.reason.tolist() == ["tie"]
    assert report.counts == {"comparisons": 6}
