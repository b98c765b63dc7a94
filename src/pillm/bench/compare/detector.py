"""Better, same, worse, or cannot tell: paired measurements in, a verdict out. Nothing is measured here.

A pair is one time of A and one of B, taken one right after the other in an order that a coin decided. Its figure is
d = ln(time of B / time of A): positive where B is slower, and the same for a 5 % slow-down of any model.

What makes the error rate hold on a noisy machine is the coin. If A and B do not differ, swapping the labels of a
pair changes nothing but the sign of d, and the coin swapped them; so given the sizes |d|, all 2^n patterns of signs
are equally likely, whatever the noise does: drift, spikes, other programs, samples that depend on each other. The
signed-rank statistic W (Wilcoxon 1945) then has its exact distribution, without any assumption about the noise.

The estimate is the median of the Walsh averages (d_i + d_j) / 2, i <= j (Hodges and Lehmann 1963), its interval
the order statistics of these averages that the exact W gives (Tukey's interval; Hollander and Wolfe, Nonparametric
Statistical Methods, section 3.3). A spike in one pair moves it little: its breakdown point is 29 %.

The data are looked at up to three times. Each look has a share of the error that is spent on it alone, and the
shares add up to the whole (Bonferroni), so stopping early cannot raise it. A look with so few pairs that even n equal
signs are likelier than its share is left out, and the last look gets what is over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import msgspec
import numpy as np

Verdict = Literal["better", "same", "worse", "cannot tell"]

_EARLY = ((0.5, 0.4), (0.75, 0.2))
"""Looks before the last: after this share of the pairs, with this share of the error."""
_LASTING = math.log(1.0075)
"""Differences up to this size may last without meaning anything: where a file or a program lies, what else uses it. The
coin cannot average them away (a file and its copy differed by 0.4 % and 0.65 % for an hour each, docs/bench-history.md),
so an interval that excludes 0 by less is no news. Never more than half of the least effect that is asked for."""
_SAME_ERROR = 0.05
"""Chance to call a change of exactly the least effect "same". Larger than that of a false alarm: it costs less."""


class Look(msgspec.Struct, frozen=True):
    """After `pairs` pairs. The tails are one-sided chances that are spent on this look."""

    pairs: int
    alarm_tail: float
    same_tail: float


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What the pairs say. Ratios are times of B over times of A: 1.05 is 5 % slower."""

    verdict: Verdict
    pairs: int
    ratio: float
    low: float
    high: float
    """Interval for `ratio`; over all looks together it misses the truth with at most the error that was asked for.
    Null in JSON (an infinity here) where there are too few pairs for any."""
    noise: float
    """Spread of the pairs: 1.4826 times the median distance of d to its median (a standard deviation where d is
    normal), in percent of time."""
    needed: int | None
    """Pairs that would do at this noise to see the least effect in four of five cases; None where these did."""


def looks(pairs: int, error: float) -> tuple[Look, ...]:
    """When to look at up to `pairs` pairs so that a false "worse" or "better" has at most the chance `error`."""
    tail = error / 2
    plan: list[tuple[int, float]] = []
    for part, share in _EARLY:
        count = math.ceil(pairs * part)
        if count < pairs and 0.5**count <= share * tail:
            plan.append((count, share))
    plan.append((pairs, 1 - sum(share for _, share in plan)))
    return tuple(Look(count, share * tail, share * _SAME_ERROR) for count, share in plan)


