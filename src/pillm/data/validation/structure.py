"""The shape of a record: every field that is missing, of another type, or in the wrong place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pillm.data.validation.characters import member
from pillm.data.validation.codes import Fault

ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXTS = ("locale", "register", "source", "license")
_FIELDS = ("id", "messages", "tools", "response_schema", *_TEXTS, "tags", "meta")
_OF_ROLE = {
    "assistant": {"role", "content", "name", "tool_calls"},
    "tool": {"role", "content", "name", "tool_call_id"},
}
_OF_ANY = {"role", "content", "name"}
_OF_OTHERS = {"tool_calls", "tool_call_id"}
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def faults(record: Any) -> Iterator[Fault]:
    """All that is wrong with the shape of one decoded line."""
    if not isinstance(record, dict):
        yield Fault("not-an-object", "$", f"the line is {kind(record)}, not an object")
        return
    for key in record:
        if key not in _FIELDS:
            yield Fault("unknown-field", member("$", key), f"there is no field {_short(key)!r}{_similar(key, _FIELDS)}")
    yield from _id(record)
    yield from _messages(record)
    for name in _TEXTS:
        if name in record and not isinstance(record[name], str):
            yield _type(f"$.{name}", "text", record[name])
    if isinstance(locale := record.get("locale"), str):
        yield from locale_faults(locale)
    if isinstance(given := record.get("license"), str) and not is_license(given):
        yield Fault("unknown-license", "$.license", f"{_short(given)!r} is no SPDX licence expression")
    yield from _tags(record)
    if "meta" in record and not isinstance(record["meta"], dict):
        yield _type("$.meta", "an object", record["meta"])


@lru_cache(maxsize=4096)
def locale_faults(locale: str) -> tuple[Fault, ...]:
    """What is wrong with a language tag. An empty one says that the language is not declared."""
    if not locale:
        return ()
    import langcodes  # its tables take long to import

    # langcodes also takes `fr_CA` and names like `english`; a tag has letters, digits and hyphens.
    formed = locale.replace("_", "-")
    if not re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", formed) or not langcodes.tag_is_valid(formed):
        return (Fault("bad-locale", "$.locale", f"{_short(locale)!r} is no language tag"),)
    usual = langcodes.standardize_tag(formed)
    if usual != locale:
        return (Fault("locale-form", "$.locale", f"{locale!r} is usually written {usual!r}", f"write {usual}"),)
    return ()


@lru_cache(maxsize=1024)
def is_license(text: str) -> bool:
    """Whether this is an SPDX licence expression. An empty one says nothing, which is no fault of form."""
    if not text:
        return True
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return canonicalize_license_expression(text) == text
    except (InvalidLicenseExpression, RecursionError):
        return False


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    words = {str: "text", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return words.get(type(value), "another value")


def _id(record: dict[str, Any]) -> Iterator[Fault]:
    if "id" not in record:
        yield Fault("missing-field", "$.id", "there is no id", "give each record an id of its own")
    elif not isinstance(record["id"], str):
        yield _type("$.id", "text", record["id"])
    elif not record["id"].strip():
        yield Fault("empty-id", "$.id", "the id is empty")


def _messages(record: dict[str, Any]) -> Iterator[Fault]:
    if "messages" not in record:
        yield Fault("missing-field", "$.messages", "there are no messages", _imported(record))
        return
    messages = record["messages"]
    if not isinstance(messages, list):
        yield _type("$.messages", "an array", messages)
        return
    if not messages:
        yield Fault("no-messages", "$.messages", "the array of messages is empty")
    for index, message in enumerate(messages):
        yield from _message(message, f"$.messages[{index}]")


def _message(message: Any, path: str) -> Iterator[Fault]:
    if not isinstance(message, dict):
        yield _type(path, "an object", message)
        return
    role = message.get("role")
    if "role" not in message:
        yield Fault("missing-field", f"{path}.role", "the message has no role", _imported(message))
    elif not isinstance(role, str):
        yield _type(f"{path}.role", "text", role)
    elif role not in ROLES:
        yield Fault("unknown-role", f"{path}.role", f"there is no role {_short(role)!r}{_similar(role, ROLES)}")
    legal = _OF_ROLE.get(role, _OF_ANY) if isinstance(role, str) else _OF_ANY
    for key in message:
        if key in _OF_OTHERS and key not in legal and role in ROLES:
            yield Fault("misplaced-field", f"{path}.{key}", f"a message of the {role} has no {key}")
        elif key not in _OF_ANY and key not in _OF_OTHERS:
            yield Fault("unknown-field", member(path, key), f"a message has no field {_short(key)!r}")
    for name in ("name", "tool_call_id"):
        if message.get(name) is not None and not isinstance(message[name], str):
            yield _type(f"{path}.{name}", "text", message[name])
    calls = message.get("tool_calls")
    yield from _content(message, path, bool(calls))
    if "tool_calls" in message:
        if not isinstance(calls, list):
            yield _type(f"{path}.tool_calls", "an array", calls)
        else:
            for index, call in enumerate(calls):
                yield from _call(call, f"{path}.tool_calls[{index}]")


def _content(message: dict[str, Any], path: str, has_calls: bool) -> Iterator[Fault]:
    content, role = message.get("content"), message.get("role")
    if isinstance(content, str):
        if not content.strip() and not has_calls:
            blank = "blank-message" if content else "empty-message"
            yield Fault(blank, f"{path}.content", f"the {role}'s message is {'only blanks' if content else 'empty'}")
    elif isinstance(content, list):
        yield Fault("content-parts", f"{path}.content", f"the content is a list of {len(content)} parts")
    elif content is not None:
        yield _type(f"{path}.content", "text", content)
    elif not has_calls:
        yield Fault("empty-message", path, f"the {role}'s message has neither content nor tool_calls")


def _call(call: Any, path: str) -> Iterator[Fault]:
    if not isinstance(call, dict):
        yield _type(path, "an object", call)
        return
    for key in call:
        if key not in ("id", "type", "function"):
            yield Fault("unknown-field", member(path, key), f"a tool call has no field {_short(key)!r}")
    if call.get("id") is not None and not isinstance(call["id"], str):
        yield _type(f"{path}.id", "text", call["id"])
    if call.get("type", "function") != "function":
        yield Fault("wrong-type", f"{path}.type", 'the type of a tool call is "function"')
    if "function" not in call:
        yield Fault("missing-field", f"{path}.function", "the call has no function", _imported(call))
        return
    function = call["function"]
    if not isinstance(function, dict):
        yield _type(f"{path}.function", "an object", function)
        return
    for key in function:
        if key not in ("name", "arguments"):
            yield Fault("unknown-field", member(f"{path}.function", key), f"a call has no field {_short(key)!r}")
    yield from name_faults(function, f"{path}.function")
    if "arguments" not in function:
        yield Fault("missing-field", f"{path}.function.arguments", "the call has no arguments", "write {} for none")
    elif isinstance(function["arguments"], str):
        yield Fault("arguments-as-text", f"{path}.function.arguments", "the arguments are a string, not an object")
    elif not isinstance(function["arguments"], dict):
        yield _type(f"{path}.function.arguments", "an object", function["arguments"])


def name_faults(function: dict[str, Any], path: str) -> Iterator[Fault]:
    """What is wrong with the name of a declared or called function. Odd names are told where they are declared."""
    if "name" not in function:
        yield Fault("missing-field", f"{path}.name", "the function has no name")
    elif not isinstance(function["name"], str):
        yield _type(f"{path}.name", "text", function["name"])
    elif not function["name"].strip():
        yield Fault("empty-name", f"{path}.name", "the name is empty")


def _tags(record: dict[str, Any]) -> Iterator[Fault]:
    tags = record.get("tags", [])
    if not isinstance(tags, list):
        yield _type("$.tags", "an array", tags)
        return
    seen = set()
    for index, tag in enumerate(tags):
        if not isinstance(tag, str):
            yield _type(f"$.tags[{index}]", "text", tag)
        elif not tag.strip():
            yield Fault("blank-tag", f"$.tags[{index}]", "the tag is empty")
        elif tag in seen:
            yield Fault("duplicate-tag", f"$.tags[{index}]", f"the tag {_short(tag)!r} stands here twice")
        else:
            seen.add(tag)


def _type(path: str, wanted: str, value: Any) -> Fault:
    return Fault("wrong-type", path, f"this must be {wanted}, and it is {kind(value)}")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _similar(word: str, known: tuple[str, ...]) -> str:
    import difflib

    close = difflib.get_close_matches(word[:60], known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _imported(value: dict[str, Any]) -> str:
    """A hint where the record looks like one of the forms that `convert` reads."""
    if {"conversations", "conversation", "from", "user", "instruction", "prompt"} & value.keys():
        return "convert it first: pillm dataset convert"
    return ""
