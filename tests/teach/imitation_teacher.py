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

    An order is an answer (text, or a whole completion), a status with headers and a message (in which
    {auth} is the key that came), or "cut", "garbage", "silence".
    """

    def __init__(self) -> None:
        self.orders: dict[str, list[Any]] = defaultdict(list)
        self.bodies: list[dict[str, Any]] = []
        self.always: Any = None
        self.models = ["imitation"]
        self.url = ""
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

        def do_GET(self) -> None:
            data = [{"id": name, "object": "model"} for name in imitation.models]
            self.send(200, json.dumps({"object": "list", "data": data}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            imitation.bodies.append(body)
            orders = imitation.orders[body["messages"][-1]["content"]]
            order = orders.pop(0) if orders else (imitation.always or "ok")
            if order == "cut":
                # A reset instead of a goodbye: what a dying server or a router does.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
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
