"""Lines of eight heights for a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from pillm.bench.trends.series import Point, Series, by_build, groups

_HEIGHTS = "▁▂▃▄▅▆▇█"
_INVALID = "×"
_LEAST_RANGE = 0.1
"""The heights span at least this share of the middle, so that noise does not look like a change."""


def sparkline(points: Sequence[Point], width: int = 32) -> str:
    """Medians of neighbours as heights; a cross stands where no run counts. Empty without runs."""
    cells = groups(points, width)
    heights = [cell.median for cell in cells if cell.invalid < cell.runs]
    if not heights:
        return _INVALID * len(cells)
    middle = statistics.median(heights)
    low, high = min(heights), max(heights)
    short = max(_LEAST_RANGE * middle - (high - low), 0.0)
    low, high = low - short / 2, high + short / 2
    top = len(_HEIGHTS) - 1

    def height(value: float) -> str:
        return _HEIGHTS[min(max(round((value - low) / (high - low) * top), 0), top)]

    return "".join(height(cell.median) if cell.invalid < cell.runs else _INVALID for cell in cells)


def lines(found: Sequence[Series], width: int = 32) -> Iterator[str]:
    """One line for each build of each series: its heights, the latest figure, how many runs, and what it is."""
    for whole in found:
        for part in by_build(whole):
            valid = [point.tps for point in part.points if point.valid]
            latest = f"{valid[-1]:9.2f}" if valid else f"{'-':>9}"
            count = f"{len(part.points)} run{'s' if len(part.points) > 1 else ''}"
            invalid = len(part.points) - len(valid)
            count += f", {invalid} invalid" if invalid else ""
            drawn = sparkline(part.points, width)
            name = plain(f"{whole.key.label}, {part.builds[0]}")
            yield f"{drawn:<{width}} {latest} tokens/s {whole.key.what:<7} {name} ({count})"


def plain(name: str) -> str:
    """A name as a terminal may show it: one out of a file may hold control codes."""
    return name if name.isprintable() else repr(name)
