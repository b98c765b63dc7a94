"""One line, judged: quickly where nothing is wrong with it, and in full where something may be.

`sound` is the quick judgement: it decodes in C, looks tools up by their bytes, and says yes only if
`faults` would find nothing. `faults` takes its time and finds everything. Tests hold the two together.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from pillm.data import wire
from pillm.data.validation import characters, dialogue, structure
from pillm.data.validation.codes import Fault
from pillm.data.validation.keys import duplicate_keys
from pillm.data.validation.schemas import Schema, Tools, depth, schema_of, tools_of

# As deep as jsonschema-rs follows an instance; what a template or a trainer does with more is anybody's guess.
MAX_DEPTH = 255
MAX_FAULTS = 10_000
"""Of one line; a line of millions of them would not fit into memory."""
# The record, its messages, the message, its calls, the call, its function.
_ABOVE_ARGUMENTS = 6
_TOOLS = b'"tools":'
_BYTE = re.compile(r"\(byte (\d+)\)")
_NO_TOOLS = Tools({}, (), True)
# What was judged before, by orders of roles and by locale, licence and tags.
_LEGAL: dict[tuple[type, ...], bool] = {}
_FIELDS: dict[tuple[str, ...], bool] = {}
# Sound tools, by how they begin.
_BEGUN: dict[tuple[bytes, bool], list[tuple[bytes, Tools]]] = {}
_BEGINNING = 48
# What is put in their place: nothing that a line could hold by chance.
_CUT = b"[%d]" % secrets.randbits(63)
_SAME_BEGINNING = 16
_KEPT_TOOLS = 20_000
_KEPT = 10_000
_KEPT_LENGTH = 500


def sound(data: bytes, formats: bool = False) -> str | None:
    """The id of a line with which nothing is wrong; None if there is, or if that takes a closer look."""
    try:
        # Most of a line is tools, and most lines have the same: the rest is judged without them.
        line, tools = _without_known_tools(data, formats)
        record = wire.decode(line)
        if tools is not None and bytes(record.tools) != _CUT:
            # Another key of that name, in `meta` or in arguments, was cut out.
            line, tools, record = data, None, wire.decode(data)
        if tools is None:
            tools = tools_of(bytes(record.tools), formats) if record.tools else _NO_TOOLS
            if not tools.is_sound:
                return None
        # A key that stands twice is lost in decoding, and its colon with it. (`plain` refuses lines in
        # which a colon, or anything of ASCII, is written as a number.)
        if line.count(b":") != wire.encode(record).count(b":") or not characters.plain(line):
            return None
        kinds = tuple(map(type, record.messages))
        legal = _LEGAL.get(kinds)
        if legal is None:
            legal = _legal(kinds)
        # So many brackets take at least so many bytes.
        deep = len(line) >= 2 * MAX_DEPTH and line.count(b"{") + line.count(b"[") > MAX_DEPTH
        plain = legal and record.id.strip() and _plain_fields(record) and _plain_dialogue(record, tools, deep, formats)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError):
        return None
    if not plain:
        return None
    if record.tools and line is data:
        _keep(bytes(record.tools), tools, formats)
    return record.id


def faults(data: bytes, formats: bool = False) -> tuple[list[Fault], Any]:
    """What is wrong with a line (without its line end), all of it up to MAX_FAULTS, and the line decoded if it is JSON."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return [_not_utf8(data, error)], None
    if text.startswith("\ufeff"):
        return [Fault("not-json", "$", "a byte order mark stands inside of the file", "take it out")], None
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        return [_not_json(text, error)], None
    deep = depth(value) if data.count(b"{") + data.count(b"[") > MAX_DEPTH else 0
    if deep > MAX_DEPTH:
        return [Fault("too-deep", "$", f"arrays and objects are nested {deep:,} deep; {MAX_DEPTH} is the most")], None
    return list(islice(_all(data, value, formats), MAX_FAULTS)), value


def _all(data: bytes, value: Any, formats: bool) -> Iterator[Fault]:
    plain = characters.plain(data)
    # As in `sound`: a key that stands twice is lost in decoding, and its colon with it.
    doubled = () if plain and data.count(b":") == wire.encode(value).count(b":") else duplicate_keys(data)
    yield from doubled
    yield from structure.faults(value)
    if isinstance(value, dict):
        tools = _tools(value, formats)
        response = _response(value, formats)
        told = {(fault.code, fault.path) for fault in doubled}
        for fault in (*tools.faults, *(response.faults if response else ())):
            if (fault.code, fault.path) not in told:
                yield fault
        yield from dialogue.faults(value, tools, response)
    if not plain:
        yield from characters.faults(value)


def _without_known_tools(data: bytes, formats: bool) -> tuple[bytes, Tools | None]:
    """The line with tools that were found sound before cut out, and these; else the line itself."""
    start = data.find(_TOOLS) + len(_TOOLS)
    for raw, tools in _BEGUN.get((data[start : start + _BEGINNING], formats), ()):
        if data.startswith(raw, start):
            return data[:start] + _CUT + data[start + len(raw) :], tools
    return data, None


def _keep(raw: bytes, tools: Tools, formats: bool) -> None:
    key = (raw[:_BEGINNING], formats)
    known = _BEGUN.setdefault(key, [])
    if len(known) < _SAME_BEGINNING and len(_BEGUN) < _KEPT_LENGTH and len(raw) < _KEPT_TOOLS:
        known.append((raw, tools))


