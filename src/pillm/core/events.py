"""What a stage tells while it works. One event is one JSON object a line.

A stage gets `emit` and calls it; whoever runs the stage (command line, engine, terminal UI)
decides how an event looks. Nothing else in the tool prints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from pillm.core.artifacts import Artifact
from pillm.core.findings import Finding


class Progress(msgspec.Struct, frozen=True, tag="progress", tag_field="event"):
    """`done` of `total` `unit`s of the work called `label`; `total` is None where it is unknown."""

    label: str
    done: float
    total: float | None = None
    unit: str = ""


class Metric(msgspec.Struct, frozen=True, tag="metric", tag_field="event"):
    """A number at a step: loss, tokens per second, memory."""

    name: str
    value: float
    step: int | None = None
    unit: str = ""


class Log(msgspec.Struct, frozen=True, tag="log", tag_field="event"):
    """A line for a person."""

    message: str
    level: Literal["debug", "info", "warning", "error"] = "info"


class Found(msgspec.Struct, frozen=True, tag="finding", tag_field="event"):
    """Something wrong in the input."""

    finding: Finding


class Made(msgspec.Struct, frozen=True, tag="artifact", tag_field="event"):
    """A file is finished and published under its name."""

    name: str
    artifact: Artifact


class Output(msgspec.Struct, frozen=True, tag="output", tag_field="event"):
    """A line of what the user asked to see: a table's row, a finding in the chosen format."""

    line: str


class StageStarted(msgspec.Struct, frozen=True, tag="stage-started", tag_field="event"):
    """The engine starts a stage of a run with this shell line."""

    stage: str
    command: str


class StageEnded(msgspec.Struct, frozen=True, tag="stage-ended", tag_field="event"):
    """The engine is done with a stage: it ran, was taken from the cache, or failed."""

    stage: str
    status: Literal["ran", "cached", "failed", "stopped"]
    seconds: float = 0.0


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="event"):
    """The stage ends with this error."""

    message: str
    hint: str
    exit_code: int


class Finished(msgspec.Struct, frozen=True, tag="finished", tag_field="event"):
    """The stage ends well with these metrics."""

    metrics: dict[str, float | int | str | bool | None]


Event = Progress | Metric | Log | Found | Made | Output | StageStarted | StageEnded | Failed | Finished
Emit = Callable[[Event], None]

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    """One event as one line of JSON, without the newline."""
    return _encoder.encode(event)


def decode(line: bytes | str) -> Event:
    """The event of a line. Raises `msgspec.MsgspecError` if the line is not an event."""
    return _decoder.decode(line)


def silent(event: Event) -> None:
    """An `Emit` that tells nobody."""
