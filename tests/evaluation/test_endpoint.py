"""The LLM judge against an endpoint that fails in every way: nothing is paid for twice, lost or invented."""

import gc
import json
import logging
import re
import sqlite3
import threading
import time
import traceback
from contextlib import closing

import httpx2 as httpx
import pytest
from faults import ALWAYS_A, BODIES, ERRORS, FaultServer, questions

from prlhf_kit.evaluation.endpoint import JudgeError, PaidAnswers
from prlhf_kit.evaluation.llm_judge import LLMJudge

KEY = "sk-verysecret-0123456789abcdef"


def by_question(body):
    """A for even questions, B for odd ones."""
    even = int(re.search(r"Q(\d)", body["messages"][-1]["content"])[1]) % 2 == 0
    return ALWAYS_A if even else '{"preference": "B", "confidence": 0.75}'


@pytest.mark.parametrize("fault", ["408", "503", *BODIES, *ERRORS])
def test_what_may_pass_is_asked_again_and_loses_no_other_answer(make_judge, fault, tmp_path):
    server = FaultServer({"Q1": [fault] * 99, "Q2": [fault]}, by_question)
    judge = make_judge(server, retries=3, concurrency=2)
    with pytest.raises(JudgeError, match="1 of 4 requests to http://judge/v1 got no answer") as error:
        judge(*questions(4))
    assert ERRORS[fault].__name__ in str(error.value) if fault in ERRORS else "choices[0].message" in str(error.value)
    assert f"3 answers are kept in {tmp_path / 'c.sqlite'}" in str(error.value)
    assert server.count() == {"Q0": 1, "Q1": 4, "Q2": 2, "Q3": 1}
    assert [judge.spent[name] for name in ("requests", "answers")] == [4, 3]
    server.script["Q1"] = [fault]
    assert judge(*questions(4)) == judge(*questions(4)) == ["a", "b"] * 2
    assert server.count() == {"Q0": 1, "Q1": 6, "Q2": 2, "Q3": 1}


@pytest.mark.parametrize("refused", ["max_tokens", "temperature"])
def test_a_parameter_that_the_server_does_not_take(make_judge, refused):
    """The limit of tokens has another name with newer models; what would change the verdicts is the user's to say."""

    def server(request):
        if refused not in json.loads(request.read()):
            return httpx.Response(200, json={"choices": [{"message": {"content": ALWAYS_A}}]})
        said = f"Unsupported parameter: '{refused}'." + " Use 'max_completion_tokens'." * (refused == "max_tokens")
        return httpx.Response(400, json={"error": {"message": said, "code": "unsupported_parameter"}})

    judge = make_judge(server, retries=0, concurrency=1)
    if refused == "max_tokens":
        assert judge(*questions(3)) == ["a"] * 3
    else:
        with pytest.raises(JudgeError, match=r"Unsupported parameter: 'temperature'.* 0 answers"):
            judge(*questions(3))


