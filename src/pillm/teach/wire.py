"""The OpenAI-compatible chat API in bytes: records to requests, responses to replies."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from pillm.core.records import Record, plain
from pillm.teach.ask import Ask, Call, Reason, Reply, with_schema


class How(msgspec.Struct, frozen=True):
    """How is asked: with the server's schema support, or the schema in the prompt; with log-probabilities or without."""

    structured: bool = True
    logprobs: bool = False


class _Function(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct):
    function: _Function


class _Message(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None
    refusal: str | None = None


class _Token(msgspec.Struct):
    logprob: float | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def request(ask: Ask, model: str, extra: dict[str, object], how: How = How()) -> dict[str, Any]:  # noqa: B008
    """The body of a chat completion request for one prompt."""
    sampling, record = ask.sampling, ask.record
    if not how.structured and record.response_schema is not None:
        record = msgspec.structs.replace(record, messages=with_schema(record), response_schema=None)
    body: dict[str, Any] = {
        "model": model,
        "messages": messages(record),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        **extra,
    }
    if how.logprobs:
        # llama-server gives none for top_logprobs 0.
        body |= {"logprobs": True, "top_logprobs": 1}
    if record.tools:
        body["tools"] = plain(record.tools)
    if record.response_schema is not None:
        # Not strict: strict servers refuse most schemas; whether the answer fits is checked here anyway.
        schema = {"name": "answer", "schema": record.response_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def messages(record: Record) -> list[dict[str, Any]]:
    """The dialogue as servers take it: arguments as JSON text, and an id on each call and its result.

    Records may leave the ids out; then results belong to the calls before them in order.
    """
    result: list[dict[str, Any]] = []
    waiting: list[str] = []
    for index, message in enumerate(record.messages):
        wire = plain(message)
        wire.setdefault("content", None if wire.get("tool_calls") else "")
        for number, call in enumerate(wire.get("tool_calls", [])):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            call["id"] = call.get("id") or f"call_{index}_{number}"
            waiting.append(call["id"])
        if message.role == "tool":
            wire["tool_call_id"] = message.tool_call_id or (waiting[0] if waiting else f"call_{index}")
            if wire["tool_call_id"] in waiting:
                waiting.remove(wire["tool_call_id"])
        result.append(wire)
    return result


def reply(body: bytes) -> Reply:
    """What a 200 response says. Raises msgspec.MsgspecError or UnicodeDecodeError if it is no chat completion."""
    completion = msgspec.json.decode(body, type=_Completion)
    if not completion.choices:
        raise msgspec.ValidationError("it has no choices")
    choice, usage = completion.choices[0], completion.usage or _Usage()
    message = choice.message
    refused = Reason("refused", f"the teacher refuses: {message.refusal[:200]}") if message.refusal else None
    return Reply(
        content=message.content or "",
        calls=tuple(_call(call.function) for call in message.tool_calls or []),
        finish=choice.finish_reason or "stop",
        tokens_in=usage.prompt_tokens,
        tokens_out=usage.completion_tokens,
        failure=refused,
        logprob=_mean(choice.logprobs),
    )


def _mean(given: _Logprobs | None) -> float | None:
    tokens = [token.logprob for token in (given.content if given else None) or []]
    known = [logprob for logprob in tokens if logprob is not None]
    return sum(known) / len(known) if known and len(known) == len(tokens) else None


def _call(function: _Function) -> Call:
    arguments = function.arguments
    return Call(function.name, arguments if isinstance(arguments, str) else json.dumps(arguments or {}))


def models(body: bytes) -> list[str]:
    """Ids in the answer to GET /models. Raises msgspec.MsgspecError if it is something else."""
    return [model.id for model in msgspec.json.decode(body, type=_Models).data]


def error_message(body: bytes) -> tuple[str, str]:
    """Type or code, and message, of an error's body, whatever its form; the message has one line."""
    kind = ""
    try:
        value = msgspec.json.decode(body)
        error = value.get("error", value)
        if isinstance(error, dict):
            kind = " ".join(str(error[name]) for name in ("type", "code") if error.get(name))
            error = error.get("message") or error.get("detail") or ""
        text = str(error)
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError):
        text = body.decode("utf-8", "replace")
    return kind, " ".join(text.split())[:300]
