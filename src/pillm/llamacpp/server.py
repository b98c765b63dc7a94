"""llama-server as a context manager: loopback only, a port of its own, a random key, gone with the block."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from pillm.core.command import Command
from pillm.core.errors import UsageError
from pillm.core.events import Emit, Log, Progress, silent
from pillm.core.process import SHORT_SPIN, child
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.tool import failure

HOST = "127.0.0.1"
_START_SECONDS = 600.0
_PORT_TAKEN = re.compile(r"couldn't bind|address already in use|failed to bind", re.IGNORECASE)


class Server(msgspec.Struct, frozen=True):
    """A running server: `url` is the OpenAI-compatible base that ends in `/v1`; `log` is its output."""

    url: str
    api_key: str
    log: Path


@contextlib.contextmanager
def serve(
    tools: LlamaCpp,
    model: Path,
    *,
    context: int,
    parallel: int = 1,
    threads: int | None = None,
    chat_template: Path | None = None,
    emit: Emit = silent,
    extra: Sequence[str] = (),
) -> Iterator[Server]:
    """Run llama-server on `model` for the length of the block.

    `context` is in tokens and for each of the `parallel` slots; `extra` are further arguments, and win.
    The model's own chat template is used unless `chat_template` names a Jinja file. The log is deleted
    with the block unless the server failed.

    Raises UsageError (no such file, not a whole GGUF file), PillmError (the server does not start, or
    ends while it is needed; quotes its log).
    """
    describe(model)
    if chat_template is not None and not chat_template.is_file():
        raise UsageError(f"{chat_template}: there is no such file", "check the path of the chat template")
    handle, name = tempfile.mkstemp(prefix="llama-server-", suffix=".log")
    log = Path(name)

    def command(port: int) -> tuple[Command, str]:
        return _command(tools, model, port, context, parallel, threads, chat_template, extra)

    with os.fdopen(handle, "wb") as sink, _started(command, model, log, sink, emit) as (process, port, key):
        try:
            yield Server(f"http://{HOST}:{port}/v1", key, log)
        except Exception as error:
            # A request that fails because the server is gone: say why it is gone.
            if (code := _ended(process)) is not None:
                raise failure(f"llama-server on {model}", code, log.read_text("utf-8", "replace"), log) from error
            raise
        finally:
            if process.poll() is None:
                log.unlink(missing_ok=True)
        if (code := process.poll()) is not None:
            raise failure(f"llama-server on {model}", code, log.read_text("utf-8", "replace"), log)


@contextlib.contextmanager
def _started(
    command_for: Callable[[int], tuple[Command, str]], model: Path, log: Path, sink: IO[bytes], emit: Emit
) -> Iterator[tuple[subprocess.Popen[bytes], int, str]]:
    """A server that answers, its port and its key. Tries other ports if one is taken under its nose."""
    for attempts_left in (2, 1, 0):
        port = _free_port()
        command, key = command_for(port)
        with child(command, stdout=sink, stderr=subprocess.STDOUT) as process:
            if _wait(process, port, model.name, emit):
                yield process, port, key
                return
        text = log.read_text("utf-8", "replace")
        # Another program may have taken the port between our look and the server's bind.
        if not attempts_left or not _PORT_TAKEN.search(text):
            raise failure(f"llama-server on {model}", process.returncode, text, log)
        sink.truncate(0)


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code if the server is gone or just going: its connections break a moment before it ends."""
    try:
        return process.wait(0.3)
    except subprocess.TimeoutExpired:
        return None


def _command(
    tools: LlamaCpp,
    model: Path,
    port: int,
    context: int,
    parallel: int,
    threads: int | None,
    chat_template: Path | None,
    extra: Sequence[str],
) -> tuple[Command, str]:
    key = secrets.token_urlsafe(24)
    argv = [
        str(tools.tool("llama-server")), "--model", str(model), "--host", HOST, "--port", str(port),
        # Slots that are not unified get ctx-size / parallel tokens each.
        "--ctx-size", str(context * parallel), "--parallel", str(parallel), "--no-kv-unified",
        # No memory for prompts that left their slot; no page; nothing from the network.
        "--cache-ram", "0", "--no-ui", "--offline", "--jinja", "--log-colors", "off",
    ]  # fmt: skip
    if threads:
        argv += ["--threads", str(threads)]
    if chat_template:
        argv += ["--chat-template-file", str(chat_template)]
    # In the environment, other users' `ps` does not show the key.
    return Command((*argv, *extra), {"LLAMA_API_KEY": key, **SHORT_SPIN}), key


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], port: int, name: str, emit: Emit) -> bool:
    """Until /health says 200 (True) or the server ends or takes too long (False)."""
    began = told = time.monotonic()
    while process.poll() is None and (now := time.monotonic()) - began < _START_SECONDS:
        if _healthy(port):
            return process.poll() is None
        if now - told > 1:
            told = now
            emit(Progress(f"load {name}", round(now - began), None, "s"))
        time.sleep(0.05)
    if process.poll() is None:
        emit(Log(f"llama-server is not ready after {_START_SECONDS:.0f} s", "error"))
    return False


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
