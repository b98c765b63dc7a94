"""JSON Schemas of tools and answers: judged once for each different one, safely, then compiled.

Nothing is ever fetched. What could run for ever (reference loops, alternatives that double at every
level) is found in the schema itself, before an instance meets it; regular expressions run on an
engine whose time is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import jsonschema_rs
import msgspec

from pillm.data.validation import characters, references
from pillm.data.validation.characters import member, place
from pillm.data.validation.codes import Fault
from pillm.data.validation.keys import duplicate_keys
from pillm.data.validation.structure import NAME, kind, name_faults

MAX_DEPTH = 100
_BACKTRACKS = 100_000
_KEPT_BYTES = 4 * 2**20
# Each error holds a copy of what it is about: of a large value only the first is told.
_LARGE_VALUE = 2**16
_TYPES = ("null", "boolean", "object", "array", "number", "string", "integer")
# Words that other formats use for JSON Schema's types.
_TYPE_WORDS = {
    "dict": "object", "map": "object", "tuple": "array", "list": "array", "set": "array", "float": "number",
    "double": "number", "int": "integer", "long": "integer", "bool": "boolean", "str": "string", "char": "string",
    "none": "null",
}  # fmt: skip


class _Draft(NamedTuple):
    title: str
    uri: str
    compiler: Any


_NEWEST = "https://json-schema.org/draft/2020-12/schema"
_D2020 = _Draft("draft 2020-12", _NEWEST, jsonschema_rs.Draft202012Validator)
_DRAFTS = {
    "json-schema.org/schema": _D2020,
    "json-schema.org/draft/2020-12/schema": _D2020,
    "json-schema.org/draft/2019-09/schema": _Draft(
        "draft 2019-09", "https://json-schema.org/draft/2019-09/schema", jsonschema_rs.Draft201909Validator
    ),
    "json-schema.org/draft-07/schema": _Draft(
        "draft 7", "http://json-schema.org/draft-07/schema", jsonschema_rs.Draft7Validator
    ),
    "json-schema.org/draft-06/schema": _Draft(
        "draft 6", "http://json-schema.org/draft-06/schema", jsonschema_rs.Draft6Validator
    ),
    "json-schema.org/draft-04/schema": _Draft(
        "draft 4", "http://json-schema.org/draft-04/schema", jsonschema_rs.Draft4Validator
    ),
}


K = TypeVar("K")


class Schema(NamedTuple):
    """A judged schema. `validator` is None where it must not or cannot be used."""

    validator: Any
    faults: tuple[Fault, ...]


class Tools(NamedTuple):
    """The judged `tools` of a record: a validator for each name (None if its schema is bad), and what is wrong."""

    validators: dict[str, Any]
    faults: tuple[Fault, ...]
    is_sound: bool
    """Whether nothing is wrong with them, not even with their characters, which `faults` leaves to others."""


class _Kept(dict[tuple[Any, ...], K]):
    """What was judged before, by the bytes it was judged from; emptied when these come to too much."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = 0

    def keep(self, key: tuple[Any, ...], size: int, judged: K) -> K:
        """Remember a judgement that was made from `size` bytes."""
        # Compiled, a schema takes about ten times the memory of its text.
        if self._bytes + size > _KEPT_BYTES:
            self.clear()
            self._bytes = 0
        self._bytes += size
        self[key] = judged
        return judged


_tools: _Kept[Tools] = _Kept()
_schemas: _Kept[Schema] = _Kept()


def tools_of(raw: bytes, formats: bool = False) -> Tools:
    """The tools of a record, from the JSON of its `tools` field. The same bytes are judged only once."""
    return _tools.get((raw, formats)) or _tools.keep((raw, formats), len(raw), _tools_of(raw, formats))


def schema_of(raw: bytes, path: str, formats: bool = False) -> Schema:
    """A schema from its JSON; `path` is where it stands in the record."""
    key = (raw, path, formats)
    return _schemas.get(key) or _schemas.keep(key, len(raw), _schema_of(*key))


def _tools_of(raw: bytes, formats: bool) -> Tools:
    doubled = duplicate_keys(raw, "$.tools")
    value = msgspec.json.decode(raw)
    if not isinstance(value, list):
        return Tools({}, (Fault("wrong-type", "$.tools", f"this must be an array, and it is {kind(value)}"),), False)
    validators: dict[str, Any] = {}
    found = list(doubled)
    for index, tool in enumerate(value):
        path = f"$.tools[{index}]"
        name, schema, faults = _tool(tool, path, formats)
        found += faults
        if name in validators:
            found.append(Fault("duplicate-tool", f"{path}.function.name", f"the tool {name!r} is declared twice"))
        elif name is not None:
            validators[name] = schema
    return Tools(validators, tuple(found), not found and (characters.plain(raw) or not any(characters.faults(value))))


