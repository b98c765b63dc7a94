"""The history as series of figures: what lines, pages and plots show. Data only; nothing is drawn here.

One pass over the summaries; what is held of a run is one small point, so 20,000 runs are a few megabytes, and what is
drawn of a series is thinned to a number of groups that does not grow with the history.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec

from pillm.history.schema import Summary

What = Literal["decode", "prefill"]
WHATS: tuple[What, ...] = ("decode", "prefill")


class Key(NamedTuple):
    """Runs whose speeds can stand on one line."""

    board: str
    ram_bytes: int | None
    model: str
    quant: str
    threads: int
    what: What

    @property
    def label(self) -> str:
        """For people: model, quantization, board, threads."""
        ram = f" {round(self.ram_bytes / 2**30)} GB" if self.ram_bytes else ""
        quant = f" {self.quant}" if self.quant and self.quant.lower() not in self.model.lower() else ""
        return f"{self.model}{quant} on {self.board}{ram}, {self.threads} thread{'s' if self.threads != 1 else ''}"


class Point(NamedTuple):
    """One run: when, tokens/s, the build, and whether it counts."""

    started: str
    tps: float
    build: str
    valid: bool


class Series(msgspec.Struct, frozen=True):
    """The runs of a key in the order of time."""

    key: Key
    points: tuple[Point, ...]

    @property
    def builds(self) -> tuple[str, ...]:
        """Builds in the order in which they came first."""
        return tuple(dict.fromkeys(point.build for point in self.points))


class Group(NamedTuple):
    """Neighbours on a line drawn as one: quantiles of the runs that count, and how many do not."""

    started: str
    build: str
    low: float
    median: float
    high: float
    runs: int
    invalid: int


class Spot(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a board in a roofline: its fastest valid run."""

    board: str
    model: str
    quant: str
    read_bytes: int | None
    parameters: int | None
    decode_tps: float | None
    prefill_tps: float | None

    @property
    def bandwidth(self) -> float | None:
        """Bytes/s that decoding at this speed must read at least."""
        return self.decode_tps * self.read_bytes if self.decode_tps and self.read_bytes else None

    @property
    def operations(self) -> float | None:
        """Operations/s of prefill: two for each weight and token."""
        return self.prefill_tps * 2 * self.parameters if self.prefill_tps and self.parameters else None


def series(rows: Iterable[Summary]) -> list[Series]:
    """All series, those with the latest run first. Rows come in the order of time."""
    found: dict[Key, list[Point]] = defaultdict(list)
    builds: dict[str, str] = {}
    for row in rows:
        # One text for all runs of a build: each row comes with one of its own.
        build = builds.setdefault(row.build, row.build)
        for what in WHATS:
            tps, threads = (
                (row.decode_tps, row.decode_threads) if what == "decode" else (row.prefill_tps, row.prefill_threads)
            )
            if tps and math.isfinite(tps):
                key = Key(row.board, row.ram_bytes, row.model_name, row.quant, threads or 0, what)
                found[key].append(Point(row.started, tps, build, row.valid))
    ordered = sorted(found.items(), key=lambda item: item[0].what)
    ordered.sort(key=lambda item: item[1][-1].started, reverse=True)
    return [Series(key, tuple(points)) for key, points in ordered]


def by_build(whole: Series) -> list[Series]:
    """The runs of each build as a series of its own."""
    parts: dict[str, list[Point]] = defaultdict(list)
    for point in whole.points:
        parts[point.build].append(point)
    return [Series(whole.key, tuple(points)) for points in parts.values()]


def groups(points: Sequence[Point], most: int) -> list[Group]:
    """At most about `most` groups of neighbours of one build, of equal numbers of runs."""
    size = max(math.ceil(len(points) / most), 1)
    result: list[Group] = []
    held: list[Point] = []
    for point in points:
        if held and (len(held) == size or held[0].build != point.build):
            result.append(_group(held))
            held = []
        held.append(point)
    return [*result, _group(held)] if held else result


def _group(points: Sequence[Point]) -> Group:
    valid = [point.tps for point in points if point.valid]
    # Only runs that do not count: their place is shown, marked.
    shown = valid or [point.tps for point in points]
    return Group(
        started=points[0].started,
        build=points[0].build,
        low=min(shown),
        median=statistics.median(shown),
        high=max(shown),
        runs=len(points),
        invalid=len(points) - len(valid),
    )


def spots(rows: Iterable[Summary]) -> list[Spot]:
    """The fastest valid run of each model on each board; measured figures only."""
    best: dict[tuple[str, str, str], Spot] = {}
    for row in rows:
        if not row.valid:
            continue
        key = (row.board, row.model_name, row.quant)
        old = best.get(key)
        weights = row.model_shape.partition("/")[0]
        best[key] = Spot(
            board=row.board,
            model=row.model_name,
            quant=row.quant,
            read_bytes=row.read_bytes or (old.read_bytes if old else None),
            parameters=int(weights) if weights.isdigit() else None,
            decode_tps=max(filter(None, (row.decode_tps, old and old.decode_tps)), default=None),
            prefill_tps=max(filter(None, (row.prefill_tps, old and old.prefill_tps)), default=None),
        )
    return list(best.values())
