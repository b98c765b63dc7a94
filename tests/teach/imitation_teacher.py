"""An imitation of an OpenAI-compatible server whose faults can be ordered. It is no model."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler
from typing import Any


class Imitation:
    """Not a model: answers every prompt with "ok", or does what was ordered for that prompt, in order.

    An order is an answer (text, or a whole completion), a function of the body that gives an order, a status with headers and a message (in which
    {auth} is the key that came), or "cut" (before a byte), "cut in the middle", "garbage", "silence", "drip" (a byte
    now and then, without an end), "endless" (as fast as it goes).
    """

    def __init__(self) -> None:
        self.orders: dict[str, list[Any]] = defaultdict(list)
        self.bodies: list[dict[str, Any]] = []
        self.always: Any = None
        self.models = ["imitation"]
        self.url = ""
        self.sent = 0
        self.over = threading.Event()

    def asked(self, prompt: str) -> int:
        return sum(body["messages"][-1]["content"] == prompt for body in self.bodies)


def completion(content: str | None, finish: str = "stop", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = calls
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}


def handler(imitation: Imitation) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Server": "imitation", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def start(self, length: int) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def do_GET(self) -> None:
            data = [{"id": name, "object": "model"} for name in imitation.models]
            self.send(200, json.dumps({"object": "list", "data": data}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            imitation.bodies.append(body)
            orders = imitation.orders[body["messages"][-1]["content"]]
            order = orders.pop(0) if orders else (imitation.always or "ok")
            if callable(order):
                order = order(body)
            if order == "cut":
                # A reset instead of a goodbye: what a dying server or a router does.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
            elif order == "cut in the middle":
                data = json.dumps(completion("half of this is lost")).encode()
                self.start(len(data))
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            elif order in ("drip", "endless"):
                # What a body begins with, and then no end of it.
                self.start(2**40)
                piece = b" " if order == "drip" else b" " * 2**20
                with contextlib.suppress(OSError):
                    while not imitation.over.wait(0.05 if order == "drip" else 0):
                        self.wfile.write(piece)
                        imitation.sent += len(piece)
                self.close_connection = True
            elif order == "silence":
                imitation.over.wait()
                self.close_connection = True
            elif order == "garbage":
                self.send(200, b"<html>gateway</html>")
            elif isinstance(order, tuple):
                status, headers, text = order
                text = text.replace("{auth}", self.headers.get("Authorization", ""))
                self.send(status, json.dumps({"error": {"message": text, "type": "imitated"}}).encode(), headers)
            elif isinstance(order, dict):
                self.send(200, json.dumps(order).encode())
            else:
                self.send(200, json.dumps(completion(order)).encode())

        def finish(self) -> None:
            # The connection may have been cut on purpose.
            with contextlib.suppress(OSError, ValueError):
                super().finish()

    return Handler