def _schema_of(raw: bytes, path: str, formats: bool) -> Schema:
    doubled = duplicate_keys(raw, path)
    judged = judge(msgspec.json.decode(raw), path, formats)
    return Schema(judged.validator, (*doubled, *judged.faults))


def judge(schema: Any, path: str, formats: bool = False) -> Schema:
    """Judge a decoded schema and compile it, if it can be used without harm."""
    if not isinstance(schema, dict):
        return Schema(None, (Fault("invalid-schema", path, f"this must be an object, and it is {kind(schema)}"),))
    if depth(schema) > MAX_DEPTH:
        return Schema(None, (Fault("schema-too-deep", path, f"the schema is nested more than {MAX_DEPTH} deep"),))
    draft = schema.get("$schema", _NEWEST)
    known = _DRAFTS.get(draft.removesuffix("#").partition("://")[2]) if isinstance(draft, str) else None
    if known is None:
        shown = draft if isinstance(draft, str) else kind(draft)
        return Schema(None, (Fault("unknown-draft", f"{path}['$schema']", f"{shown} is no known draft"),))
    found = [*_against_meta_schema(schema, path, known)]
    ways = 1
    document = references.Document(schema)
    try:
        found += references.faults(document, path)
        ways = 1 if found else references.ways(document)
    except RecursionError:
        found.append(Fault("schema-too-deep", path, "references follow one another too long"))
    if found:
        return Schema(None, tuple(found))
    try:
        validator = known.compiler(
            # Its spelling was judged above; the library takes one spelling only.
            {key: value for key, value in schema.items() if key != "$schema"},
            offline=True,
            validate_formats=formats,
            pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS),
        )
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        return Schema(None, (_refused(error, path),))
    return Schema(_Bounded(validator, ways) if ways > 1 else validator, tuple(_habits(document, path)))


class _Bounded:
    """A validator that refuses values so deep that a schema which refers to itself in several ways takes too long."""

    def __init__(self, validator: Any, ways: int) -> None:
        self._validator, self._ways = validator, ways

    def is_valid(self, value: Any) -> bool:
        self._check(value)
        return self._validator.is_valid(value)

    def iter_errors(self, value: Any) -> Iterator[Any]:
        self._check(value)
        return self._validator.iter_errors(value)

    def validate(self, value: Any) -> None:
        self._check(value)
        self._validator.validate(value)

    def _check(self, value: Any) -> None:
        deep = depth(value)
        if deep > 1 and self._ways > references.MAX_STEPS ** (1 / (deep - 1)):
            raise ValueError(f"{deep} levels, each judged in {self._ways} ways, take too long")


def argument_faults(validator: Any, value: Any, path: str, code: str) -> Iterator[Fault]:
    """What in a value does not fit its schema, each with its own path."""
    try:
        for error in _errors(validator, value):
            yield Fault(code, place(path, error.instance_path), _said(error))
    except ValueError as error:
        yield Fault("unchecked-arguments", path, f"the check gave up: {str(error).splitlines()[0]}")


def _errors(validator: Any, value: Any) -> Iterator[Any]:
    if len(msgspec.json.encode(value)) <= _LARGE_VALUE:
        yield from validator.iter_errors(value)
        return
    try:
        validator.validate(value)
    except jsonschema_rs.ValidationError as error:
        yield error


def depth(value: Any) -> int:
    """How deeply arrays and objects are nested in a value."""
    level, deepest = [value], 0
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        level, deepest = [item for item in inner if isinstance(item, dict | list)], deepest + 1
    return deepest


