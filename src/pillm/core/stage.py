"""What a stage gives back."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from pillm.core.errors import UsageError

T = TypeVar("T")
MetricValue = float | int | str | bool | None


class Result(msgspec.Struct, frozen=True):
    """Published outputs by the names of the stage table, and figures for people and for the report."""

    outputs: dict[str, Path]
    metrics: dict[str, MetricValue] = {}


def read_report(path: Path, kind: type[T], stage: str, *, lines: bool = False) -> T:
    """What `pillm STAGE` published at `path`, as a `kind`; with `lines`, `kind` is a list and each line an item.

    Raises UsageError with the place of what does not fit.
    """
    try:
        content = path.read_bytes()
        return (
            msgspec.convert(msgspec.json.Decoder().decode_lines(content), kind)
            if lines
            else msgspec.json.decode(content, type=kind)
        )
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", f"run: pillm {stage}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}", f"make it again with: pillm {stage}") from error
