"""One command for each row of the stage table, made out of its options model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic.fields import FieldInfo

from pillm.cli.screen import Screen
from pillm.core import shipped
from pillm.core.amounts import figure
from pillm.core.options import InputFile, ModelReference, Options, OutputFile, Shorthands, marks
from pillm.core.process import SHORT_SPIN
from pillm.models.redact import redact
from pillm.pipeline.pipeline_ops import build, flag, is_list, is_switch, negative, options_from, positional, shorthands
from pillm.pipeline.problems import bounds, literals
from pillm.pipeline.stages import Stage

DryRun = Annotated[
    bool,
    Parameter(negative="", show_default=False, help="Print the command, what it reads and what it writes; do nothing"),
]
Json = Annotated[bool, Parameter(negative="", show_default=False, help="Print events as lines of JSON on stdout")]
JsonDocument = Annotated[bool, Parameter(negative="", show_default=False, help="Print the answer as JSON on stdout")]
Verbose = Annotated[bool, Parameter(negative="", show_default=False, help="Tell more while at work")]


def command_of(stage: Stage, screen: Screen) -> Callable[..., None]:
    """A function whose signature is the stage's options, as cyclopts reads it.

    All values arrive as text and are judged by the options model alone, so that the command line, a
    profile and the command builder agree on what is right, and all that is wrong is told at once.
    """
    model = stage.options
    first, short = positional(model), shorthands(model)

    def command(*args: str, dry_run: bool = False, json: bool = False, verbose: bool = False, **values: Any) -> None:
        screen.json, screen.verbose = json, verbose
        if args and first:
            values[first] = args[0]
        for word, (name, choice) in short.items():
            if values.pop(word.removeprefix("--"), None):
                values[name] = choice
        options = options_from(stage, values)
        if dry_run:
            _show(stage, options, screen)
        else:
            _run(stage, options, screen)

    kind = inspect.Parameter
    names = sorted(model.model_fields, key=lambda name: (name != first, name == "out"))
    parameters = [
        kind(
            name,
            kind.POSITIONAL_OR_KEYWORD if name == first else kind.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(name, model.model_fields[name]),
        )
        for name in names
    ]
    for word in short:
        hidden = Annotated[bool, Parameter(name=word, negative="", show=False)]
        parameters.append(kind(word.removeprefix("--"), kind.KEYWORD_ONLY, default=False, annotation=hidden))
    json_kind = JsonDocument if stage.document else Json
    for name, annotation in (("dry_run", DryRun), ("json", json_kind), ("verbose", Verbose)):
        parameters.append(kind(name, kind.KEYWORD_ONLY, default=False, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__name__, command.__doc__ = stage.name, model.__doc__
    return command


def usage_of(stage: Stage) -> str:
    """The usage line: what must be given, then the rest."""
    model = stage.options
    first = positional(model)
    word = first.rstrip("_").upper() if first else ""
    words = [word if model.model_fields[first].is_required() else f"[{word}]"] if first else []
    words += [
        f"{flag(name)}={name.rstrip('_').upper()}"
        for name, field in model.model_fields.items()
        if field.is_required() and name != first
    ]
    return f"Usage: pillm {' '.join((*stage.words, *words))} [OPTIONS]"


def _annotation(name: str, field: FieldInfo) -> Any:
    no = negative(name, field)
    parameter = Parameter(
        name=flag(name),
        help=help_of(field),
        negative=no or "",
        show_default=False,
        metavar=None if is_switch(field) else _metavar(field),
    )
    if is_switch(field):
        return Annotated[bool | None, parameter]
    if is_list(field):
        return Annotated[tuple[str, ...] | None, parameter]
    return Annotated[str | None, parameter]


def help_of(field: FieldInfo) -> str:
    """Description, unit and bounds, choices, default: all from the options model."""
    parts = [field.description or ""]
    if words := bounds(field):
        parts.append(f"[{words}]")
    if choices := literals(field.annotation):
        parts.append(f"[choices: {', '.join(choices)}]")
    if any(isinstance(mark, Shorthands) for mark in field.metadata):
        parts.append(f"[short: {', '.join(map(flag, choices))}]")
    if field.is_required():
        parts.append("[required]")
    elif (default := field.get_default(call_default_factory=True)) not in (None, (), ""):
        shown = ", ".join(map(str, default)) if isinstance(default, tuple) else default
        parts.append(f"[default: {shown}]")
    return " ".join(parts)


def _metavar(field: FieldInfo) -> str:
    kinds = str(field.annotation)
    word = next(
        (word for name, word in (("Literal", "CHOICE"), ("float", "NUMBER"), ("int", "INT")) if name in kinds), ""
    )
    word = word or ("PATH" if "Path" in kinds else "TEXT")
    return f"{word}..." if is_list(field) else word


def _run(stage: Stage, options: Options, screen: Screen) -> None:
    for name, value in SHORT_SPIN.items():
        os.environ.setdefault(name, value)
    screen.document = stage.document
    with screen.results_only():
        result = stage.run(options, screen.emit)
        screen.finish(dict(result.metrics), result.document)
    # A tool has said already what it found, and its stdout may be a document.
    if not screen.json and stage.outputs:
        for name, path in result.outputs.items():
            screen.result(f"{name:<12} {path}")
        for name, value in result.metrics.items():
            screen.result(f"{name} = {figure(value)}")


def _show(stage: Stage, options: Options, screen: Screen) -> None:
    command = redact(str(build(stage, options)))
    reads = {}
    for name in (*marks(type(options), InputFile), *marks(type(options), ModelReference)):
        if (value := getattr(options, name)) not in (None, ()):
            is_file = name in marks(type(options), InputFile)
            given = value if isinstance(value, tuple) else (value,)
            reads[name] = redact(" ".join(str(shipped.data_path(item) if is_file else item) for item in given))
    writes = {name: str(path) for name, path in stage.output_paths(options).items()}
    writes |= {
        name: str(path) for name in marks(type(options), OutputFile) if (path := getattr(options, name)) is not None
    }
    if screen.json:
        import msgspec

        answer = {"stage": stage.name, "command": command, "reads": reads, "writes": writes}
        answer |= {"preview": stage.preview(options)} if stage.preview_at else {}
        line = msgspec.json.encode(answer)
        screen.result(line.decode())
        return
    screen.result(command)
    for title, paths in (("reads", reads), ("writes", writes)):
        for name, path in paths.items():
            screen.result(f"  {title:<7}{name:<14} {path}")
    for text in stage.preview(options):
        screen.result(f"  {text}")
