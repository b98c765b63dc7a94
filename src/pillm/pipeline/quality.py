"""What the runs below a folder measured of quality, beside the size of what they measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from pillm.core.errors import PillmError
from pillm.evaluate import report
from pillm.evaluate.report import Rate
from pillm.pipeline.stages import STAGES

REPORT = STAGES["evaluate"].outputs["report"]


class Measured(msgspec.Struct, frozen=True):
    """A model file and its measures: shares from 0 to 1 with their 95 % intervals, by what they are a share of."""

    run: str
    file: str
    bytes: int
    data: str
    asked: int
    measures: dict[str, Rate]


def reports(root: Path) -> list[Path]:
    """The reports of quality of the runs below `root`."""
    return sorted(root.glob(f"*/*/{REPORT}"))


def found(root: Path) -> list[Measured]:
    """What they say; one that cannot be read, or is of another version, is left out."""
    return [item for path in reports(root) if (item := _read(path))]


def _read(path: Path) -> Measured | None:
    try:
        quality = report.load(path)
    except PillmError:
        return None
    return Measured(
        run=f"{path.parent.parent.name}/{path.parent.name}",
        file=quality.model.file,
        bytes=quality.model.bytes,
        data=quality.data,
        asked=quality.asked,
        measures=dict(_shares(quality)),
    )


def _shares(quality: report.Quality) -> Iterator[tuple[str, Rate]]:
    for name in quality.overall.__struct_fields__:
        value = getattr(quality.overall, name)
        if isinstance(value, Rate):
            yield name, value
