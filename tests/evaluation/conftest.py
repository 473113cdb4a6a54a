"""An LLM judge whose endpoint is in this process."""

from functools import partial

import httpx2 as httpx
import pytest

from prlhf_kit.evaluation import endpoint
from prlhf_kit.evaluation.judge_templates import CRITERIA
from prlhf_kit.evaluation.llm_judge import LLMJudge


@pytest.fixture
def make_judge(tmp_path, monkeypatch):
    """`make_judge(server, **settings)`: by criterion P2A, its cache in `tmp_path`; `server`: a `FaultServer`."""
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    client = httpx.Client

    def make(server=None, **settings):
        monkeypatch.setattr(httpx, "Client", partial(client, transport=httpx.MockTransport(server)))
        own = {"template": "criterion", "cache": tmp_path / "c.sqlite"}
        own["about"] = lambda user, prompt: {"criterion": CRITERIA["P2A"]}
        return LLMJudge("m", **own | {"base_url": "http://judge/v1"} | settings)

    return make
