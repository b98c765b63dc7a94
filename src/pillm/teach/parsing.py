"""What a model wrote, read as content and tool calls. Servers do this themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Set

from pillm.teach.ask import Call

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)


def parse(text: str, tools: Set[str]) -> tuple[str, tuple[Call, ...]]:
    """Content and tool calls of what a model wrote; `tools` are the declared names.

    Read are calls in the Hermes form (`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`), and an
    answer that is nothing but such an object with a declared name, as Llama 3 writes it. A thinking
    model's thoughts and the fence around an answer that is one block of code are left out.
    """
    text = _THOUGHT.sub("", text).strip()
    calls = [_call(body) for body in _CALL.findall(text)]
    if calls:
        # What is no JSON stays a call, so that the answer is rejected for its arguments.
        rest = _CALL.sub("", text).strip()
        return rest, (*calls, Call("", rest)) if "tool_call>" in rest else tuple(calls)
    if "<tool_call>" in text:
        return "", (Call("", text),)
    if text.startswith("{") and (call := _call(text)).name in tools:
        return "", (call,)
    if fenced := _FENCE.match(text):
        return fenced[1].strip(), ()
    return text, ()


def _call(body: str) -> Call:
    try:
        value = json.loads(body)
    except (json.JSONDecodeError, RecursionError):
        return Call("", body)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return Call("", body)
    arguments = value.get("arguments", value.get("parameters"))
    if arguments is None:
        return Call("", body)
    return Call(value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
