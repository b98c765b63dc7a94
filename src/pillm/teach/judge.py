"""Is the answer any good? Checks that need no second model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jsonschema_rs
import msgspec

from pillm.core.records import FunctionCall, Message, Record, ToolCall
from pillm.teach.ask import Call, Reason, Reply

LOOP_REPEATS = 4
LOOP_CHARACTERS = 80
LOOP_WORDS = 64
LOOP_DISTINCT = 0.25


def judge(record: Record, reply: Reply) -> tuple[Message | None, tuple[Reason, ...]]:
    """The answer as an assistant's turn (None if there is none), and all that is wrong with it.

    Tool calls come out with their arguments as objects; a call whose arguments are no JSON object is
    left out of the turn and named among the reasons. Servers' call ids are dropped: they are random,
    and nothing follows that refers to them.
    """
    if reply.failure:
        return None, (reply.failure,)
    reasons: list[Reason] = []
    content = reply.content.strip()
    if reply.finish == "length":
        reasons.append(Reason("cut-off", "the answer was cut off at max_tokens or at the end of the context"))
    elif reply.finish == "content_filter":
        reasons.append(Reason("filtered", "the server's content filter cut the answer"))
    calls: list[ToolCall] = []
    for call in reply.calls:
        arguments, wrong = _arguments(record, call)
        reasons += wrong
        if arguments is not None:
            calls.append(ToolCall(FunctionCall(call.name, arguments)))
    if not content and not reply.calls:
        reasons.append(Reason("empty", "the answer is empty"))
    elif record.response_schema is not None and not reply.calls:
        reasons += _fits(content, record.response_schema)
    if loops(content):
        reasons.append(Reason("loops", "the answer repeats itself without end"))
    message = Message("assistant", content or None, tuple(calls)) if content or calls else None
    return message, tuple(reasons)


def _arguments(record: Record, call: Call) -> tuple[dict[str, Any] | None, list[Reason]]:
    if not call.name:
        return None, [Reason("bad-call", f"a tool call cannot be read: {call.arguments[:200]}")]
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return None, [Reason("bad-arguments", f"the arguments of {call.name} are not JSON")]
    if not isinstance(arguments, dict):
        return None, [Reason("bad-arguments", f"the arguments of {call.name} are not an object")]
    declared = {tool.function.name: tool.function for tool in record.tools}
    if call.name not in declared:
        known = ", ".join(declared) or "none"
        return arguments, [Reason("unknown-tool", f"{call.name} is not a declared tool (declared: {known})")]
    errors = _errors(declared[call.name].parameters, arguments)
    return arguments, [Reason("bad-arguments", f"the arguments of {call.name} do not fit: {error}") for error in errors]


def _fits(content: str, schema: dict[str, Any]) -> list[Reason]:
    try:
        value = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError):
        return [Reason("not-json", "a schema asks for JSON, and the answer is not JSON")]
    return [Reason("schema", f"the answer does not fit the schema: {error}") for error in _errors(schema, value)]


def _errors(schema: dict[str, Any], value: Any, most: int = 3) -> Iterator[str]:
    for index, error in enumerate(_validator(msgspec.json.encode(schema, order="sorted")).iter_errors(value)):
        if index == most:
            return
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
        yield f"${place}: {error.message}"


@lru_cache(1024)
def _validator(schema: bytes) -> jsonschema_rs.Validator:
    # offline: a $ref in somebody's dataset must not make this machine fetch an address.
    return jsonschema_rs.validator_for(msgspec.json.decode(schema), offline=True)


def schema_errors(record: Record) -> Iterator[tuple[str, str]]:
    """JSONPath and message of each schema in a record that is not a schema."""
    schemas = [("$.response_schema", record.response_schema)] if record.response_schema is not None else []
    schemas += [(f"$.tools[{i}].function.parameters", tool.function.parameters) for i, tool in enumerate(record.tools)]
    for path, schema in schemas:
        try:
            _validator(msgspec.json.encode(schema, order="sorted"))
        except ValueError as error:
            yield path, getattr(error, "message", None) or str(error).partition("\n")[0]


def loops(text: str) -> bool:
    """Whether the text ends in the same piece again and again, or says little in many words.

    The first: a tail of at least LOOP_CHARACTERS made of LOOP_REPEATS or more copies of one piece. The
    second: of LOOP_WORDS or more words, fewer than LOOP_DISTINCT of the runs of four words are distinct.
    """
    for period in range(1, len(text) // LOOP_REPEATS + 1):
        needed = max(period * LOOP_REPEATS, LOOP_CHARACTERS) - period
        if needed + period > len(text):
            break
        tail = text[len(text) - needed - period :]
        if tail[period:] == tail[:-period]:
            return True
    words = text.split()
    if len(words) < LOOP_WORDS:
        return False
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(set(runs)) < LOOP_DISTINCT * len(runs)
