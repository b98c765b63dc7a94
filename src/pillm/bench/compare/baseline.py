"""New runs against the earlier runs of its series: which of them can be compared with it, and what they say.

The same board, memory and shape of model are a series. An earlier run counts if it is valid and the board was in the
same state: governor, highest clock, temperature at the start. Each test of the new runs (what, tokens, depth, threads)
is compared with the same test of the earlier runs, by their speed from run to run, which contains what differs
between processes, boots and days; the spread inside of a run does not.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from pillm.bench.compare.detector import Drift, Verdict, drift, overall
from pillm.core.errors import UsageError
from pillm.history.document import Run, Speed, busy
from pillm.history.schema import board_name, build_name, model_shape, utc

_WARMER_C = 15.0
"""Degrees at the start beyond which a board is in another state: it reaches its limit sooner."""
NEW = 3
"""New runs without which nothing is called better or worse. Runs have odd ones among them more often than a normal
distribution has: of single processes 4 % fell out of their 1 % interval here, of medians of three none of 213."""
_CLOCK = 0.02
"""Relative difference of the highest clock that is no other setting."""

Test = tuple[str, int, int, int, str, str]


class AgainstHistory(msgspec.Struct, frozen=True, kw_only=True):
    """What the history says of a run."""

    verdict: Verdict
    build: str
    """The build of the earlier runs."""
    new: int
    """New runs; the median of each test is judged."""
    earlier: int
    """Earlier runs that count."""
    left_out: dict[str, int]
    """Why earlier runs of the series do not count, and how many."""
    reasons: tuple[str, ...]
    """Why it cannot be told, where that is known before any figure is looked at."""
    tests: dict[str, Drift]


def against(
    new: Sequence[Run], history: Iterable[Run], *, build: str | None, needed: int, error: float, least: float
) -> AgainstHistory:
    """Compare the median of the `new` runs with the runs of `history` before them (read one at a time; only speeds are held).

    `error` is the chance of any false better or worse over all tests; `least` a ratio of times, as 1.03. Raises
    UsageError if the new runs are not of one series, build and state.
    """
    first, began = new[0], min(utc(run.started) for run in new)
    own = {run.id for run in new}
    for run in new[1:]:
        if build_name(run) != build_name(first) or not same_series(run, first) or _setting(run, first):
            raise UsageError(
                f"run {run.id} and run {first.id} cannot be judged together",
                "give runs of one model, on one board with the same settings, with one build",
            )
    left_out: Counter[str] = Counter()
    builds: dict[str, list[dict[Test, float]]] = defaultdict(list)
    for run in history:
        if run.id in own or utc(run.started) >= began or not same_series(run, first):
            continue
        reason = other_state(run, first)
        if reason:
            left_out[reason] += 1
        else:
            builds[build_name(run)].append({_test(speed): speed.mean_tps for speed in run.speeds})
    chosen = _build(builds, build, build_name(first), needed)
    rows = builds.get(chosen, [])
    for name, others in builds.items():
        if name != chosen:
            left_out[f"of another build ({name})"] += len(others)
    reasons = list(dict.fromkeys(reason for run in new for reason in _unfit(run)))
    speeds: dict[Test, list[float]] = defaultdict(list)
    for run in new:
        for speed in run.speeds:
            if speed.mean_tps > 0:
                speeds[_test(speed)].append(speed.mean_tps)
    tests: dict[str, Drift] = {}
    alone: list[Verdict] = []
    for test, tps in speeds.items():
        earlier = [row[test] for row in rows if row.get(test)]
        if len(earlier) >= needed and not reasons:
            judged = drift(statistics.median(tps), earlier, error / len(speeds), math.log(least))
            if judged.verdict in ("better", "worse") and len(tps) < NEW:
                alone.append(judged.verdict)
                judged = msgspec.structs.replace(judged, verdict="cannot tell")
            tests[_name(test)] = judged
    if alone:
        reasons.append(
            f"this looks {overall(alone)}, but odd runs happen: {NEW - len(new)} more new {'run tells' if NEW - len(new) == 1 else 'runs tell'}"
        )
    if not tests and not reasons:
        reasons.append(_missing(rows, speeds, needed))
    return AgainstHistory(
        verdict=overall([test.verdict for test in tests.values()]) if tests else "cannot tell",
        build=chosen,
        new=len(new),
        earlier=len(rows),
        left_out=dict(left_out.most_common()),
        reasons=tuple(reasons),
        tests=tests,
    )


def _missing(rows: Sequence[dict[Test, float]], tests: Iterable[Test], needed: int) -> str:
    counts = [sum(bool(row.get(test)) for row in rows) for test in tests]
    if not counts:
        return "the run has no speeds"
    most = max(counts)
    there = f"there {'is' if most == 1 else 'are'} {most}"
    return f"{needed} earlier runs that can be compared are needed, {there}: {needed - most} more"


def same_series(a: Run, b: Run) -> bool:
    """Whether two runs are of the same board, memory and shape of model."""
    return (board_name(a), a.board.ram_bytes, model_shape(a)) == (board_name(b), b.board.ram_bytes, model_shape(b))


def other_state(run: Run, new: Run) -> str:
    """Why an earlier run of the series does not count; empty if it does."""
    if not run.valid:
        return "not valid (throttled, swapped, ...)"
    if run.emulated or new.emulated:
        return "of an emulated processor"
    if busy(run):
        return "beside other programs at work"
    if setting := _setting(run, new):
        return setting
    a, b = run.before.temperature_c, new.before.temperature_c
    if a is not None and b is not None and abs(a - b) > _WARMER_C:
        return f"more than {_WARMER_C:.0f} degrees warmer or colder at the start"
    return ""


def _setting(run: Run, new: Run) -> str:
    """How the board was set otherwise; empty if it was not."""
    if run.board.governor != new.board.governor:
        return f"with the governor {run.board.governor or 'unknown'}, not {new.board.governor or 'unknown'}"
    a, b = run.board.max_mhz, new.board.max_mhz
    if a and b and abs(a - b) > _CLOCK * b:
        return f"with a highest clock of {a:g} MHz, not {b:g}"
    return ""


def _unfit(new: Run) -> Iterable[str]:
    """Why nothing can be said of the new run."""
    if not new.valid:
        yield f"the run does not count itself: {'; '.join(new.invalid) or 'it is marked invalid'}"
    if new.emulated:
        yield f"the processor is emulated ({new.emulated})"
    if others := busy(new):
        yield f"{others}; end them and measure again"


def _build(builds: dict[str, list[dict[Test, float]]], asked: str | None, own: str, needed: int) -> str:
    if asked is not None:
        return next((name for name in builds if asked.lower() in name.lower()), asked)
    enough = [name for name, rows in builds.items() if len(rows) >= needed]
    # The history comes in the order of time, so the last one is the newest that began.
    return own if own in enough or not enough else enough[-1]


def _test(speed: Speed) -> Test:
    return (speed.what, speed.tokens, speed.depth, speed.threads, speed.type_k, speed.type_v)


def _name(test: Sequence[object]) -> str:
    what, tokens, depth, threads, type_k, type_v = test
    cache = "" if type_k == type_v == "f16" else f", cache of {type_k} keys and {type_v} values"
    return f"{what} of {tokens} tokens at depth {depth}, {threads} threads{cache}"