def _tool(tool: Any, path: str, formats: bool) -> tuple[str | None, Any, list[Fault]]:
    if not isinstance(tool, dict):
        return None, None, [Fault("wrong-type", path, f"this must be an object, and it is {kind(tool)}")]
    found: list[Fault] = []
    for key in tool:
        if key not in ("type", "function"):
            # Flat declarations ({"name", "parameters"}) are another format.
            hint = 'wrap it: {"type": "function", "function": {...}}' if "function" not in tool else ""
            found.append(Fault("unknown-field", member(path, key), f"a tool has no field {key!r}", hint))
    if tool.get("type", "function") != "function":
        found.append(Fault("wrong-type", f"{path}.type", 'the type of a tool is "function"'))
    function = tool.get("function")
    if not isinstance(function, dict):
        missing = "function" not in tool
        said = "the tool has no function" if missing else f"this must be an object, and it is {kind(function)}"
        found.append(Fault("missing-field" if missing else "wrong-type", f"{path}.function", said))
        return None, None, found
    path = f"{path}.function"
    for key in function:
        if key not in ("name", "description", "parameters", "strict"):
            found.append(Fault("unknown-field", member(path, key), f"a function has no field {key!r}"))
    found += name_faults(function, path)
    name = function.get("name")
    if isinstance(name, str) and name.strip() and not NAME.fullmatch(name):
        found.append(Fault("odd-name", f"{path}.name", f"servers refuse the name {name[:70]!r}"))
    if not isinstance(function.get("description", ""), str):
        found.append(Fault("wrong-type", f"{path}.description", "this must be text"))
    parameters = function.get("parameters", {})
    judged = judge(parameters, f"{path}.parameters", formats)
    found += judged.faults
    if isinstance(parameters, dict) and parameters and parameters.get("type") != "object" and judged.validator:
        found.append(
            Fault("parameters-not-object", f"{path}.parameters.type", "the parameters of a function are an object")
        )
    return name if isinstance(name, str) else None, judged.validator, found


@lru_cache(maxsize=len(_DRAFTS))
def _meta_validator(draft: _Draft) -> Any:
    return draft.compiler({"$ref": draft.uri}, offline=True)


def _against_meta_schema(schema: dict[str, Any], path: str, draft: _Draft) -> Iterator[Fault]:
    seen = set()
    for error in _meta_validator(draft).iter_errors(schema):
        where = place(path, error.instance_path)
        # The meta-schema of 2020-12 is made of vocabularies, and several can say the same.
        if where in seen:
            continue
        seen.add(where)
        last = error.instance_path[-1] if error.instance_path else ""
        if last == "type" or (len(error.instance_path) > 1 and error.instance_path[-2] == "type"):
            yield Fault("invalid-schema", where, *_of_type(error.instance))
        else:
            yield Fault("invalid-schema", where, f"{_said(error)} ({draft.title})")


def _of_type(given: Any) -> tuple[str, str]:
    words = [word for word in (given if isinstance(given, list) else [given]) if word not in _TYPES]
    if not words or not isinstance(words[0], str):
        return f"a type is one of {', '.join(_TYPES)}", ""
    meant = _TYPE_WORDS.get(words[0].lower()) or next((word for word in _TYPES if word == words[0].lower()), "")
    return (
        f"JSON Schema has no type {words[0][:40]!r}",
        f"write {meant!r}" if meant else f"types are {', '.join(_TYPES)}",
    )


def _refused(error: Exception, path: str) -> Fault:
    text = str(error).splitlines()[0]
    if "Recursion limit" in text:
        return Fault("schema-too-deep", path, "the schema is nested too deeply")
    if "does not exist" in text or "registry" in text or "anchor" in text.lower():
        return Fault("dangling-ref", path, text)
    return Fault("invalid-schema", place(path, getattr(error, "instance_path", [])), text)


def _said(error: Any) -> str:
    text = error.message
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-80:]}"


def _habits(document: references.Document, path: str) -> Iterator[Fault]:
    """What is legal and still hardly meant."""
    for steps, inner in document.nodes:
        properties, required = inner.get("properties"), inner.get("required")
        if isinstance(properties, dict) and isinstance(required, list) and not _open(inner):
            for index, name in enumerate(required):
                if name not in properties:
                    yield Fault(
                        "required-undeclared",
                        place(path, [*steps, "required", index]),
                        f"{name!r} is required and not declared",
                    )
        if isinstance(values := inner.get("enum"), list) and isinstance(type_ := inner.get("type"), str | list):
            allowed = jsonschema_rs.Draft202012Validator({"type": type_})
            for index, value in enumerate(values):
                if not allowed.is_valid(value):
                    yield Fault(
                        "enum-misfit", place(path, [*steps, "enum", index]), f"{value!r} is not of type {type_}"
                    )


def _open(schema: dict[str, Any]) -> bool:
    """Whether properties can be declared elsewhere, too."""
    return any(key in schema for key in ("patternProperties", "$ref", "allOf", "anyOf", "oneOf", "if", "$dynamicRef"))
