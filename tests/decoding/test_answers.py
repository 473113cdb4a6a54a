"""The files of PAD and ARGS, and JSON lines."""

import json

import pytest

from prlhf_kit.decoding.answers import GuidedAnswer, add_lines, locked, read_lines, read_pad_config, write_pad


def test_answers_as_pads_and_args_own_programs_write_them(tmp_path):
    answers = [GuidedAnswer("Yes.", [1, 2], [1, 3], seconds=0.5), GuidedAnswer("Nö.", [4], [4], seconds=0.25)]
    write_pad(tmp_path / "out_0.jsonl", ["Q1 ", "Q2 "], answers, "pad_0")
    second = {"prompt": "Q2 ", "result": "Nö.", "response": "Q2 Nö.", "elapsed": 0.25, "method": "pad_0"}
    assert json.loads((tmp_path / "out_0.jsonl").read_text())[1] == second


def test_settings_of_pad_and_args(tmp_path):
    config = tmp_path / "grid.config"
    config.write_text(
        '{"rm_weight": 0.6, "topk": 10, "mode": "greedy", "sample_temp": null, "perspective": "humour"}\n'
        '{"rm_weight": 1.0, "topk": 40, "mode": "logit_mix", "sampling": "topk", "sample_temp": 0.7}\n'
    )
    first, second = read_pad_config(config)
    assert first == {"weight": 0.6, "top_k": 10, "do_sample": False, "temperature": 1.0}
    assert second == {"weight": 1.0, "top_k": 40, "do_sample": True, "temperature": 0.7}
    for line in ('{"topk": 1}', '{"rm_weight": 1, "topk": 1, "mode": "beam", "sample_temp": null}'):
        config.write_text(line)
        with pytest.raises(ValueError, match=r"line 1 of .* Expected rm_weight"):
            read_pad_config(config)


def test_other_peoples_files_stay_as_they_are(tmp_path):
    (tmp_path / "lines").write_text(text := '[{"prompt": "what write_pad writes"}]')
    with pytest.raises(ValueError, match=r"line 1 of .* is no answer"):
        read_lines(tmp_path / "lines", dict, "answer")
    assert (tmp_path / "lines").read_text() == text


def test_separators_within_a_text_do_not_cut_a_line(tmp_path):
    text = "a\u2028b\u2029c\x85d"
    add_lines(tmp_path / "lines", [{"key": "k", "text": text}])
    assert read_lines(tmp_path / "lines", lambda row: row["text"], "text") == {"k": text}


def test_a_second_call_is_refused_while_the_first_one_writes(tmp_path):
    """It would take the first one's half line for a crash's. By another name of the file, too."""
    (tmp_path / "link").symlink_to(tmp_path / "lines")
    refused = pytest.raises(ValueError, match="being written by another call")
    with locked(tmp_path / "lines"), refused, locked(tmp_path / "link"):
        pass
    with locked(tmp_path / "link"):  # and then it may
        pass
