"""Tests of decoding have models of one architecture, where they do not ask for others."""

import pytest


@pytest.fixture
def architecture():
    return "llama"
