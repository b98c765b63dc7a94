"""A form as questions: the same fields, help and judgement as on the screen, line by line for a screen reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pillm.pipeline.stages import STAGES, Stage
from pillm.tui.forms.fields import GROUPS, Field, fields, matches, said
from pillm.tui.forms.values import Checked, check, section

NOTHING = "-"
_ACTIONS = "run, dry, yaml, show, list, a word to look for, a number to change an option, or back"
_YES_NO = {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}


class Talk(NamedTuple):
    """How to ask and how to tell. `ask` raises EOFError where there is nobody any more."""

    ask: Callable[[str], str]
    tell: Callable[[str], None]


def describe(field: Field, values: Mapping[str, Any], preset: Mapping[str, Any] = {}) -> list[str]:
    """A field in lines: name and help, bounds, choices with their numbers and what they change, what it is now."""
    lines = [f"{field.label}: {field.about}"]
    if field.limits:
        lines.append(f"  takes: {field.limits}")
    for place, choice in enumerate(field.choices, 1):
        name = choice.value or "(none)"
        sets = ", ".join(f"{option}={value}" for option, (value, _) in choice.changes.items())
        words = "; ".join(filter(None, (choice.about, f"sets {sets}" if sets else "")))
        lines.append(f"  choice {place}: {name}" + (f": {words}" if words else ""))
    now = _now(field, values, preset)
    return [*lines, f"  now: {now}" + (f" (default: {field.default_text})" if field.name in values else "")]


def _now(field: Field, values: Mapping[str, Any], preset: Mapping[str, Any]) -> str:
    """A field's value in words, where nothing is given that of a preset, else the default."""
    if field.name in values:
        return said(values[field.name])
    if field.name in preset:
        return f"{said(preset[field.name])} (from the preset)"
    return "needed" if field.required else field.default_text


def fill(talk: Talk, stage: Stage, values: dict[str, Any], *, step: bool = False) -> tuple[str, Checked]:
    """Ask until the user says what to do: `run`, `dry`, `yaml` (or `keep`, for a step of a profile) or `back`.

    `values` is changed in place.
    """
    known = fields(stage, step=step)
    talk.tell(f"Form: {' '.join(stage.words)}. {stage.summary}")
    for field in known:
        if field.required and field.name not in values:
            question(talk, stage, field, values)
    while True:
        checked = check(stage, values)
        talk.tell(f"Command: {checked.command}" if checked.command else f"Not complete: {checked.summary}")
        verbs = "keep, show, list, a word, a number, or back" if step else _ACTIONS
        word = talk.ask(f"What now? ({verbs}): ").strip()
        if word in ("back", ""):
            return "back", checked
        if word in (("keep",) if step else ("run", "dry", "yaml")):
            if checked.command is None:
                continue
            if word != "yaml":
                return word, checked
            talk.tell(section(stage, checked.options, values) if stage.name in STAGES else "a tool has no section")
        elif word == "show":
            set_here = [f for f in known if f.name in values]
            talk.tell(
                "\n".join(f"{f.label} = {said(values[f.name])}" for f in set_here) or "nothing is set: all defaults"
            )
        elif word == "list":
            _list(talk, known, known, values, checked.preset)
        elif word.isdecimal() and 0 < int(word) <= len(known):
            question(talk, stage, known[int(word) - 1], values)
        elif not _list(talk, known, [field for field in known if matches(field, word)], values, checked.preset):
            talk.tell(f"there is no option with {word}")


def _list(
    talk: Talk, known: Sequence[Field], shown: Sequence[Field], values: Mapping[str, Any], preset: Mapping[str, Any]
) -> bool:
    for group in GROUPS:
        inside = [field for field in shown if field.group == group]
        if inside:
            talk.tell(f"{group}:")
        for field in inside:
            talk.tell(f"  {known.index(field) + 1} {field.label} = {_now(field, values, preset)}")
    return bool(shown)


def question(talk: Talk, stage: Stage, field: Field, values: dict[str, Any]) -> None:
    """Ask for one option until the model takes it; an empty answer leaves it as it is."""
    for line in describe(field, values, check(stage, values).preset):
        talk.tell(line)
    while True:
        before = dict(values)
        answer = _answer(talk, field)
        if answer is None:
            return
        if answer == ["default"] or answer == "default":
            values.pop(field.name, None)
            return
        values[field.name] = _value(field, answer)
        message = check(stage, values).wrong.get(field.name)
        if message is None:
            return
        talk.tell(f"{field.label} {message}")
        values.clear()
        values.update(before)


def _answer(talk: Talk, field: Field) -> str | list[str] | None:
    empty = f", {NOTHING} for none" if field.can_be_nothing or field.optional else ""
    if field.kind != "list":
        return talk.ask(f"{field.label} (empty: as it is, default{empty}): ").strip() or None
    talk.tell(f"One a line; an empty line ends the list (default: the default{empty}).")
    lines: list[str] = []
    while line := talk.ask(f"{field.label} {len(lines) + 1}: ").strip():
        lines.append(line)
    return lines or None


def _value(field: Field, answer: str | list[str]) -> Any:
    if isinstance(answer, list):
        return [] if answer == [NOTHING] else [_named(field, item) for item in answer]
    if answer == NOTHING and (field.optional or field.can_be_nothing):
        return None if field.optional else ""
    if field.kind == "switch" or (field.kind == "choice" and not field.choices):
        return _YES_NO.get(answer.casefold(), answer)
    return _named(field, answer)


def _named(field: Field, answer: str) -> str:
    """A choice by its number; numbers that are values of their own stay what they are."""
    values = [choice.value for choice in field.choices]
    if values and answer not in values and answer.isdecimal() and 0 < int(answer) <= len(values):
        return values[int(answer) - 1]
    return answer
