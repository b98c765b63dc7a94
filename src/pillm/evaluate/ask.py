"""Questions to llama-server through its own chat interface with tools, several at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

import httpx
import msgspec

from pillm.core import records
from pillm.core.errors import PillmError
from pillm.core.events import Emit, Metric, Progress
from pillm.core.records import Message, plain
from pillm.evaluate.journal import Journal
from pillm.evaluate.judge import Case
from pillm.evaluate.report import Call, Said
from pillm.llamacpp.server import Server


@contextlib.contextmanager
def connect(server: Server, parallel: int) -> Iterator[httpx.Client]:
    """A client for `parallel` requests at once. Proxies of the environment are not for loopback."""
    with httpx.Client(
        headers={"Authorization": f"Bearer {server.api_key}"},
        timeout=httpx.Timeout(900.0, connect=10.0),
        limits=httpx.Limits(max_connections=parallel),
        trust_env=False,
    ) as client:
        yield client


def case_key(case: Case) -> str:
    """What an answer in the journal belongs to: the record's id and content."""
    return f"{case.record.id}:{hashlib.sha256(records.encode(case.record)).hexdigest()[:16]}"


def ask_all(
    server: Server, cases: Sequence[Case], *, max_tokens: int, parallel: int, journal: Journal, emit: Emit
) -> list[Said]:
    """Every case's answer, in the order of the cases; those in the journal are not asked again.

    Questions go out sorted by their beginning, so that dialogues with the same system turn and tools
    find it in the server's prompt cache. Raises PillmError if the server stops answering.
    """
    todo = [case for case in cases if case_key(case) not in journal.done]
    todo.sort(key=lambda case: msgspec.json.encode((case.record.tools, case.prompt)))
    began, finished = time.monotonic(), len(cases) - len(todo)
    label = "answer held-out dialogues"
    emit(Progress(label, finished, len(cases), "answers"))
    with connect(server, parallel) as client, _pool(parallel) as pool:
        pending = {pool.submit(_ask_and_keep, client, server, case, max_tokens, journal) for case in todo}
        while pending:
            done, pending = wait(pending, timeout=2.0, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            finished += len(done)
            emit(Progress(label, finished, len(cases), "answers"))
    if todo:
        emit(Metric("answers per second", round(len(todo) / (time.monotonic() - began), 3), unit="1/s"))
    return [journal.done[case_key(case)] for case in cases]


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """An executor that, on an error or Ctrl-C, drops what has not begun instead of working it off."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _ask_and_keep(client: httpx.Client, server: Server, case: Case, max_tokens: int, journal: Journal) -> None:
    journal.keep(case_key(case), ask(client, server, case, max_tokens))


def ask(client: httpx.Client, server: Server, case: Case, max_tokens: int) -> Said:
    """One answer, at temperature 0. A refusal by the server is an answer too: one with a failure and its reason."""
    body: dict[str, Any] = {
        "messages": _messages(case.prompt),
        "temperature": 0,
        "seed": 0,
        "max_tokens": max_tokens,
        "cache_prompt": True,
    }
    if case.record.tools:
        body["tools"] = plain(case.record.tools)
    response = post(client, server, f"{server.url}/chat/completions", body)
    if response.is_success:
        return _said(response)
    error = _error(response)
    message = str(error.get("message", ""))[:500] or f"HTTP {response.status_code}"
    if error.get("type") == "exceed_context_size_error":
        return Said(failure="too-long", detail=f"the prompt is longer than the context: {message}")
    if "does not match the expected" in message or "Failed to parse" in message:
        return Said(failure="unparsed", detail=message)
    return Said(failure="refused", detail=f"the server refused: {message}")


def post(client: httpx.Client, server: Server, url: str, body: dict[str, Any]) -> httpx.Response:
    """One request. Raises PillmError if the server is gone or does not come back within the time."""
    try:
        return client.post(url, json=body)
    except httpx.TransportError as error:
        what = str(error) or type(error).__name__
        raise PillmError(f"llama-server stopped answering ({what})", f"its log is {server.log}") from error


def _messages(prompt: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns as the OpenAI interface takes them: the arguments of earlier calls are JSON text."""
    turns: list[dict[str, Any]] = plain(prompt)
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return turns


def _error(response: httpx.Response) -> dict[str, Any]:
    try:
        error = response.json().get("error")
    except (ValueError, AttributeError):
        return {"message": response.text}
    return error if isinstance(error, dict) else {"message": str(error)}


def _said(response: httpx.Response) -> Said:
    try:
        choice = response.json()["choices"][0]
        message = choice["message"]
        content = message.get("content") or ""
        calls = tuple(
            Call(call["function"]["name"], _arguments(call["function"]["arguments"]))
            for call in message.get("tool_calls") or ()
        )
    except (ValueError, LookupError, TypeError) as error:
        raise PillmError(
            f"llama-server's answer is not a chat completion: {response.text[:200]}",
            "use the pinned llama.cpp: unset PILLM_LLAMACPP_DIR",
        ) from error
    if choice.get("finish_reason") == "length":
        return Said(content, calls, "cut", "the answer was longer than max_tokens")
    return Said(content, calls)


def _arguments(text: str | dict[str, Any]) -> dict[str, Any] | str:
    if isinstance(text, dict):
        return text
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
