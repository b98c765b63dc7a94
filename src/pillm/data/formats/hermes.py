"""How Hermes function calling stands in the text of a dialogue (NousResearch/hermes-function-calling-v1).

Tools are declared in the system turn between <tools> tags, calls are made between <tool_call> tags, and results
come back between <tool_response> tags; inside of each is JSON.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from pillm.core.records import Message
from pillm.data.formats.names import Misfit, parsed

_BEFORE = (
    "You are a function calling AI model. You are provided with function signatures within <tools> </tools> XML tags. "
    "You may call one or more functions to assist with the user query. Don't make assumptions about what values to plug "
    "into functions.\n<tools>\n"
)
_AFTER = (
    "\n</tools>\nFor each function call return a json object with function name and arguments within <tool_call> "
    "</tool_call> tags with the following schema:\n<tool_call>\n{'arguments': <args-dict>, 'name': <function-name>}\n"
    "</tool_call>\n"
)
TAGS = ("<tools>", "<tool_call>", "<tool_response>")
# The instructions are worded in several ways; what they have in common is enough to know them by.
_OPENING = "You are a function calling AI model."
_BEFORE_TOOLS = re.compile(rf"{re.escape(_OPENING)}[^<]*(?:<tools>\s*</tools>[^<]*)?")
_AFTER_TOOLS = re.compile(
    r"\s*(?:Use the following pydantic model|For each function call)[^<]*(?:<tool_call>\s*</tool_call>[^<]*)?"
    r"(?:<tool_call>.*?</tool_call>\n?)?",
    re.DOTALL,
)
_encode = msgspec.json.encode


def system_text(own: str, tools: list[dict[str, Any]]) -> str:
    """The system turn: its own text, then the tools with the instructions."""
    if not tools:
        return own
    return (own + "\n\n" if own else "") + _BEFORE + _json(tools, "tools") + _AFTER


def split_system(text: str, path: str) -> tuple[str, list[Any]]:
    """The system turn's own text, and the tools that it declares. Raises Misfit if these are no JSON."""
    block = next((found for found in _blocks(text, "tools") if found.inner[:1] in ("[", "{")), None)
    if not block:
        return text, []
    try:
        tools = msgspec.json.decode(block.inner)
    except msgspec.DecodeError:
        # Some write one tool a line.
        tools = [parsed(line, path) for line in block.inner.splitlines() if line.strip()]
    before, after = text[: block.start], text[block.end :]
    opening = before.rfind(_OPENING)
    if opening >= 0 and _BEFORE_TOOLS.fullmatch(before, opening):
        before = before[:opening]
    if match := _AFTER_TOOLS.match(after):
        after = after[match.end() :]
    own = before + after if after.strip() else before.removesuffix("\n\n")
    return own, tools if isinstance(tools, list) else [tools]


def assistant_text(message: Message) -> str:
    """The assistant's text, then its calls."""
    calls = [
        _tagged({"name": call.function.name, "arguments": call.function.arguments}, "tool_call")
        for call in message.tool_calls
    ]
    return "\n".join(([message.content] if message.content else []) + calls)


def split_calls(text: str, path: str) -> tuple[str | None, list[Any]]:
    """The assistant's text before its calls (None if there is none), and the calls as they stand there."""
    blocks = list(_blocks(text, "tool_call"))
    if not blocks:
        return text, []
    between = [text[one.end : other.start] for one, other in itertools.pairwise(blocks)]
    if any(part.strip() for part in (*between, text[blocks[-1].end :])):
        raise Misfit(path, "there is text after a <tool_call>, which a record cannot hold")
    return text[: blocks[0].start].removesuffix("\n") or None, [_loose(block.inner, path) for block in blocks]


def response_text(message: Message) -> str:
    """A tool's result. What is JSON is put in as it is, everything else as text."""
    content: Any = message.content or ""
    try:
        inner = msgspec.json.decode(content)
        # Only what comes back letter by letter.
        if isinstance(inner, dict | list) and _encode(inner).decode() == content:
            content = msgspec.Raw(content.encode())
    except (msgspec.DecodeError, RecursionError):
        pass
    named = {"name": message.name} if message.name else {}
    return _tagged({**named, "content": content}, "tool_response")


def split_responses(text: str, path: str) -> list[dict[str, Any]]:
    """The results in a tool's turn, as messages."""
    found = []
    for inner in [block.inner for block in _blocks(text, "tool_response")] or [text]:
        try:
            value = _loose(inner, path)
        except Misfit:
            value = inner
        if isinstance(value, dict) and "content" in value and value.keys() <= {"name", "content", "tool_call_id"}:
            content = value["content"]
            message = {"role": "tool", "content": content if isinstance(content, str) else _encode(content).decode()}
            for key in ("name", "tool_call_id"):
                if isinstance(value.get(key), str):
                    message[key] = value[key]
        else:
            message = {"role": "tool", "content": inner}
        found.append(message)
    return found


class _Block(NamedTuple):
    """A tag, what is in it (without blanks around), and its end."""

    start: int
    end: int
    inner: str


def _blocks(text: str, tag: str) -> Iterator[_Block]:
    begin, end = f"<{tag}>", f"</{tag}>"
    start = text.find(begin)
    while start >= 0 and (stop := text.find(end, start)) >= 0:
        yield _Block(start, stop + len(end), text[start + len(begin) : stop].strip())
        start = text.find(begin, stop)


def _tagged(value: Any, tag: str) -> str:
    return f"<{tag}>\n{_json(value, tag)}\n</{tag}>"


def _json(value: Any, tag: str) -> str:
    # The tag's own end would end it too early; JSON knows another way to write a slash.
    return _encode(value).decode().replace(f"</{tag}>", f"<\\/{tag}>")


def _loose(text: str, path: str) -> Any:
    """JSON, or the Python literals that some of the data has in its place."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = ast.literal_eval(text)
        # Python has values that JSON does not know.
        return json.loads(json.dumps(value, allow_nan=False))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise Misfit(path, f"{text[:60]!r} is no JSON") from error
