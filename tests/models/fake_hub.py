"""A hub on this machine: its API, its redirects to storage on another host, and each way they fail.

What it imitates was read off the requests that `huggingface_hub` 2.4 makes and the headers that it looks at.
It does not imitate Xet's own protocol: files in Xet storage are served through the same links.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_" + "SecretTokenOfTheUser" + "0123456789"
SIGNATURE = "Signature=signed-link-secret"


@dataclass
class Fault:
    """What goes wrong at paths that hold `where`, the next `times` times (-1: for ever)."""

    where: str
    times: int = -1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    """Bytes of the body to send before the connection is closed (0: an answer without its body)."""
    stall_after: int | None = None
    """Bytes of the body to send before nothing comes any more."""
    wrong: bool = False
    """Send as many bytes as asked for, but other ones."""
    no_range: bool = False
    """Answer a request for a range with the whole file."""


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    storage: bool


@dataclass
class Repo:
    """One repository: files of each commit, and what the branches point to. Files in `large` have a sha256."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    large: tuple[str, ...] = (".safetensors", ".gguf", ".bin", ".model")


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class FakeHub:
    """Two servers: the hub, and the storage that it redirects to."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.sent = 0
        self.token: str | None = None
        """If set, requests to the hub with another token are refused."""
        self.released = threading.Event()
        self._lock = threading.Lock()
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, storage)) for storage in (False, True)]
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.servers[0].server_port}"

    @property
    def storage_url(self) -> str:
        # Another name for the same machine: another origin, as the hub's storage is.
        return f"http://localhost:{self.servers[1].server_port}"

    def stop(self) -> None:
        import huggingface_hub

        self.released.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()
        # Connections that the client keeps open would still be answered.
        huggingface_hub.close_session()

    def take_fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.where in path and fault.times:
                    fault.times -= 1
                    return fault
        return None

    def count(self, bytes_sent: int) -> None:
        with self._lock:
            self.sent += bytes_sent

    def files_asked(self) -> set[str]:
        """Names of the files of which content was asked for."""
        return {
            request.path.split("/resolve/")[1].partition("/")[2]
            for request in self.requests
            if "/resolve/" in request.path and request.method == "GET"
        }


def _handler(hub: FakeHub, storage: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(Request(self.command, path, {k.lower(): v for k, v in self.headers.items()}, storage))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if storage:
                    self.file(self.blob(path.rsplit("/", 1)[1]), hub.take_fault(path))
                else:
                    self.hub(path)

        def hub(self, path: str) -> None:
            fault = hub.take_fault(path)
            if fault and fault.status:
                return self.answer(fault.status, fault.body, fault.headers)
            if hub.token and self.headers.get("Authorization", f"Bearer {hub.token}") != f"Bearer {hub.token}":
                return self.refuse(401, "", "Invalid credentials in Authorization header")
            api = path.startswith("/api/models/")
            name, repo = next(((n, r) for n, r in hub.repos.items() if f"/{n}/" in path), ("", None))
            if repo is None:
                return self.refuse(404, "RepoNotFound", "Repository not found")
            rest = path.split(f"/{name}/", 1)[1]
            if api and rest == "refs":
                names = [
                    {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit}
                    for branch, commit in repo.branches.items()
                ]
                return self.json({"branches": names, "converts": [], "tags": []})
            kind, _, rest = rest.partition("/")
            revision, _, file = rest.partition("/")
            commit = repo.branches.get(revision, revision)
            if commit not in repo.commits:
                return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            files = repo.commits[commit]
            if api and kind == "revision":
                siblings = [self.sibling(repo, path, data) for path, data in files.items()]
                return self.json({"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": False})
            if api and kind == "tree":
                return self.json([self.entry(repo, path, data) for path, data in files.items()])
            if file not in files:
                return self.refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            data = files[file]
            headers = {"X-Repo-Commit": commit}
            if file.endswith(repo.large):
                headers |= {
                    "X-Linked-Etag": f'"{sha256(data)}"',
                    "X-Linked-Size": str(len(data)),
                    "Location": f"{hub.storage_url}/blobs/{sha256(data)}?{SIGNATURE}",
                }
                return self.answer(302, b"", headers)
            return self.file(data, fault, headers | {"ETag": f'"{git_id(data)}"'})

        def sibling(self, repo: Repo, path: str, data: bytes) -> dict[str, Any]:
            found: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_id(data)}
            if path.endswith(repo.large):
                found["lfs"] = {"size": len(data), "sha256": sha256(data), "pointerSize": 134}
            return found

        def entry(self, repo: Repo, path: str, data: bytes) -> dict[str, Any]:
            found: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_id(data)}
            if path.endswith(repo.large):
                found["lfs"] = {"size": len(data), "oid": sha256(data), "pointerSize": 134}
            return found

        def blob(self, name: str) -> bytes:
            return next(
                data
                for repo in hub.repos.values()
                for files in repo.commits.values()
                for data in files.values()
                if sha256(data) == name
            )

        def file(self, data: bytes, fault: Fault | None, headers: dict[str, str] | None = None) -> None:
            if fault and fault.status:
                return self.answer(fault.status, fault.body, fault.headers)
            headers, status, start = dict(headers or {}), 200, 0
            asked = self.headers.get("Range", "")
            if asked.startswith("bytes=") and not (fault and fault.no_range):
                start = int(asked.removeprefix("bytes=").partition("-")[0])
                if start >= len(data):
                    return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                status = 206
            body = bytes(byte ^ 1 for byte in data[start:]) if fault and fault.wrong else data[start:]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return None
            limit = None
            if fault:
                limit = fault.cut_after if fault.cut_after is not None else fault.stall_after
            part = body if limit is None else body[:limit]
            self.wfile.write(part)
            self.wfile.flush()
            hub.count(len(part))
            if fault and fault.stall_after is not None:
                hub.released.wait(30)
            if limit is not None:
                self.close_connection = True
            return None

        def json(self, value: Any) -> None:
            self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def refuse(self, status: int, code: str, words: str, headers: dict[str, str] | None = None) -> None:
            extra = {"X-Error-Code": code} if code else {}
            self.answer(
                status, json.dumps({"error": words}).encode(), {"X-Error-Message": words, **extra, **(headers or {})}
            )

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def commit_id(seed: str) -> str:
    return hashlib.sha1(seed.encode()).hexdigest()


def noise(seed: str, size: int) -> bytes:
    """`size` bytes that no compression shrinks and no two seeds share."""
    return hashlib.shake_128(seed.encode()).digest(size)


def model_files(seed: str = "first", weights: int = 400_000) -> dict[str, bytes]:
    """A small repository as models have it, with files that nobody needs."""
    return {
        "config.json": b'{"model_type": "llama"}\n',
        "generation_config.json": b"{}\n",
        "tokenizer.json": b'{"version": "1.0"}\n',
        "tokenizer_config.json": b"{ }\n",
        "chat_template.jinja": b"{{ messages }}\n",
        "LICENSE": b"Apache-2.0\n",
        "README.md": b"# A model\n",
        "model.safetensors": noise(seed, weights),
        "pytorch_model.bin": noise(seed + "-torch", 1000),
        "consolidated.safetensors": noise(seed + "-again", 1000),
        "original/tokenizer.model": b"not needed",
        "onnx/model.onnx": b"not needed",
    }


NEEDED = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("LICENSE", "README.md", "model.safetensors"),
}
FIRST, SECOND = commit_id("first"), commit_id("second")


@contextlib.contextmanager
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the model org/model, which the client talks to, with caches of its own and short pauses."""
    from huggingface_hub import constants

    from pillm.models import transfer

    hub = FakeHub()
    hub.repos["org/model"] = Repo({FIRST: model_files()}, {"main": FIRST, "dev": FIRST})
    home = tmp_path / "hf"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PILLM_CACHE", str(tmp_path / "cache"))
    template = "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + template,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DOWNLOAD_TIMEOUT": 2,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(transfer, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(transfer, "LONGEST_PAUSE", 0.02)
    try:
        yield hub
    finally:
        hub.stop()


def environment(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    """The same for a child process, through the variables that a user sets."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "PILLM_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "*",
    }


def wait_until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)
