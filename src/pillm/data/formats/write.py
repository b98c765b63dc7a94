"""Records as other tools read them: TRL, axolotl, LLaMA-Factory, plain ShareGPT, Hermes function calling.

What stands beside the dialogue goes along in columns of its own, which all of these leave alone: texts as
they are, `response_schema` and `meta` as JSON in a text, since a column of Arrow needs one type throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from pillm.core import records
from pillm.core.records import Message, Record, Tool, ToolCall
from pillm.data.formats import hermes
from pillm.data.formats.names import OBSERVATIONS, PLAIN_FIELDS, Lost, Misfit

TRAINED = ("trl", "axolotl", "llama-factory")
"""Formats that are only ever trained on, so that a prompt without an answer has no place there."""
_encode = msgspec.json.encode


def encoded(record: Record, to: str, lost: Lost) -> bytes:
    """The record as JSON in the format `to`, with `id` as its first key. Raises Misfit if the format cannot hold it;
    what it cannot hold of the rest is counted in `lost`.
    """
    if to == "pillm":
        return records.encode(record)
    beside: dict[str, Any] = {name: value for name in PLAIN_FIELDS if (value := getattr(record, name))}
    if record.tags:
        beside["tags"] = record.tags
    if record.response_schema is not None:
        beside["response_schema"] = _text(record.response_schema)
    if record.meta:
        beside["meta"] = _text(record.meta)
    return _encode({"id": record.id} | _WRITERS[to](record, lost) | beside)


def dataset_info(name: str, file: str) -> str:
    """What LLaMA-Factory's dataset_info.json must say of the file, as JSON."""
    columns = {"messages": "conversations", "tools": "tools"}
    entry = {name: {"file_name": file, "formatting": "sharegpt", "columns": columns}}
    return msgspec.json.format(_encode(entry), indent=2).decode()


def _trl(record: Record, lost: Lost) -> dict[str, Any]:
    return _chat(record, lambda arguments: arguments)


def _axolotl(record: Record, lost: Lost) -> dict[str, Any]:
    # axolotl reads JSON in a text for just these two, so that records with other keys fit one Arrow column.
    return _chat(record, _text)


def _chat(record: Record, form: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"messages": [_message(message, form) for message in record.messages]}
    if record.tools:
        made["tools"] = [
            {"type": "function", "function": _function(tool) | {"parameters": form(tool.function.parameters)}}
            for tool in record.tools
        ]
    return made


def _message(message: Message, form: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role}
    if message.content is not None:
        made["content"] = message.content
    if message.tool_calls:
        made["tool_calls"] = [_call(call, form) for call in message.tool_calls]
    for name in ("tool_call_id", "name"):
        if (value := getattr(message, name)) is not None:
            made[name] = value
    return made


