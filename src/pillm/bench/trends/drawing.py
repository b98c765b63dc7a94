"""Plots of the report as SVG. Colours are the page's CSS variables, so one plot is right in light, dark and on paper.

Every plot gets a title and a description, and the page has its figures as text beside it.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from pillm.bench.trends.series import Group

WIDTH, HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 22, 26
_LETTER, _LINE = 6.2, 13.0
"""About the width of a letter and the height of a line, in the drawing's units."""


class Ceiling(NamedTuple):
    """A limit of a roofline: speed · work = `per_s`, as bytes/s or operations/s."""

    label: str
    per_s: float


class Mark(NamedTuple):
    """A measured point of a roofline: work of a token (bytes or operations) and tokens/s."""

    label: str
    work: float
    tps: float


class _Frame(NamedTuple):
    """Values to places on the drawing. Both ends differ."""

    x0: float
    x1: float
    y0: float
    y1: float
    height: int

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return self.height - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (self.height - _TOP - _BOTTOM)


def trend(cells: Sequence[Group], title: str, description: str) -> str:
    """Medians over time with their range, a line at each change of build, crosses for runs that do not count."""
    times = [_seconds(cell.started) for cell in cells]
    top = max(cell.high for cell in cells) * 1.06
    begin, end = times[0], times[-1]
    if end <= begin:
        begin, end = begin - 43_200, begin + 43_200
    frame = _Frame(begin, end, 0.0, top, HEIGHT)
    parts = [_grid(frame, _steps(top))]
    parts += [_text(frame.x(when), HEIGHT - 8, _day(when), anchor) for when, anchor in ((begin, "start"), (end, "end"))]
    for place, (cell, when) in enumerate(zip(cells, times, strict=True)):
        if place and cell.build == cells[place - 1].build:
            continue
        if place:
            parts.append(f'<path class="build" d="M{frame.x(when):.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>')
            parts.append(_text(frame.x(when) + 3, 14, cell.build.rpartition(" ")[2][:9], "start"))
    for piece in _pieces(cells, times):
        upper = " ".join(f"{frame.x(t):.1f},{frame.y(cell.high):.1f}" for cell, t in piece)
        lower = " ".join(f"{frame.x(t):.1f},{frame.y(cell.low):.1f}" for cell, t in reversed(piece))
        parts.append(f'<polygon class="range" points="{upper} {lower}"/>')
        line = " ".join(f"{frame.x(t):.1f},{frame.y(cell.median):.1f}" for cell, t in piece)
        parts.append(f'<polyline class="line" points="{line}"/>')
        if len(piece) < 60:
            parts += [
                f'<circle class="dot" cx="{frame.x(t):.1f}" cy="{frame.y(cell.median):.1f}" r="2.5"/>'
                for cell, t in piece
            ]
    for cell, t in zip(cells, times, strict=True):
        if cell.invalid:
            x, y = frame.x(t), frame.y(cell.median) if cell.invalid == cell.runs else HEIGHT - _BOTTOM - 6
            parts.append(f'<path class="cross" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>')
    return _svg(HEIGHT, parts, title, description)


def _pieces(cells: Sequence[Group], times: Sequence[float]) -> Iterable[list[tuple[Group, float]]]:
    """The line breaks where the build changes, and runs that do not count are no part of it."""
    piece: list[tuple[Group, float]] = []
    for cell, when in zip(cells, times, strict=True):
        if cell.invalid == cell.runs:
            continue
        if piece and piece[-1][0].build != cell.build:
            yield piece
            piece = []
        piece.append((cell, when))
    if piece:
        yield piece


def roofline(
    marks: Sequence[Mark],
    ceilings: Sequence[Ceiling],
    *,
    unit: str,
    per_s: str,
    scale: float,
    title: str,
    description: str,
) -> str:
    """Tokens/s against the work of a token, both logarithmic; a ceiling is a straight line that falls.

    `unit` names the work in units of `scale`, `per_s` that of a ceiling, as "MB" and "GB/s".
    """
    height = 340
    speeds = [mark.tps for mark in marks]
    works = [mark.work for mark in marks]
    frame = _Frame(
        math.log10(min(works)) - 0.25, math.log10(max(works)) + 0.25,
        math.log10(min(speeds)) - 0.3, math.log10(max(speeds)) + 0.45, height,
    )  # fmt: skip
    parts = [_grid(frame, [(math.log10(value), _short(value)) for value in _decades(10**frame.y0, 10**frame.y1)])]
    for value in _decades(10**frame.x0 / scale, 10**frame.x1 / scale):
        parts.append(_text(frame.x(math.log10(value * scale)), height - 8, f"{_short(value)} {unit}", "middle"))
    labels = _Labels()
    for ceiling in ceilings:
        if ends := _clipped(frame, math.log10(ceiling.per_s)):
            (xa, ya), (xb, yb) = ends
            parts.append(
                f'<path class="roof" d="M{frame.x(xa):.1f} {frame.y(ya):.1f}L{frame.x(xb):.1f} {frame.y(yb):.1f}"/>'
            )
            words = f"{ceiling.label} {ceiling.per_s / 1e9:.3g} {per_s}"
            parts.append(labels.placed(frame.x(xb) - 2, frame.y(yb) - 5, words, "end", "tick"))
    for mark in sorted(marks, key=lambda mark: -mark.tps):
        x, y = frame.x(math.log10(mark.work)), frame.y(math.log10(mark.tps))
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        anchor = "end" if x > WIDTH * 0.6 else "start"
        parts.append(labels.placed(x + (-7 if anchor == "end" else 7), y + 4, mark.label, anchor, "name"))
    return _svg(height, parts, title, description)


class _Labels:
    """Places of labels so far: a new one moves down until it lies on no other."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, float, float]] = []

    def placed(self, x: float, y: float, words: str, anchor: str, kind: str) -> str:
        """The label at the place or below it."""
        length = _LETTER * len(words)
        left, right = (x - length, x) if anchor == "end" else (x, x + length)
        while any(left < other[1] and right > other[0] and abs(y - other[2]) < _LINE for other in self.taken):
            y += _LINE
        self.taken.append((left, right, y))
        return _text(x, y, words, anchor, kind)


def _clipped(frame: _Frame, total: float) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Where the line x + y = total (logarithms) crosses the frame."""
    left, right = max(frame.x0, total - frame.y1), min(frame.x1, total - frame.y0)
    return ((left, total - left), (right, total - right)) if left < right else None


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade between, or only the ones where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    found = [value for value in every if low <= value <= high]
    return found if len(found) <= 8 else [value for value in found if math.log10(value).is_integer()]


def _steps(top: float) -> list[tuple[float, str]]:
    """Round values from 0 up to `top`, about four."""
    raw = top / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(digit * power for digit in (1, 2, 2.5, 5, 10) if digit * power >= raw)
    return [(count * step, _short(count * step)) for count in range(int(top / step) + 1)]


def _grid(frame: _Frame, rows: Iterable[tuple[float, str]]) -> str:
    lines = []
    for value, label in rows:
        y = frame.y(value)
        lines.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        lines.append(_text(_LEFT - 6, y + 4, label, "end"))
    return "".join(lines)


def _text(x: float, y: float, words: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(height: int, parts: Iterable[str], title: str, description: str) -> str:
    head = f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title + ". " + description)}">'
    return f"{head}<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"


def _seconds(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment).timestamp()


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d")


def _short(value: float) -> str:
    return f"{value:g}" if value == 0 or 0.001 <= value < 100_000 else f"{value:.0e}"
