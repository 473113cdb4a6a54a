import pytest

from prlhf_kit.decoding.answers import add_lines, locked, read_lines


def test_other_peoples_files_stay_as_they_are(tmp_path):
    (tmp_path / "lines").write_text(text := '[{"prompt": "what PAD writes"}]')
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
