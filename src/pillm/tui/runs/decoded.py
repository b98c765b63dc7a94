"""Lines and files as values; what cannot be read as one is None, whatever is wrong with it."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from pillm.core.events import Event, decode

T = TypeVar("T")

# A string of bytes that are no UTF-8 is a UnicodeDecodeError, which is no error of msgspec's own.
_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def event(line: bytes) -> Event | None:
    """The event of a line."""
    try:
        return decode(line)
    except _BROKEN:
        return None


def value(data: bytes | str, kind: type[T]) -> T | None:
    """JSON as a value of a type."""
    try:
        return msgspec.json.decode(data, type=kind)
    except _BROKEN:
        return None
