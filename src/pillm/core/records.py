"""One line of a dataset: an OpenAI-style dialogue, as TRL takes it.

    {"id": "...", "messages": [...], "tools": [...], "response_schema": {...}, "locale": "fr-CA",
     "register": "informal", "tags": [...], "source": "...", "license": "..."}

Tool-call arguments are an object, not a string of JSON. A record whose last message is the
user's (or a tool's) is a prompt that is still to be labelled.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Role = Literal["system", "developer", "user", "assistant", "tool"]


class FunctionCall(msgspec.Struct, frozen=True):
    """The function an assistant calls, with its arguments as an object."""

    name: str
    arguments: dict[str, Any]


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call of one tool."""

    function: FunctionCall
    type: Literal["function"] = "function"
    id: str | None = None


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn."""

    role: Role
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


class Function(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that may be called; `parameters` is a JSON Schema of an object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class Tool(msgspec.Struct, frozen=True):
    """A declared tool."""

    function: Function
    type: Literal["function"] = "function"


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One dialogue with what is known of it."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    response_schema: dict[str, Any] | None = None
    locale: str = ""
    register: str = ""
    tags: tuple[str, ...] = ()
    source: str = ""
    license: str = ""
    meta: dict[str, Any] = {}

    @property
    def is_prompt(self) -> bool:
        """Whether the assistant's answer is still missing."""
        return self.messages[-1].role in ("user", "tool")


_encoder = msgspec.json.Encoder()
decoder = msgspec.json.Decoder(Record)


def encode(record: Record) -> bytes:
    """The record as one line of JSON, without the newline. Tuples become arrays; defaults are left out."""
    return _encoder.encode(record)


def plain(value: Any) -> Any:
    """Messages, tools or records as dicts and lists, as chat templates and HTTP clients take them.

    The constant `type: "function"` is written out, since templates and servers look for it.
    """
    builtin = msgspec.to_builtins(value)
    return _with_types(builtin)


def _with_types(value: Any) -> Any:
    if isinstance(value, dict):
        value = {key: _with_types(item) for key, item in value.items()}
        if "function" in value and isinstance(value["function"], dict):
            value.setdefault("type", "function")
        return value
    if isinstance(value, list | tuple):
        return [_with_types(item) for item in value]
    return value
