"""What changed from one build to the next in a series: verdicts over the runs of the history. Data only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from pillm.bench.compare.detector import Drift, shift
from pillm.bench.trends.series import Series, by_build

NEEDED = 4
"""Runs that count of each build before anything is said: with fewer, their spread is not known."""


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of a build in a series, and the verdict against the build before it, if one could be given."""

    name: str
    first: str
    runs: int
    invalid: int
    median: float | None
    change: Drift | None
    why_not: str
    """Why there is no verdict; empty for the first build and where there is one."""


def changes(found: Sequence[Series], *, error: float, least: float) -> list[list[Build]]:
    """The builds of each series. `error` is the chance of any false better or worse over all verdicts together.

    `least` is the smallest change of time that matters, as a ratio: 1.03.
    """
    import statistics

    parts = [by_build(whole) for whole in found]
    speeds = [[[point.tps for point in part.points if point.valid] for part in builds] for builds in parts]
    verdicts = sum(min(len(a), len(b)) >= NEEDED for builds in speeds for a, b in pairwise(builds))
    result: list[list[Build]] = []
    for builds, tps in zip(parts, speeds, strict=True):
        rows: list[Build] = []
        for place, (part, now) in enumerate(zip(builds, tps, strict=True)):
            before = tps[place - 1] if place else []
            change, why_not = None, ""
            if place and min(len(now), len(before)) >= NEEDED:
                change = shift(before, now, error / verdicts, math.log(least))
            elif place:
                why_not = f"{NEEDED} valid runs of each build are needed; there are {len(before)} and {len(now)}"
            rows.append(
                Build(
                    name=part.builds[0],
                    first=part.points[0].started,
                    runs=len(part.points),
                    invalid=len(part.points) - len(now),
                    median=statistics.median(now) if now else None,
                    change=change,
                    why_not=why_not,
                )
            )
        result.append(rows)
    return result
