"""A comparison as it goes: pairs until the detector has a verdict, and again those that other programs disturbed.

A pair is disturbed if other programs kept more cores busy than the measurement leaves. Whether it is says nothing of
which side was slower, and the rule knows no labels, so taking it again leaves the detector's error rate as it is.
There are only so many retakes: on a machine that is never calm the disturbed pairs count, the noise is what it is, and
the verdict is "cannot tell" rather than an alarm.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from pillm.bench.compare.detector import Judgement, Look, Verdict, judge, looks, overall
from pillm.bench.compare.sampling import Lengths, Pair, Side, others_now, pair
from pillm.core.events import Emit, Log, Progress, silent
from pillm.core.host import cores

Measure = Literal["decode", "prefill"]
Measuring = Callable[[Side, Side, Lengths, random.Random], Pair]
_SPARE = 0.25
"""Cores that others may use beyond those that the measurement leaves free before a pair counts as disturbed."""


class Design(msgspec.Struct, frozen=True, kw_only=True):
    """What is fixed before the first pair."""

    lengths: Lengths
    pairs: int
    """At most so many that count."""
    error: float
    """Chance of any false "worse" or "better", over both measures and all looks."""
    least: float
    """The smallest effect that matters, as a ratio of times: 1.03."""
    seed: int
    wait_s: float
    """How long to wait for a calm machine, in all."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What is measured."""
        both: tuple[tuple[Measure, int], ...] = (
            ("decode", self.lengths.gen_tokens),
            ("prefill", self.lengths.prompt_tokens),
        )
        return tuple(name for name, tokens in both if tokens)

    @property
    def looks(self) -> tuple[Look, ...]:
        """The looks of each measure; the error is shared among the measures."""
        return looks(self.pairs, self.error / len(self.measures))


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    verdict: Verdict
    measures: dict[str, Judgement]
    pairs: tuple[Pair, ...]
    retaken: int
    """Pairs that were disturbed and measured again."""
    disturbed: int
    """Disturbed pairs among those that count."""
    others: float
    """Cores that other programs kept busy, on average."""


def log_ratio(taken: Pair, measure: Measure) -> float:
    """ln(time of B / time of A) of a pair, each the fastest of its repetitions."""
    a, b = (min(side.decode_ns if measure == "decode" else side.prefill_ns) for side in (taken.a, taken.b))
    return math.log(b / a)


def disturbed(taken: Pair, threads: int) -> bool:
    """Whether other programs needed the cores that were measured on."""
    return max(taken.a.others, taken.b.others) > max(cores() - threads, 0) + _SPARE


def take(
    a: Side, b: Side, design: Design, emit: Emit = silent, *, measured: Measuring = pair
) -> Iterator[tuple[Pair, bool]]:
    """The pairs in order, and whether each counts; ends after `design.pairs` that count."""
    coin = random.Random(design.seed)  # noqa: S311  chooses an order
    left, waited, counted = design.pairs, 0.0, 0
    while counted < design.pairs:
        waited += _calm(design.lengths.threads, design.wait_s - waited, emit)
        taken = measured(a, b, design.lengths, coin)
        counts = not disturbed(taken, design.lengths.threads) or not left
        counted, left = counted + counts, left - (not counts)
        emit(Progress("pairs", counted, design.pairs, "pairs"))
        yield taken, counts


def compare(a: Side, b: Side, design: Design, emit: Emit = silent, *, measured: Measuring = pair) -> Comparison:
    """Take pairs until every measure has its verdict, or one is worse, or there are no more."""
    plan = {look.pairs: look for look in design.looks}
    counted: list[Pair] = []
    every: list[Pair] = []
    judged: dict[str, Judgement] = {}
    for taken, counts in take(a, b, design, emit, measured=measured):
        every.append(taken)
        if not counts:
            continue
        counted.append(taken)
        if look := plan.get(len(counted)):
            # A measure that has its verdict keeps it: a second look would spend its error twice.
            judged |= {
                name: judge([log_ratio(each, name) for each in counted], look, math.log(design.least))
                for name in design.measures
                if name not in judged or judged[name].verdict == "cannot tell"
            }
            verdicts = [each.verdict for each in judged.values()]
            if "worse" in verdicts or "cannot tell" not in verdicts:
                break
    return Comparison(
        verdict=overall([each.verdict for each in judged.values()]),
        measures=judged,
        pairs=tuple(counted),
        retaken=len(every) - len(counted),
        disturbed=sum(disturbed(each, design.lengths.threads) for each in counted),
        others=mean_others(every),
    )


def mean_others(taken: Sequence[Pair]) -> float:
    """Cores that other programs kept busy, over all samples."""
    samples = [side for each in taken for side in (each.a, each.b)]
    return round(sum(side.others for side in samples) / max(len(samples), 1), 2)


def _calm(threads: int, seconds: float, emit: Emit) -> float:
    """Wait until other programs leave the cores that are needed, at most so long; returns how long it took."""
    began = time.monotonic()
    told = False
    while (gone := time.monotonic() - began) < seconds and others_now() > max(cores() - threads, 0) + _SPARE:
        if not told:
            emit(Log(f"other programs need this machine: waiting up to {seconds:.0f} s for them", "warning"))
            told = True
        emit(Progress("wait", round(gone), None, "s"))
    return time.monotonic() - began if told else 0.0
