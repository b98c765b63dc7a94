"""A form's fields, out of an options model: kind, bounds, unit, default, choices, group. Plain data, no widgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
from pydantic.fields import FieldInfo

from pillm.core.options import ByHand, InputFile, ModelReference, NameOrFile, NoEffect, OutputFile
from pillm.pipeline.choices import Choice, choices
from pillm.pipeline.pipeline_ops import flag, is_list, is_switch, negative
from pillm.pipeline.problems import bounds, literals
from pillm.pipeline.stages import Stage

Kind = Literal["switch", "choice", "list", "number", "path", "text"]

REQUIRED, FILES, SETTINGS, ASIDE = "Needed", "Files and models", "Settings", "Without effect on the result"
GROUPS = (REQUIRED, FILES, SETTINGS, ASIDE)


class Field(msgspec.Struct, frozen=True):
    """One option as a form shows it."""

    name: str
    flag: str
    kind: Kind
    about: str
    group: str
    limits: str
    """Unit and bounds in words; empty if there are none."""
    choices: tuple[Choice, ...]
    """Known values. A field that is no `choice` takes others, too."""
    default: Any
    required: bool
    optional: bool
    """Whether None is a value."""
    can_be_nothing: bool
    """Whether "nothing at all" is a value other than the default, which an empty input stands for."""
    file: Literal["", "input", "output"]
    """Whether a file can be picked, and whether it is read or written."""
    by_hand: bool

    @property
    def label(self) -> str:
        """The option's name for people."""
        return self.flag.removeprefix("--").replace("-", " ")

    @property
    def default_text(self) -> str:
        """The default in words."""
        return said(self.default)


def said(value: object) -> str:
    """A value as people read it."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    return str(value) or "empty"


def fields(stage: Stage, *, step: bool = False) -> list[Field]:
    """The fields of a stage's form, those that are needed first; without what no step of a profile can have."""
    made = [_field(stage, name, info) for name, info in stage.options.model_fields.items()]
    if step:
        made = [field for field in made if field.name != "out" and not field.by_hand]
    return sorted(made, key=lambda field: GROUPS.index(field.group))


def matches(field: Field, words: str) -> bool:
    """Whether what was typed into the filter is found in a field's name, help or choices."""
    text = (
        f"{field.name} {field.flag} {field.label} {field.about} {' '.join(c.value for c in field.choices)}".casefold()
    )
    return all(word in text for word in words.casefold().split())


def _field(stage: Stage, name: str, info: FieldInfo) -> Field:
    marked = {type(mark) for mark in info.metadata}
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    kind = _kind(info)
    file = "output" if OutputFile in marked or name == "out" else "input" if _reads(info, marked) else ""
    empties = kind in ("list", "number", "path", "text")
    return Field(
        name=name,
        flag=flag(name),
        kind=kind,
        about=info.description or "",
        group=_group(info, marked, file),
        limits=bounds(info),
        choices=tuple(choices(stage, name)),
        default=default,
        required=info.is_required(),
        optional=type(None) in get_args(info.annotation),
        can_be_nothing=empties and (negative(name, info) is not None or (info.annotation is str and bool(default))),
        file=file,
        by_hand=ByHand in marked,
    )


def _kind(info: FieldInfo) -> Kind:
    if info.annotation is bool:
        return "switch"
    if is_switch(info) or (literals(info.annotation) and not is_list(info)):
        return "choice"
    if is_list(info):
        return "list"
    kinds = {info.annotation, *get_args(info.annotation)}
    if kinds & {int, float}:
        return "number"
    return "path" if Path in kinds else "text"


def _reads(info: FieldInfo, marked: set[type]) -> bool:
    return bool(marked & {InputFile, ModelReference, NameOrFile}) or _kind(info) == "path"


def _group(info: FieldInfo, marked: set[type], file: str) -> str:
    if info.is_required():
        return REQUIRED
    if file:
        return FILES
    return ASIDE if NoEffect in marked else SETTINGS
