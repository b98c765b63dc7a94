"""What pydantic finds wrong in a stage's options, in words that name the option and the value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_SHOWN = 60

_WORDS = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text (put quotes around it)",
    "path_type": "must be a path",
    "tuple_type": "must be a list, such as [1, 2]",
    "too_short": "must have {min_length} or more values",
    "too_long": "must have {max_length} or fewer values",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
}


class Problem(NamedTuple):
    """A field of an options model, the element of it where it is a list, and what is wrong with it.

    `field` is empty where what is wrong lies between several fields.
    """

    field: str
    element: int | None
    message: str
    missing: bool = False
    unknown: bool = False


def problems(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """All that pydantic found, in its order."""
    found = []
    for item in error.errors(include_url=False):
        place = item["loc"]
        field = str(place[0]) if place else ""
        index = next((part for part in place[1:] if isinstance(part, int)), None)
        kind, context = item["type"], item.get("ctx", {})
        if kind == "missing":
            about = model.model_fields[field].description or ""
            found.append(Problem(field, None, f"is required: {about}", missing=True))
        elif kind == "extra_forbidden":
            hint = did_you_mean(field, model.model_fields)
            found.append(Problem(field, None, f"there is no such option{hint}", unknown=True))
        elif kind == "literal_error":
            choices = literals(model.model_fields[field].annotation)
            hint = did_you_mean(str(item["input"]), choices)
            message = f"must be one of {', '.join(choices)}, not {_shown(item['input'])}{hint}"
            found.append(Problem(field, index, message))
        elif kind in ("value_error", "assertion_error"):
            found.append(Problem(field, index, str(context.get("error", item["msg"]))))
        else:
            # Only our own words are templates: pydantic's may hold a pattern's braces.
            words = _WORDS[kind].format(**context) if kind in _WORDS else item["msg"]
            found.append(Problem(field, index, f"{words}, not {_shown(item['input'])}"))
    return found


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` if a known word is close, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def literals(annotation: Any) -> list[str]:
    """The choices of a `Literal`, wherever it stands in an annotation; empty if there is none."""
    if get_origin(annotation) is not None and str(get_origin(annotation)) == "typing.Literal":
        return [str(choice) for choice in get_args(annotation)]
    return [choice for inner in get_args(annotation) for choice in literals(inner)]


def bounds(field: FieldInfo) -> str:
    """Unit and bounds of a field as a person reads them: `tokens, at least 64`; empty if it has none."""
    words = []
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "unit" in extra:
        words.append(str(extra["unit"]))
    limits = {
        name: getattr(mark, name)
        for mark in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(mark, name, None) is not None
    }
    if "ge" in limits and "le" in limits:
        words.append(f"{limits['ge']:g} to {limits['le']:g}")
    else:
        names = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
        words += [f"{names[name]} {value:g}" for name, value in limits.items()]
    return ", ".join(words)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
