"""A judge's server on loopback that answers, or fails as the test's script says."""

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ALWAYS_A = '{"preference": "A", "confidence": 0.9}'
STATUSES = {"400", "401", "403", "404", "409", "422", "429", "500", "503"}

BODIES = {
    "broken": b'{"id": "x", "choices": [{"mess',
    "html": b"<html>busy</html>",
    "null": b"null",
    "no choices": b'{"id": "x", "choices": []}',
    "no message": b'{"id": "x", "choices": [{"message": "A"}]}',
}


class FaultServer(ThreadingHTTPServer):
    """Use as a context manager.

    Args:
        script: a mark that stands in a request's last message -> its faults, one an attempt; then it is answered.
            Faults: a status ("429 after 1": with that Retry-After); "hang" (until `release` is set); "broken"
            (no JSON), "html", "null", "no choices", "no message"; "cut" (the connection closes within the answer),
            "closed" (before it); "interrupt" (Ctrl-C for this process, then "hang").
        answer: the judge's text, or body -> text, or the whole answer as a dict.
    """

    daemon_threads = True

    def __init__(self, script=None, answer=ALWAYS_A):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.answer = {mark: list(faults) for mark, faults in (script or {}).items()}, answer
        self.seen: list[dict] = []  # bodies, in order; their headers; when they came
        self.headers: list[dict] = []
        self.times: list[float] = []
        self.release, self.lock = threading.Event(), threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def count(self, marks="Q0 Q1 Q2 Q3 Q4 Q5 Q6 Q7 Q8 Q9"):
        """How often each request came."""
        return Counter(mark for body in self.seen for mark in marks.split() if mark in body["messages"][-1]["content"])

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.release.set()
        self.shutdown()
        self.server_close()
        self.thread.join()

    def handle_error(self, request, client_address):
        """A client that went away is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultServer

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.seen.append(body)
            self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.server.times.append(time.monotonic())
            fault = next((faults.pop(0) for mark, faults in self.server.script.items() if mark in text and faults), "")
        if self.path != "/v1/chat/completions":
            return self.reply(404, {"error": {"message": f"no {self.path}"}})
        status, _, after = fault.partition(" after ")
        if status in STATUSES:
            # the body repeats the key, as some servers do
            words = f"{status} for {self.headers['Authorization']}"
            return self.reply(int(status), {"error": {"message": words}}, {"Retry-After": after or "0"})
        if fault == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if fault in ("hang", "interrupt"):
            self.server.release.wait(60)
        if fault == "closed":
            self.close_connection = True
            return None
        if fault in BODIES:
            return self.reply(200, BODIES[fault], {"Content-Type": "text/html"} if fault == "html" else {})
        return self.reply(200, self.completion(body), cut=fault == "cut")

    def completion(self, body):
        answer = self.server.answer(body) if callable(self.server.answer) else self.server.answer
        if isinstance(answer, dict):
            return answer
        return {
            "id": f"chat-{len(self.server.seen)}",
            "object": "chat.completion",
            "created": 1,
            "model": "served-name",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }

    def reply(self, status, content, headers=None, cut=False):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) + 50 * cut))
        with contextlib.suppress(ConnectionError):  # a client that timed out is gone
            self.end_headers()
            self.wfile.write(data)
        self.close_connection = self.close_connection or cut
