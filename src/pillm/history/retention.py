"""Which runs of a history a policy lets go. Decides only; nothing is deleted here.

A policy names what is safe: runs younger than so many days, the newest so many of each series. What neither covers
goes, or is thinned to one a day or a week of its series. Each rule that is given can only keep more.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

import msgspec

from pillm.core.errors import UsageError
from pillm.history.schema import Summary


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept. At least one of the first two must be given."""

    days: int | None = None
    """Everything that started within so many days."""
    per_series: int | None = None
    """The newest so many runs of each series."""
    thin: Literal["day", "week"] | None = None
    """Of the rest, one run a day or (ISO) week of each series; the newest valid one, else the newest."""

    def __str__(self) -> str:
        parts = [f"keep-days={self.days}"] if self.days is not None else []
        parts += [f"keep-per-series={self.per_series}"] if self.per_series is not None else []
        parts += [f"thin={self.thin}"] if self.thin else []
        return ",".join(parts)


def series(run: Summary) -> tuple[object, ...]:
    """Runs that say the same thing: board, memory, shape of the model, build."""
    return (run.board, run.ram_bytes, run.model_shape, run.build)


def superfluous(runs: Iterable[Summary], policy: Policy, now: datetime.datetime) -> list[Summary]:
    """The runs that the policy lets go, oldest first. Raises UsageError for a policy that would keep nothing."""
    if policy.days is None and policy.per_series is None:
        raise UsageError(
            "a policy must say what is kept", "give --keep-days or --keep-per-series; --thin only adds to them"
        )
    groups: dict[tuple[object, ...], list[Summary]] = defaultdict(list)
    for run in runs:
        groups[series(run)].append(run)
    since = None
    if policy.days is not None:
        since = (now - datetime.timedelta(days=policy.days)).astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    gone: list[Summary] = []
    for group in groups.values():
        newest = sorted(group, key=lambda run: run.started, reverse=True)
        rest = [run for run in newest[policy.per_series or 0 :] if since is None or run.started < since]
        if policy.thin:
            kept = {run.id for run in _one_each(rest, policy.thin)}
            rest = [run for run in rest if run.id not in kept]
        gone += rest
    return sorted(gone, key=lambda run: run.started)


def _one_each(newest_first: list[Summary], period: Literal["day", "week"]) -> Iterable[Summary]:
    chosen: dict[object, Summary] = {}
    for run in newest_first:
        day = datetime.date.fromisoformat(run.started[:10])
        key = day if period == "day" else day.isocalendar()[:2]
        held = chosen.get(key)
        if held is None or (run.valid and not held.valid):
            chosen[key] = run
    return chosen.values()
