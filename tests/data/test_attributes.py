import numpy as np
import pytest

from prlhf_kit.data.attributes import measure


def test_attributes_by_hand():
    text = "- Thank you, dear friend!\n- It is recommended."
    found = measure(text)
    assert found["length"] == pytest.approx(np.log(8))  # 7 words
    assert found["lists"] == 1
    assert found["warmth"] == pytest.approx(np.log(5))  # thank, dear, friend, !
    assert found["formality"] == pytest.approx(0)  # recommended against you
    assert found["questions"] == 0
    assert measure("Why? How?")["questions"] == pytest.approx(np.log(3))
    assert measure("I don't know.")["formality"] == pytest.approx(-20 / 3)
    assert measure("") == dict.fromkeys(found, 0.0)
