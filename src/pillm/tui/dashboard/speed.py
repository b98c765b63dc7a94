"""The history of benchmarks as the dashboard shows it: rows of series, a trend to draw, verdicts in words. No terminal."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pillm.bench.trends.changes import Build, changes
from pillm.bench.trends.series import Series, groups, series
from pillm.bench.trends.sparkline import plain, sparkline
from pillm.bench.verdict_options import VerdictOptions
from pillm.history import store
from pillm.history.schema import Summary

SPARK = 16
_SIGNS = {"better": "▲", "worse": "▼", "same": "=", "cannot tell": "?"}
COLUMNS = ("model", "board", "what", "tokens/s", "last change", "runs", "trend", "threads")
"""What matters most stands first: a narrow terminal shows no more than that."""

Stamp = tuple[tuple[int, int], ...]


class Speeds(NamedTuple):
    """The history at one moment. `builds` are those of each series, in order; empty while verdicts are worked out."""

    path: Path
    runs: int
    invalid: int
    series: tuple[Series, ...]
    builds: tuple[tuple[Build, ...], ...] = ()


class Trend(NamedTuple):
    """What is drawn of a series. Times are days since 1970. `pieces` break where the build changes."""

    pieces: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    crosses: tuple[tuple[float, ...], tuple[float, ...]]
    """Groups with runs that do not count."""
    changes: tuple[float, ...]


def stamp(path: Path | None = None) -> Stamp:
    """Something that is another after the history was written to."""
    place = path or store.location()
    files = (place, place.with_name(place.name + "-wal"))
    abouts = [file.stat() for file in files if file.exists()]
    # Reading makes an empty log, too.
    return tuple((about.st_mtime_ns, about.st_size) for about in abouts if about.st_size)


def read(path: Path | None = None) -> Speeds:
    """The series of a history, without verdicts. One pass; a run is kept as one small point of each of its series.

    Raises PillmError as the store does.
    """
    counts = [0, 0]

    def counted() -> Iterator[Summary]:
        for row in store.summaries(path=path):
            counts[0] += 1
            counts[1] += not row.valid
            yield row

    found = tuple(series(counted()))
    return Speeds(path or store.location(), counts[0], counts[1], found)


def judged(speeds: Speeds) -> Speeds:
    """The same with verdicts between builds; the chance of any false one is that of `pillm bench report`."""
    usual = VerdictOptions.model_validate({})
    found = changes(speeds.series, error=usual.false_alarms / 100, least=1 + usual.min_effect / 100)
    return speeds._replace(builds=tuple(tuple(rows) for rows in found))


def rows(speeds: Speeds) -> list[tuple[str, ...]]:
    """A row for each series, as COLUMNS names its cells."""
    found = []
    for place, whole in enumerate(speeds.series):
        key = whole.key
        valid = [point.tps for point in whole.points if point.valid]
        invalid = len(whole.points) - len(valid)
        ram = f" {round(key.ram_bytes / 2**30)} GB" if key.ram_bytes else ""
        quant = f" {key.quant}" if key.quant and key.quant.lower() not in key.model.lower() else ""
        found.append(
            (
                plain(key.model + quant),
                plain(key.board) + ram,
                key.what,
                f"{valid[-1]:.2f}" if valid else "-",
                last_change(speeds.builds[place]) if speeds.builds else "…",
                f"{len(whole.points):,}" + (f" ({invalid:,} ×)" if invalid else ""),
                sparkline(whole.points, SPARK),
                str(key.threads),
            )
        )
    return found


def last_change(builds: Sequence[Build]) -> str:
    """The verdict on the latest build that got one."""
    for build in reversed(builds):
        if build.change:
            return f"{_SIGNS[build.change.verdict]} {build.change.verdict}"
    return "one build" if len(builds) < 2 else "too few runs"


def build_lines(builds: Iterable[Build]) -> list[str]:
    """A line or two for each build, the latest first: its median, its runs, and the verdict against the one before."""
    lines = []
    for build in reversed(list(builds)):
        median = f"{build.median:.2f} tokens/s" if build.median is not None else "no run counts"
        invalid = f" ({build.invalid:,} ×)" if build.invalid else ""
        lines.append(f"{plain(build.name)} from {build.first[:10]}")
        lines.append(f"  {median}, {build.runs:,} run{'s' if build.runs > 1 else ''}{invalid}")
        if build.change:
            low, high = (100 * (value - 1) for value in (build.change.low, build.change.high))
            lines.append(f"  {_SIGNS[build.change.verdict]} {build.change.verdict}: time {low:+.1f} % to {high:+.1f} %")
        elif build.why_not:
            lines.append(f"  {build.why_not}")
    return lines


def trend(whole: Series, most: int) -> Trend:
    """About `most` groups of neighbours at most."""
    pieces: list[tuple[list[float], list[float]]] = []
    crosses: tuple[list[float], list[float]] = ([], [])
    marks: list[float] = []
    before = None
    for cell in groups(whole.points, max(most, 2)):
        at = datetime.datetime.fromisoformat(cell.started).timestamp() / 86_400
        if cell.build != before:
            if before is not None:
                marks.append(at)
            before = cell.build
            pieces.append(([], []))
        if cell.invalid < cell.runs:
            pieces[-1][0].append(at)
            pieces[-1][1].append(cell.median)
        if cell.invalid:
            crosses[0].append(at)
            crosses[1].append(cell.median)
    whole_pieces = tuple((tuple(xs), tuple(ys)) for xs, ys in pieces if xs)
    return Trend(whole_pieces, (tuple(crosses[0]), tuple(crosses[1])), tuple(marks))
