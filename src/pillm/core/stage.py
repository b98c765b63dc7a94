"""What a stage gives back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from pillm.core.errors import UsageError

T = TypeVar("T")
R = TypeVar("R")
MetricValue = float | int | str | bool | None


class Result(msgspec.Struct, frozen=True):
    """Published outputs by the names of the stage table, and figures for people and for the report."""

    outputs: dict[str, Path]
    metrics: dict[str, MetricValue] = {}
    document: object = None
    """What `--json` prints instead of events, where the stage table says that the command answers with a document."""


def read_report(path: Path, kind: type[T], stage: str) -> T:
    """What `pillm STAGE` published at `path`. Raises UsageError with the place of what does not fit."""
    return _read(path, msgspec.json.Decoder(kind).decode, stage)


def read_report_lines(path: Path, kind: type[T], stage: str) -> list[T]:
    """The same of a file with one JSON object a line."""
    return _read(path, msgspec.json.Decoder(kind).decode_lines, stage)


def _read(path: Path, decode: Callable[[bytes], R], stage: str) -> R:
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", f"run: pillm {stage}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}", f"make it again with: pillm {stage}") from error
