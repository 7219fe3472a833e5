"""A local server that speaks chat completions, as scripted, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SOON = {"retry-after-ms": "5"}  # so that a test does not wait for the pauses of real servers


@dataclass
class Reply:
    """What the server sends, after `pause` seconds."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0


def completion(text: str | None, logprobs: Any = None, finish: str = "stop") -> Reply:
    """A chat completion of one choice; 100 tokens in, 7 out."""
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text},
        "logprobs": None if logprobs is None else {"content": logprobs},
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    kind = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return Reply(body={**kind, "choices": [choice], "usage": usage})


def problem(status: int, message: str, **more: Any) -> Reply:
    """An error as OpenAI's API words it."""
    return Reply(status, {"error": {"message": message, "type": "error", **more}}, dict(SOON))


class ChatServer:
    """Counts and keeps requests; `most` is how many were ever under way at once."""

    def __init__(self, script: Callable[[dict[str, Any], int], Reply]) -> None:
        self.script, self.requests = script, []
        self.keys: set[str] = set()
        self.paths: set[str] = set()
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.url = ""
        self.broken: list[Exception] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        size = int(handler.headers["content-length"])
        body = handler.rfile.read(size)
        if len(body) < size:
            raise ConnectionResetError
        request = json.loads(body)
        with self.lock:
            number = len(self.requests)
            self.requests.append(request)
            self.keys.add(handler.headers["authorization"])
            self.paths.add(handler.path)
            self.now += 1
            self.most = max(self.most, self.now)
        reply = self.script(request, number)
        time.sleep(reply.pause)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        with self.lock:
            self.now -= 1
        handler.send_response(reply.status)
        for name, value in {"content-type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    @property
    def explanations(self) -> list[dict[str, Any]]:
        return [request for request in self.requests if not is_simulation(request)]

    @property
    def simulations(self) -> list[dict[str, Any]]:
        return [request for request in self.requests if is_simulation(request)]


def is_simulation(request: dict[str, Any]) -> bool:
    return len(request["messages"]) > 2


@contextmanager
def serving(script: Callable[[dict[str, Any], int], Reply]) -> Iterator[ChatServer]:
    """A server on a free port, until the block ends."""
    server = ChatServer(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            try:
                server.answer(self)
            except (BrokenPipeError, ConnectionResetError):  # a client that waits no longer
                self.close_connection = True
            except Exception as error:
                server.broken.append(error)
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    server.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
    if server.broken:
        raise server.broken[0]


def asked_tokens(request: dict[str, Any]) -> list[str]:
    """The tokens that a simulation is asked about."""
    lines = request["messages"][-1]["content"].split("\n")
    return [line.removesuffix("\tunknown") for line in lines if line.endswith("\tunknown")]


def knowing(activation: Callable[[str], int]) -> Callable[[dict[str, Any], int], Reply]:
    """A model that explains nothing and foretells exactly, from the token alone."""

    def script(request: dict[str, Any], number: int) -> Reply:
        if not is_simulation(request):
            return completion("The unit responds to words with a secret.")
        tokens = asked_tokens(request)
        return completion("\n".join(f"{token}\t{activation(token)}" for token in tokens))

    return script