def _call(call: ToolCall, form: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": form(call.function.arguments)}
    return ({"id": call.id} if call.id is not None else {}) | {"type": "function", "function": function}


def _function(tool: Tool) -> dict[str, Any]:
    function = tool.function
    return {"name": function.name, "description": function.description, "parameters": function.parameters}


def _sharegpt(record: Record, lost: Lost) -> dict[str, Any]:
    turns: list[dict[str, str]] = []
    for message in record.messages:
        _count_lost(message, lost, with_name=True)
        if message.role == "assistant":
            if message.content:
                turns.append({"from": "gpt", "value": message.content})
            if message.tool_calls:
                turns.append({"from": "function_call", "value": _calls_text(message)})
        else:
            speaker = {"user": "human", "tool": "observation"}.get(message.role, "system")
            turns.append({"from": speaker, "value": message.content or ""})
    tools = [_function(tool) for tool in record.tools]
    return {"conversations": turns} | ({"tools": _text(tools)} if tools else {})


def _llama_factory(record: Record, lost: Lost) -> dict[str, Any]:
    """As `SharegptDatasetConverter` takes it: a system turn, then by turns one who asks and the assistant."""
    turns: list[dict[str, str]] = []
    for index, message in enumerate(record.messages):
        path = f"$.messages[{index}]"
        _count_lost(message, lost, with_name=True)
        if message.role in ("system", "developer"):
            if index:
                raise Misfit(path, "LLaMA-Factory takes a system turn only at the beginning")
            turns.append({"from": "system", "value": message.content or ""})
            continue
        if message.role == "assistant" and message.tool_calls and message.content:
            raise Misfit(path, "LLaMA-Factory's turns hold a text or calls, not both")
        if message.role == "assistant":
            calls = bool(message.tool_calls)
            turn = (
                {"from": "function_call", "value": _calls_text(message)}
                if calls
                else {"from": "gpt", "value": message.content or ""}
            )
        else:
            turn = {"from": "human" if message.role == "user" else "observation", "value": message.content or ""}
        before = turns[-1] if turns else {"from": "system"}
        if turn["from"] == "observation" and before["from"] == "observation":
            before["value"] += OBSERVATIONS + turn["value"]
            continue
        if (turn["from"] in ("gpt", "function_call")) != (before["from"] in ("human", "observation")):
            raise Misfit(
                path,
                f"LLaMA-Factory takes no turn of the {message.role} here: who asks and the assistant must take turns",
            )
        turns.append(turn)
    tools = [_function(tool) for tool in record.tools]
    for tool in tools:
        # Its templates look for the properties of every tool.
        tool["parameters"] = {"type": "object", "properties": {}} | tool["parameters"]
    # The column is named in dataset_info.json, so that it must be there in every record.
    return {"conversations": turns, "tools": _text(tools) if tools else ""}


def _hermes(record: Record, lost: Lost) -> dict[str, Any]:
    turns: list[dict[str, str]] = []
    tools = [{"type": "function", "function": _function(tool)} for tool in record.tools]
    system = ""
    for index, message in enumerate(record.messages):
        path = f"$.messages[{index}]"
        content = message.content or ""
        _count_lost(message, lost, with_name=message.role != "tool")
        if message.role in ("system", "assistant") and any(tag in content for tag in hermes.TAGS):
            raise Misfit(path, "the text holds one of Hermes' own tags")
        if message.role in ("system", "developer"):
            if index:
                raise Misfit(path, "Hermes takes a system turn only at the beginning")
            system = content
        elif message.role == "tool":
            text = hermes.response_text(message)
            if turns and turns[-1]["from"] == "tool":
                turns[-1]["value"] += "\n" + text
            else:
                turns.append({"from": "tool", "value": text})
        elif message.role == "assistant":
            turns.append({"from": "gpt", "value": hermes.assistant_text(message)})
        else:
            turns.append({"from": "human", "value": content})
    if text := hermes.system_text(system, tools):
        turns.insert(0, {"from": "system", "value": text})
    return {"conversations": turns}


def _count_lost(message: Message, lost: Lost, with_name: bool) -> None:
    if message.role == "developer":
        lost["the role developer (written as system)"] += 1
    if message.tool_call_id is not None:
        lost["a message's `tool_call_id`"] += 1
    if with_name and message.name is not None:
        lost["a message's `name`"] += 1
    if ids := sum(call.id is not None for call in message.tool_calls):
        lost["a call's `id`"] += ids


def _calls_text(message: Message) -> str:
    calls = [{"name": call.function.name, "arguments": call.function.arguments} for call in message.tool_calls]
    return _text(calls[0] if len(calls) == 1 else calls)


def _text(value: Any) -> str:
    return _encode(value).decode()


_WRITERS: dict[str, Callable[[Record, Lost], dict[str, Any]]] = {
    "trl": _trl,
    "axolotl": _axolotl,
    "llama-factory": _llama_factory,
    "sharegpt": _sharegpt,
    "hermes": _hermes,
}