def test_nothing_more_is_paid_for_that_can_not_be_kept(make_judge, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(PaidAnswers, "keep", full)
    server = FaultServer()
    with pytest.raises(JudgeError, match=r"could not be written .*disk is full"):
        make_judge(server, concurrency=1)(*questions(9))
    assert len(server.seen) == 1


def test_retry_after_is_heeded(make_judge):
    start = time.monotonic()
    assert make_judge(FaultServer({"Q0": ["429 after 0.4"]}))(*questions(1)) == ["a"]
    assert 0.4 <= time.monotonic() - start < 5


def test_a_server_that_is_gone_is_not_asked_for_ever(make_judge):
    judge = make_judge(FaultServer({"Q": ["closed"] * 999}), retries=1, concurrency=2)
    with pytest.raises(JudgeError, match="300 of 300 requests"):
        judge(*questions(300))
    assert judge.spent["requests"] < 40


@pytest.mark.parametrize("status", ["302", "401", "422"])
def test_a_refusal_stops_at_once_and_no_key_is_told(make_judge, monkeypatch, caplog, tmp_path, status):
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    server = FaultServer({"Q2": [status] * 99})
    judge = make_judge(server, concurrency=1, api_key_env="JUDGE_KEY")
    with pytest.raises(JudgeError, match=f"status {status}.*Bearer \\*\\*\\*.*Check base_url") as error:
        judge(*questions(9))
    assert server.count() == {"Q0": 1, "Q1": 1, "Q2": 1}  # the first two are kept
    assert all(request.headers["Authorization"] == f"Bearer {KEY}" for request in server.requests)
    told = "".join(traceback.format_exception(error.value)) + repr(error.value.__context__) + caplog.text
    told += repr(judge) + json.dumps(judge.config) + repr(judge.spent) + "".join(map(repr, caplog.records))
    assert "HTTP Request" in caplog.text  # so something was logged
    assert KEY not in told
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    server.script["Q2"].clear()
    assert judge(*questions(9)) == ["a"] * 9
    assert server.count()["Q0"] == server.count()["Q1"] == 1


def test_what_is_under_way_at_a_refusal_is_kept(make_judge):
    server = FaultServer({"Q0": ["hang"], "Q1": ["401"]})
    judge = make_judge(server, concurrency=2)
    threading.Timer(0.3, server.release.set).start()
    with pytest.raises(JudgeError, match="1 answers are kept"):
        judge(*questions(9))
    assert server.count() == {"Q0": 1, "Q1": 1}
    judge(*questions(1))
    assert len(server.seen) == 2


def test_interrupt_keeps_what_came(make_judge, tmp_path):
    """And what came stands on the disk before more is asked, should the process be killed."""
    kept = []

    def answer(body):
        with closing(sqlite3.connect(tmp_path / "c.sqlite")) as file:
            kept.extend(file.execute("SELECT count(*) FROM judge_answers").fetchone())
        return ALWAYS_A

    server = FaultServer({"Q2": ["interrupt"]}, answer)
    judge = make_judge(server, concurrency=1)
    gc.collect()  # a finaliser of an earlier test, should it run here, would swallow the interrupt
    with pytest.raises(KeyboardInterrupt):
        judge(*questions(6))
    assert server.count() == {"Q0": 1, "Q1": 1, "Q2": 1}
    assert judge(*questions(6)) == ["a"] * 6
    assert server.count() == {f"Q{i}": 1 for i in range(6)}
    assert kept == [*range(6)]


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"role": "assistant", "content": None, "refusal": "I can't."}, "finish_reason": "stop"},
        {"message": {"role": "assistant"}},
        {"message": {"role": "assistant", "content": "A \ud800"}, "finish_reason": 3},
        {"message": {"role": "assistant", "content": [{"type": "text", "text": ALWAYS_A}]}, "finish_reason": "stop"},
    ],
)
def test_what_can_not_be_read_is_paid_once_counted_and_no_win(make_judge, choice):
    server = FaultServer(answer={"choices": [choice], "usage": "many"})
    judge = make_judge(server)
    for _ in range(2):
        assert judge(*questions(2)) == [None] * 2
    assert len(server.seen) == 2
    assert [judge.spent[name] for name in ("unreadable", "answers", "prompt_tokens")] == [2, 2, 0]


def test_a_file_that_is_no_cache_is_refused(make_judge, tmp_path):
    (tmp_path / "c.sqlite").write_text("these are my notes, not a database\n" * 99)
    with pytest.raises(JudgeError, match="can't be used as a judge's cache"):
        make_judge()
    assert (tmp_path / "c.sqlite").read_text().startswith("these are my notes")


# ---- keys and addresses


def test_a_key_goes_to_its_own_endpoint_only(make_judge, monkeypatch, tmp_path):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere/v1")
    server = FaultServer()
    judge = make_judge(server)
    judge(*questions(1))
    assert server.requests[0].url.host == "judge"
    assert KEY not in str(list(server.requests[0].headers.items()))
    openai = LLMJudge("m", "criterion", tmp_path / "c", judge.about)  # the default, which wants its key
    assert openai(*questions(1)) == ["a"]
    assert str(server.requests[1].url) == "https://api.openai.com/v1/chat/completions"
    assert server.seen[1]["max_completion_tokens"] == 100
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(JudgeError, match="OPENAI_API_KEY is not set; expected the key of https://api"):
        openai(*questions(2))
    assert len(server.seen) == 2


URLS = [f"https://me:{KEY}@host/v1", f"https://host/v1?key={KEY}", "host/v1", "ftp://host/v1"]


@pytest.mark.parametrize(
    "settings", [*({"base_url": url} for url in URLS), {"api_key_env": KEY}, {"api_key_env": "BAD"}]
)
def test_what_could_be_a_secret_is_refused_and_not_told(make_judge, monkeypatch, settings):
    monkeypatch.setenv("BAD", f"{KEY} {KEY}")
    with pytest.raises(JudgeError, match=r"base_url is not of the form|api_key_env is no name|BAD is no key") as error:
        make_judge(FaultServer(), **settings)(*questions(1))
    assert KEY not in "".join(traceback.format_exception(error.value))