@cache
def _cumulative(count: int) -> np.ndarray:
    """P(W <= w) for w = 0 ... n(n+1)/2, where each rank 1 ... n counts with chance one half: exact in float64."""
    chances = np.zeros(count * (count + 1) // 2 + 1)
    chances[0] = 1.0
    for rank in range(1, count + 1):
        moved = np.zeros_like(chances)
        moved[rank:] = chances[:-rank]
        chances = (chances + moved) / 2
    return np.cumsum(chances)


def walsh(d: Sequence[float]) -> np.ndarray:
    """The n(n+1)/2 averages of all pairs of values, each with itself too, in order."""
    values = np.asarray(d, dtype=np.float64)
    first, second = np.triu_indices(len(values))
    return np.sort((values[first] + values[second]) / 2)


def interval(averages: np.ndarray, count: int, tail: float) -> tuple[float, float]:
    """Signed-rank interval out of Walsh averages of `count` values; each side misses with at most `tail`."""
    critical = int(np.searchsorted(_cumulative(count), tail, side="right")) - 1
    if critical < 0:
        return -math.inf, math.inf
    return float(averages[critical]), float(averages[-1 - critical])


def judge(d: Sequence[float], look: Look, least: float) -> Judgement:
    """Judge the pairs of one look. `least` is the smallest effect that matters, as ln(1.03) for 3 %.

    worse: the interval lies above 0 by more than what may last without meaning anything, and the estimate is `least`
    or more. better: the same below. same: the interval of the "same" error lies within -least ... least.
    """
    averages = walsh(d)
    estimate = float(np.median(averages))
    low, high = interval(averages, len(d), look.alarm_tail)
    within_low, within_high = interval(averages, len(d), look.same_tail)
    lasting = min(_LASTING, least / 2)
    verdict: Verdict = "cannot tell"
    if low > lasting and estimate >= least:
        verdict = "worse"
    elif high < -lasting and estimate <= -least:
        verdict = "better"
    elif within_low > -least and within_high < least:
        verdict = "same"
    noise = 1.4826 * float(np.median(np.abs(np.asarray(d) - np.median(d))))
    return Judgement(
        verdict=verdict,
        pairs=len(d),
        ratio=math.exp(estimate),
        low=math.exp(low),
        high=math.exp(high) if high < math.inf else math.inf,
        noise=100 * noise,
        needed=_needed(noise, look.alarm_tail, least) if verdict == "cannot tell" else None,
    )


def _needed(noise: float, tail: float, least: float) -> int:
    """Pairs for a power of 80 % against `least`: ((z_tail + z_0.8) sigma / least)^2, over the rank test's efficiency 3/pi."""
    from scipy.special import ndtri

    z = float(ndtri(0.8) - ndtri(tail))
    return max(math.ceil((z * noise / least) ** 2 * math.pi / 3), 1)


def follow(d: Sequence[float], plan: Sequence[Look], least: float) -> Judgement:
    """Look at the pairs as the plan says and stop at the first verdict: what a comparison would have said.

    With fewer pairs than the first look asks for, that look's error is spent on those that are there.
    """
    for look in plan:
        if len(d) < look.pairs:
            break
        judged = judge(d[: look.pairs], look, least)
        if judged.verdict != "cannot tell" or look is plan[-1] or len(d) == look.pairs:
            return judged
    done = [look for look in plan if look.pairs <= len(d)]
    if done:
        return judge(d[: done[-1].pairs], done[-1], least)
    return judge(d, plan[0], least)


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """One new run, or several, against earlier ones. Ratios are of times: 1.05 is 5 % slower than before."""

    verdict: Verdict
    runs: int
    tps: float
    before_tps: float
    """Geometric mean of the earlier runs."""
    ratio: float
    low: float
    high: float
    """Interval for `ratio` that holds 1 with a chance of 1 - error where nothing has changed."""
    spread: float
    """Standard deviation of ln(tokens/s) from run to run, in percent."""


def drift(tps: float, earlier: Sequence[float], error: float, least: float) -> Drift:
    """Whether a new run fits the earlier ones. Needs two earlier runs at least; all speeds above 0.

    With y = ln(tokens/s) of k earlier runs, a further run of the same lies within mean(y) +- t s sqrt(1 + 1/k), t of
    Student's distribution with k - 1 degrees of freedom (the prediction interval of normal values; Hahn and Meeker,
    Statistical Intervals, section 4.7). There is no coin here: runs that drift over weeks are not independent, so the
    error rate holds only as far as earlier runs are like the next. An outlier among them widens the interval.
    """
    logs = np.log(np.asarray(earlier, dtype=np.float64))
    count, spread = len(logs), float(logs.std(ddof=1))
    return _students(math.log(tps), logs, spread * math.sqrt(1 + 1 / count), count - 1, spread, error, least)


def shift(earlier: Sequence[float], later: Sequence[float], error: float, least: float) -> Drift:
    """Whether later runs are slower or faster than earlier ones: at least two of each, all speeds above 0.

    Welch's interval for the difference of means of ln(tokens/s), with the degrees of freedom of Satterthwaite (Welch
    1947). As with `drift` there is no coin, so what differs between the days of the runs counts as a change, too.
    """
    a, b = (np.log(np.asarray(tps, dtype=np.float64)) for tps in (earlier, later))
    parts = [float(values.var(ddof=1)) / len(values) for values in (a, b)]
    unit = math.sqrt(sum(parts))
    below = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    freedom = unit**4 / below if below else float(len(a) + len(b) - 2)
    return _students(float(b.mean()), a, unit, freedom, float(a.std(ddof=1)), error, least)


def _students(
    now: float, earlier: np.ndarray, unit: float, freedom: float, spread: float, error: float, least: float
) -> Drift:
    """A verdict by Student's t: `unit` is the standard error of mean(earlier) - now, all in ln(tokens/s)."""
    # What scipy.stats.t.isf is, to the last bit, without the 45 MiB and half a second that scipy.stats takes to load.
    from scipy.special import stdtrit

    mean = float(earlier.mean())
    estimate = mean - now
    half, within = (-float(stdtrit(freedom, tail)) * unit for tail in (error / 2, _SAME_ERROR))
    verdict: Verdict = "cannot tell"
    if estimate > half and estimate >= least:
        verdict = "worse"
    elif estimate < -half and estimate <= -least:
        verdict = "better"
    elif abs(estimate) + within < least:
        verdict = "same"
    return Drift(
        verdict=verdict,
        runs=len(earlier),
        tps=math.exp(now),
        before_tps=math.exp(mean),
        ratio=math.exp(estimate),
        low=math.exp(estimate - half),
        high=math.exp(estimate + half),
        spread=100 * spread,
    )


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """One word for several measures: worse if any is worse, better if any is and all others are not undecided."""
    if "worse" in verdicts:
        return "worse"
    if "cannot tell" in verdicts:
        return "cannot tell"
    return "better" if "better" in verdicts else "same"
