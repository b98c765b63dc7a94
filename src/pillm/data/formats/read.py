"""Records of other tools' formats, read as pillm's: chat messages, flat, ShareGPT, Hermes function calling.

Chat messages are what pillm, TRL, axolotl and OpenAI's fine-tuning have; tools, schemas and arguments may be
objects or JSON in a text. A record's field that pillm does not know goes to `meta`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from pillm.core.records import Record
from pillm.data.formats import hermes
from pillm.data.formats.names import OBSERVATIONS, PLAIN_FIELDS, Lost, Misfit, parsed
from pillm.data.validation.structure import kind

UNNAMED = "\0"
"""The id of a record that has none."""
_ROLES = ("system", "developer", "user", "assistant", "tool")
_SPEAKERS = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant",
    "system": "system", "developer": "developer", "function_call": "call",
    "observation": "tool", "tool": "tool", "function_response": "tool",
}  # fmt: skip
_encode = msgspec.json.encode


def record(value: Any, source: str, lost: Lost) -> Record:
    """The record that `value`, the JSON of a line, stands for in the format `source` ("auto" looks at it).

    Raises Misfit if it cannot be read; what has no place in a record is counted in `lost`.
    """
    if not isinstance(value, dict):
        raise Misfit("$", f"this is {kind(value)}, not an object")
    made = _READERS[_form(value) if source == "auto" else source](value, lost)
    made.setdefault("id", UNNAMED)
    try:
        result = msgspec.convert(made, Record)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `")
        raise Misfit(where.rstrip("`") or "$", message) from error
    if not result.messages:
        raise Misfit("$", "there are no messages")
    for index, message in enumerate(result.messages):
        if not message.content and not message.tool_calls:
            raise Misfit(f"$.messages[{index}]", f"the {message.role}'s message is empty")
    return result


def _form(value: dict[str, Any]) -> str:
    if "messages" in value:
        return "pillm"
    if "conversations" in value or "conversation" in value:
        turns = value.get("conversations") or value.get("conversation")
        return "hermes" if isinstance(turns, list) and any(_is_tagged(turn) for turn in turns) else "sharegpt"
    if "user" in value:
        return "flat"
    known = ", ".join(sorted(value)[:8])
    raise Misfit("$", f"there is none of `messages`, `conversations` and `user`, only: {known or 'nothing'}")


def _is_tagged(turn: Any) -> bool:
    """Whether Hermes' tags stand in a turn. (LLaMA-Factory has one between an observation's parts.)"""
    text = _said(turn) if isinstance(turn, dict) else None
    if not isinstance(text, str) or turn.get("from") in ("observation", "human", "user"):
        return False
    return any(tag in text for tag in hermes.TAGS)


def _messages(value: dict[str, Any], lost: Lost) -> dict[str, Any]:
    given = value.get("messages")
    turns = parsed(given, "$.messages") if isinstance(given, str) else given
    if not isinstance(turns, list):
        raise Misfit("$.messages", f"this is {kind(turns)}, not an array")
    messages = [_message(turn, f"$.messages[{index}]", lost) for index, turn in enumerate(turns)]
    return _rest(value, {"messages", "tools"}, lost) | {"messages": messages, "tools": _tools(value, lost)}


def _message(turn: Any, path: str, lost: Lost) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise Misfit(path, f"this is {kind(turn)}, not an object")
    role = "tool" if turn.get("role") == "function" else turn.get("role")
    if role not in _ROLES:
        raise Misfit(f"{path}.role", f"there is no role {role!r}" if isinstance(role, str) else "the role is no text")
    made: dict[str, Any] = {"role": role}
    if (content := _content(turn.get("content"), f"{path}.content")) is not None:
        made["content"] = content
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if not isinstance(calls, list):
        raise Misfit(f"{path}.tool_calls", f"this is {kind(calls)}, not an array")
    if calls:
        made["tool_calls"] = [_call(call, f"{path}.tool_calls[{number}]", lost) for number, call in enumerate(calls)]
    for key, item in turn.items():
        if key in ("tool_call_id", "name"):
            if item is not None:
                made[key] = item
        elif item is not None and key not in ("role", "content", "tool_calls", "function_call"):
            lost[f"a message's `{key}`"] += 1
    return made


def _content(content: Any, path: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Misfit(path, f"this is {kind(content)}, not text")
    parts = []
    for number, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            raise Misfit(f"{path}[{number}]", "only parts of text can be read")
        parts.append(text)
    return "".join(parts)


def _call(call: Any, path: str, lost: Lost) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise Misfit(path, f"this is {kind(call)}, not an object with name and arguments")
    function = _function(call)
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise Misfit(f"{path}.name", "the call has no name")
    if isinstance(arguments, str):
        arguments = parsed(arguments, f"{path}.arguments") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise Misfit(f"{path}.arguments", f"the arguments are {kind(arguments)}, not an object")
    for key in {**call, **function}.keys() - {"id", "type", "function", "name", "arguments"}:
        lost[f"a call's `{key}`"] += 1
    made = {"function": {"name": name, "arguments": arguments}}
    return made | ({"id": call["id"]} if call.get("id") is not None else {})


def _tools(value: dict[str, Any], lost: Lost) -> list[dict[str, Any]]:
    return _declared(value.get("tools"), "$.tools", lost)


def _declared(tools: Any, path: str, lost: Lost) -> list[dict[str, Any]]:
    if isinstance(tools, str):
        tools = parsed(tools, path) if tools.strip() else []
    if not tools:
        return []
    found = []
    for number, tool in enumerate(tools if isinstance(tools, list) else [tools]):
        where = f"{path}[{number}]"
        tool = parsed(tool, where) if isinstance(tool, str) else tool
        if not isinstance(tool, dict):
            raise Misfit(where, f"this is {kind(tool)}, not an object")
        function = _function(tool)
        if not isinstance(function.get("name"), str):
            raise Misfit(f"{where}.name", "the tool has no name")
        parameters = function.get("parameters")
        if isinstance(parameters, str):
            parameters = parsed(parameters, f"{where}.parameters")
        for key, item in {**tool, **function}.items():
            if item is not None and key not in ("type", "function", "name", "description", "parameters"):
                lost[f"a tool's `{key}`"] += 1
        made = {"name": function["name"], "description": function.get("description") or ""}
        found.append({"function": made | {"parameters": {} if parameters is None else parameters}})
    return found


def _function(value: dict[str, Any]) -> dict[str, Any]:
    """What a call or a tool says, with or without its `function` around it."""
    function = value.get("function")
    return function if isinstance(function, dict) else value


def _said(turn: dict[str, Any]) -> Any:
    return turn["value"] if "value" in turn else turn.get("content")


def _sharegpt(value: dict[str, Any], lost: Lost) -> dict[str, Any]:
    return _conversation(value, lost, tagged=False)


def _hermes(value: dict[str, Any], lost: Lost) -> dict[str, Any]:
    return _conversation(value, lost, tagged=True)


def _conversation(value: dict[str, Any], lost: Lost, tagged: bool) -> dict[str, Any]:
    field = "conversations" if "conversations" in value else "conversation"
    turns = value.get(field)
    if not isinstance(turns, list):
        raise Misfit(f"$.{field}", f"this is {kind(turns)}, not an array")
    messages: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] = []
    if isinstance(system := value.get("system"), str) and system:
        turns = [{"from": "system", "value": system}, *turns]
    for index, turn in enumerate(turns):
        path = f"$.{field}[{index - (len(turns) - len(value[field]))}]"
        if not isinstance(turn, dict):
            raise Misfit(path, f"this is {kind(turn)}, not an object")
        speaker = turn.get("from", turn.get("role"))
        role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise Misfit(f"{path}.from", f"there is no speaker {speaker!r}; known are {', '.join(_SPEAKERS)}")
        for key, item in turn.items():
            if item is not None and key not in ("from", "role", "value", "content"):
                lost[f"a turn's `{key}`"] += 1
        text = _said(turn)
        if role == "call":
            _add_calls(messages, text, path, lost)
            continue
        if not isinstance(text, str):
            raise Misfit(f"{path}.value", f"this is {kind(text)}, not text")
        if role == "system" and tagged:
            text, declared = hermes.split_system(text, f"{path}.value")
            tools += _declared(declared, f"{path}.value", lost)
            if text:
                messages.append({"role": "system", "content": text})
        elif role == "assistant" and tagged:
            content, calls = hermes.split_calls(text, f"{path}.value")
            made = {"role": role} | ({"content": content} if content is not None else {})
            made |= {"tool_calls": [_call(call, f"{path}.value", lost) for call in calls]} if calls else {}
            messages.append(made)
        elif role == "tool":
            messages += (
                hermes.split_responses(text, f"{path}.value")
                if tagged
                else [{"role": "tool", "content": part} for part in text.split(OBSERVATIONS)]
            )
        else:
            messages.append({"role": role, "content": text})
    tools = tools or _tools(value, lost)
    return _rest(value, {field, "tools", "system"}, lost) | {"messages": messages, "tools": tools}


def _add_calls(messages: list[dict[str, Any]], text: Any, path: str, lost: Lost) -> None:
    given = parsed(text, f"{path}.value") if isinstance(text, str) else text
    calls = [_call(call, f"{path}.value", lost) for call in (given if isinstance(given, list) else [given])]
    if messages and messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
        # Text and calls of one message stand in two turns.
        messages[-1]["tool_calls"] = calls
    else:
        messages.append({"role": "assistant", "tool_calls": calls})


def _flat(value: dict[str, Any], lost: Lost) -> dict[str, Any]:
    """`user`, `system_hint`, `assistant`, `tool_schema`, `requires_json`.

    `tool_schema` is a tool or a list of tools; or else a JSON Schema that the answer must fit if it
    `requires_json`, and is kept in `meta` otherwise.
    """
    made = _rest(value, {"user", "system_hint", "assistant", "tool_schema", "requires_json"}, lost)
    user, hint, answer = value.get("user"), value.get("system_hint"), value.get("assistant")
    if not isinstance(user, str) or not user.strip():
        raise Misfit("$.user", "the user says nothing")
    if hint is not None and not isinstance(hint, str):
        raise Misfit("$.system_hint", f"this is {kind(hint)}, not text")
    wants_json = value.get("requires_json")
    if wants_json is not None and not isinstance(wants_json, bool):
        raise Misfit("$.requires_json", f"this is {kind(wants_json)}, not true or false")
    messages: list[dict[str, Any]] = [{"role": "system", "content": hint}] if hint else []
    messages.append({"role": "user", "content": user})
    schema = value.get("tool_schema")
    if isinstance(schema, str):
        schema = parsed(schema, "$.tool_schema") if schema.strip() else None
    is_tool = isinstance(schema, list) or (isinstance(schema, dict) and ("function" in schema or "name" in schema))
    tools = _declared(schema, "$.tool_schema", lost) if is_tool else []
    if schema and not is_tool:
        if not isinstance(schema, dict):
            raise Misfit("$.tool_schema", f"this is {kind(schema)}, not an object")
        if wants_json:
            made["response_schema"] = schema
        else:
            made["meta"] = {"tool_schema": schema} | made.get("meta", {})
    elif wants_json and not tools:
        made["response_schema"] = {}
    if answer not in (None, ""):
        messages.append(_answer(answer, {tool["function"]["name"] for tool in tools}, bool(wants_json), lost))
    return made | {"messages": messages, "tools": tools}


def _answer(answer: Any, tools: set[str], wants_json: bool, lost: Lost) -> dict[str, Any]:
    inner = answer
    if isinstance(answer, str) and (wants_json or tools):
        try:
            inner = msgspec.json.decode(answer)
        except (msgspec.DecodeError, RecursionError) as error:
            if wants_json:
                raise Misfit("$.assistant", "requires_json is true, and the answer is no JSON") from error
    calls = inner if isinstance(inner, list) else [inner]
    if tools and calls and all(_is_call(call, tools) for call in calls):
        return {"role": "assistant", "tool_calls": [_call(call, "$.assistant", lost) for call in calls]}
    if not isinstance(answer, str):
        answer = _encode(answer).decode()
    return {"role": "assistant", "content": answer}


def _is_call(value: Any, tools: set[str]) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and value["name"] in tools


def _rest(value: dict[str, Any], used: set[str], lost: Lost) -> dict[str, Any]:
    """Everything beside the dialogue. Fields that are null are not there."""
    made: dict[str, Any] = {}
    meta = _object(value.get("meta"), "$.meta") or {}
    for key, item in value.items():
        if item is None or key in used or key == "meta":
            continue
        if key == "id" and isinstance(item, str | int) and not isinstance(item, bool):
            made["id"] = str(item)
        elif key == "response_schema":
            made[key] = _object(item, "$.response_schema")
        elif (key == "tags" and isinstance(item, list)) or (key in PLAIN_FIELDS and isinstance(item, str)):
            made[key] = item
        elif key in meta:
            lost[f"the record's `{key}`, which `meta` has, too"] += 1
        else:
            meta = meta | {key: item}
    return made | ({"meta": meta} if meta else {})


def _object(value: Any, path: str) -> dict[str, Any] | None:
    value = parsed(value, path) if isinstance(value, str) else value
    if value is not None and not isinstance(value, dict):
        raise Misfit(path, f"this is {kind(value)}, not an object")
    return value


_READERS: dict[str, Callable[[dict[str, Any], Lost], dict[str, Any]]] = {
    "pillm": _messages,
    "flat": _flat,
    "sharegpt": _sharegpt,
    "hermes": _hermes,
}
