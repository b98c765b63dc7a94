"""A line of a log as a person reads it: its level and its words."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import msgspec

from pillm.core.amounts import duration, figure, share
from pillm.core.events import (
    Failed,
    Finished,
    Found,
    Log,
    Made,
    Metric,
    Output,
    Progress,
    StageEnded,
    StageStarted,
)
from pillm.tui.runs import decoded
from pillm.tui.runs.lines import Keep

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")


class Row(NamedTuple):
    """`when` is the time of day in UTC, `stage` the stage it was said in; both may be empty."""

    level: Level
    text: str
    when: str = ""
    stage: str = ""


class Where(msgspec.Struct):
    """What a journal adds to an event."""

    at: str = ""
    stage: str = ""


_NOT_FOR_PEOPLE = (b'"event":"progress"', b'"event":"metric"')
"""Shown as bars and curves; in the log they would bury the words."""

_SAID_BY_US = re.compile(rb'"event":"(?:artifact|stage-started|stage-ended|failed|finished|finding)"')
"""Events whose words on the screen are not those in the file."""

_GRAVE = (b"warn", b"error", b"exception", b"traceback", b"fatal", b"critical", b'"finding"', b'"failed"')
"""Without one of these, no line of a block is a warning or worse."""

_LOUD = re.compile(rb"\b(error|exception|traceback|fatal|critical)\b", re.IGNORECASE)
_WARNING = re.compile(rb"\bwarn(?:ing)?\b", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]|\x1b\[[0-9;?]*[A-Za-z]")


def row(line: bytes) -> Row:
    """A line of a journal or of any other log. Never fails: what is no event is text."""
    if not line.startswith(b"{"):
        return Row(_level_of_text(line), plain(line.decode("utf-8", "replace")))
    event, place = decoded.event(line), decoded.value(line, Where)
    if event is None or place is None:
        return Row("info", plain(line.decode("utf-8", "replace")))
    level, text = _event(event)
    return Row(level, plain(text), place.at[11:19], place.stage)


def _event(event: object) -> tuple[Level, str]:
    match event:
        case Log():
            return event.level, event.message
        case Output():
            return "info", event.line
        case Found():
            return ("error" if event.finding.severity == "error" else "warning"), str(event.finding)
        case Made():
            return "info", f"made {event.artifact.path}"
        case StageStarted():
            return "info", f"== {event.stage}: {event.command}"
        case StageEnded():
            level = "error" if event.status == "failed" else "info"
            return level, f"== {event.stage}: {event.status} ({duration(event.seconds)})"
        case Failed():
            return "error", f"{event.message} — {event.hint}" if event.hint else event.message
        case Finished():
            return "info", "done: " + ", ".join(f"{name} {figure(value)}" for name, value in event.metrics.items())
        case Progress():
            return "debug", f"{event.label}: {share(event.done, event.total, event.unit)}"
        case Metric():
            return "debug", f"{event.name} = {figure(event.value)} {event.unit}".rstrip()
    raise AssertionError(f"no such event: {event}")


def keeper(least: Level, pattern: str = "") -> Keep:
    """Which lines are shown: those of the level `least` or a graver one, that hold `pattern` in any case.

    What can be told from bytes is told from them, of many lines at once: most of a large log is never decoded.
    """
    floor = LEVELS.index(least)
    words = pattern.lower()
    # Within JSON, letters beyond ASCII, quotes and backslashes may be written otherwise than they are shown.
    sure = words.encode() if words.isascii() and not set('"\\') & set(words) else b""

    def line(data: bytes) -> bool:
        head = data[:160]
        if not data or any(word in head for word in _NOT_FOR_PEOPLE):
            return False
        if floor == 0 and not words:
            return True
        if sure and sure not in data.lower() and not _SAID_BY_US.search(head):
            return False
        found = row(data)
        return LEVELS.index(found.level) >= floor and words in found.text.lower()

    def block(data: bytes) -> bool:
        if floor <= 1 and not words:
            return True
        low = data.lower()
        if floor > 1 and not any(word in low for word in _GRAVE):
            return False
        return not sure or sure in low or bool(_SAID_BY_US.search(data))

    return Keep(line, block)


def _level_of_text(line: bytes) -> Level:
    return "error" if _LOUD.search(line) else "warning" if _WARNING.search(line) else "info"


def plain(text: str) -> str:
    """Text without control codes: a log may hold what would move the cursor. Line ends become blanks."""
    return _CONTROL.sub("", text.replace("\t", "    ").replace("\n", "  "))
