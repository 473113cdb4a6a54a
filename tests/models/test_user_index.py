import pytest

import prlhf_kit as kit


def test_user_index(tmp_path):
    index = kit.UserIndex(["ann", "00123"])
    assert index.rows(["00123", None]) == [2, 0]
    assert index.row("zoe", unknown="generic") == 0
    with pytest.raises(KeyError, match="'zoe' has no row"):
        index.row("zoe")
    with pytest.raises(ValueError, match="'ann' is listed twice"):
        kit.UserIndex(["ann", "ann"])
    index.save(tmp_path, num_tokens=3)
    back, extra = kit.UserIndex.load(tmp_path)
    assert (back.user_ids, extra) == (["ann", "00123"], {"num_tokens": 3})
    with pytest.raises(FileNotFoundError, match="unknown which row"):
        kit.UserIndex.load(tmp_path / "nowhere")