def _legal(kinds: tuple[type, ...]) -> bool:
    names = {wire.System: "system", wire.Developer: "developer", wire.User: "user", wire.Assistant: "assistant"}
    roles = [names.get(kind, "tool") for kind in kinds]
    legal = bool(roles) and not any(dialogue.order(roles))
    if len(_LEGAL) < _KEPT and len(kinds) < _KEPT_LENGTH:
        _LEGAL[kinds] = legal
    return legal


def _plain_fields(record: wire.Line) -> bool:
    key = (record.locale, record.license, *record.tags)
    plain = _FIELDS.get(key)
    if plain is None:
        tags = record.tags
        plain = (
            not structure.locale_faults(record.locale)
            and structure.is_license(record.license)
            and len(set(tags)) == len(tags)
            and all(map(str.strip, tags))
        )
        if len(_FIELDS) < _KEPT and sum(map(len, key)) < _KEPT_LENGTH:
            _FIELDS[key] = plain
    return plain and (not record.meta or _plain_meta(bytes(record.meta)))


def _plain_meta(raw: bytes) -> bool:
    value = msgspec.json.decode(raw)
    # So many brackets take at least so many bytes.
    shallow = len(raw) < 2 * MAX_DEPTH or depth(value) < MAX_DEPTH
    return isinstance(value, dict) and shallow and raw.count(b":") == wire.encode(value).count(b":")


def _plain_dialogue(record: wire.Line, tools: Tools, deep: bool, formats: bool) -> bool:
    """Whether every call fits, and no result is missing or too many; unusual matches are left to the full judgement."""
    validators = tools.validators
    ids: list[str] = []
    waiting: list[wire.Call] = []
    for turn in record.messages:
        content = turn.content
        is_blank = not isinstance(content, str) or not content or content.isspace()
        if type(turn) is wire.ToolResult:
            # One call and its one result.
            if is_blank or len(waiting) != 1 or not _belongs(turn, waiting[0]):
                return False
            waiting = []
            continue
        given = turn.tool_calls if type(turn) is wire.Assistant else msgspec.UNSET
        if waiting or (is_blank and not given):
            return False
        if not isinstance(given, list):
            continue
        waiting = given
        for call in given:
            function = call.function
            validator = validators.get(function.name)
            if validator is None or (deep and depth(function.arguments) > MAX_DEPTH - _ABOVE_ARGUMENTS):
                return False
            if not validator.is_valid(function.arguments):
                return False
            if isinstance(call.id, str):
                ids.append(call.id)
    return len(set(ids)) == len(ids) and (not record.response_schema or _plain_answer(record, formats))


def _belongs(result: wire.ToolResult, call: wire.Call) -> bool:
    return result.tool_call_id == call.id and (not isinstance(result.name, str) or result.name == call.function.name)


def _plain_answer(record: wire.Line, formats: bool) -> bool:
    schema = schema_of(bytes(record.response_schema), "$.response_schema", formats)
    if schema.faults or schema.validator is None:
        return False
    last = record.messages[-1]
    if type(last) is not wire.Assistant or last.tool_calls or not isinstance(last.content, str):
        return True
    return schema.validator.is_valid(msgspec.json.decode(last.content))


def _tools(value: dict[str, Any], formats: bool) -> Tools:
    if "tools" not in value:
        return _NO_TOOLS
    return tools_of(msgspec.json.encode(value["tools"]), formats)


def _response(value: dict[str, Any], formats: bool) -> Schema | None:
    if value.get("response_schema") is None:
        return None
    return schema_of(msgspec.json.encode(value["response_schema"]), "$.response_schema", formats)


def _not_utf8(data: bytes, error: UnicodeDecodeError) -> Fault:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[1:2] == b"\0":
        return Fault("not-utf16", "$", "the file is UTF-16 or UTF-32, not UTF-8")
    shown = data[error.start]
    return Fault("not-utf8", "$", f"byte {error.start + 1} of the line is not UTF-8 (0x{shown:02x})", byte=error.start)


def _not_json(text: str, error: Exception) -> Fault:
    said = str(error)
    if isinstance(error, RecursionError):
        return Fault("too-deep", "$", "arrays and objects are nested too deeply")
    if "Number out of range" in said:
        return Fault("number-out-of-range", "$", "a number is too large for any program")
    where = _BYTE.search(said)
    byte = int(where[1]) if where else 0
    if "surrogate" in said or "truncated" in said:
        # msgspec takes a lone first half at the end of a text for a line that is cut off.
        try:
            json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            pass
        else:
            place = re.search(r"\\u[dD][89a-fA-F]", text)
            byte = len(text[: place.start()].encode()) if place else byte
            return Fault("lone-surrogate", "$", "half of a surrogate pair stands alone", byte=byte)
    if "truncated" in said:
        return Fault("not-json", "$", "the line ends in the middle of the JSON", byte=len(text.encode()))
    place = f" at byte {byte + 1} of the line" if where else ""
    words = said.removeprefix("JSON is malformed: ").partition(" (byte")[0]
    return Fault("not-json", "$", f"{words}{place}", _json_hint(text, byte), byte=byte)


def _json_hint(text: str, byte: int) -> str:
    around = text.encode()[byte : byte + 9]
    if around.startswith((b"NaN", b"Infinity", b"-Infinity", b"nan", b"inf")):
        return "JSON has no such number; write null, or leave it out"
    if around.startswith((b"'", b"True", b"False", b"None")):
        return "this looks like a Python dict; write it with json.dumps"
    if text.lstrip().startswith("[") or text.rstrip().endswith(","):
        return "each line is one JSON object: is this a JSON array over several lines?"
    return ""


def _no_constant(text: str) -> None:
    raise ValueError(text)
