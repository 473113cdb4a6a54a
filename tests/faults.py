"""A judge's endpoint that answers, or fails as the test's script says: in this process, or on loopback."""

import json
import os
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2 as httpx

ALWAYS_A = '{"preference": "A", "confidence": 0.9}'


def questions(n):
    """A judge's arguments for `n` comparisons, marked Q0, Q1, ..."""
    return [f"Q{i}?" for i in range(n)], ["left"] * n, ["right"] * n, ["u"] * n


BODIES = {
    "broken": '{"id": "x", "choices": [{"mess',
    "html": "<html>busy</html>",
    "null": "null",
    "no choices": '{"id": "x", "choices": []}',
    "no message": '{"id": "x", "choices": [{"message": "A"}]}',
}
ERRORS = {"cut": httpx.RemoteProtocolError, "closed": httpx.ReadError, "slow": httpx.ReadTimeout}


class FaultServer:
    """Use as the function of a `httpx.MockTransport`, or `with server.on_loopback() as url`.

    Args:
        script: a mark that stands in a request's last message -> its faults, one an attempt; then it is answered.
            Faults: a status ("429 after 1": with that Retry-After), `BODIES`, `ERRORS`, "hang" (until `release` is
            set), "interrupt" (Ctrl-C for this process, and the answer a little later).
        answer: the judge's text, or body -> text, or the whole answer as a dict.
    """

    def __init__(self, script=None, answer=ALWAYS_A):
        self.script, self.answer = {mark: list(faults) for mark, faults in (script or {}).items()}, answer
        self.seen, self.requests = [], []  # bodies and requests, in order
        self.release, self.lock = threading.Event(), threading.Lock()

    def count(self):
        """How often each request came."""
        marks = [f"Q{i}" for i in range(10)]
        return Counter(mark for body in self.seen for mark in marks if mark in body["messages"][-1]["content"])

    def __call__(self, request):
        body = json.loads(request.read())
        text = body["messages"][-1]["content"]
        with self.lock:
            self.seen.append(body)
            self.requests.append(request)
            fault = next((faults.pop(0) for mark, faults in self.script.items() if mark in text and faults), "")
        assert request.url.path == "/v1/chat/completions"
        status, _, after = fault.partition(" after ")
        if status.isdigit():  # the body repeats the key, as some servers do
            said = {"error": f"{status} for {request.headers['Authorization']}"}
            return httpx.Response(int(status), json=said, headers={"Retry-After": after or "0"})
        if fault in ERRORS:
            raise ERRORS[fault](fault, request=request)
        if fault in BODIES:
            return httpx.Response(200, text=BODIES[fault])
        if fault == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
        if fault == "hang":
            self.release.wait(60)
        answer = self.answer(body) if callable(self.answer) else self.answer
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        whole = {"id": "chat-1", "model": "served-name", "choices": [choice], "usage": usage}
        content = json.dumps(answer if isinstance(answer, dict) else whole)  # ASCII: half surrogates become escapes
        return httpx.Response(200, content=content, headers={"Content-Type": "application/json"})

    @contextmanager
    def on_loopback(self):
        """Answers at the address that it yields, for other processes."""
        faults = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                content = self.rfile.read(int(self.headers["Content-Length"]))
                found = faults(
                    httpx.Request("POST", f"http://x{self.path}", headers=dict(self.headers), content=content)
                )
                self.send_response(found.status_code)
                self.end_headers()
                self.wfile.write(found.content)

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads, server.handle_error = True, lambda *_: None  # a killed client is part of the tests
            threading.Thread(target=server.serve_forever, args=(0.02,)).start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}/v1"
            finally:
                self.release.set()
                server.shutdown()
