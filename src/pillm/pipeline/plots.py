"""Plots as inline SVG for the report's page: drawn by matplotlib, coloured by the page's style sheet.

matplotlib knows no CSS variables, so each role has a stand-in colour that is replaced in the finished
SVG: the same plot is then right in light, in dark and on paper. Text stays text.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter

INK, MUTED, LINE, ACCENT, QUIET = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_ROLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", QUIET: "--quiet"}

WIDTH = 400.0  # points; about a phone's width, so that text stays readable when the plot shrinks to one
_FONT = 11.5


class Share(NamedTuple):
    """A share with its interval, all from 0 to 1."""

    value: float
    low: float
    high: float


class Pair(NamedTuple):
    """A metric before and after; either may be missing."""

    label: str
    before: Share | None
    after: Share | None


class Point(NamedTuple):
    """A file: its size in megabytes and its divergence in nats a token."""

    label: str
    megabytes: float
    divergence: float
    chosen: bool


class Step(NamedTuple):
    """A training step; either loss may be missing."""

    step: int
    loss: float | None
    validation: float | None


def before_after(pairs: Sequence[Pair], alt: str) -> str:
    """A row for each metric: a dot for the share, a line for its 95 % interval, before above after."""
    figure, axes = _figure(38 + 40 * len(pairs))
    for row, pair in enumerate(pairs):
        for share, shift, colour, marker in ((pair.before, -0.17, QUIET, "o"), (pair.after, 0.17, ACCENT, "o")):
            if share is None:
                continue
            axes.plot([share.low, share.high], [row + shift] * 2, color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot([share.value], [row + shift], marker=marker, color=colour, markersize=7)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.yaxis.set_major_locator(FixedLocator(range(len(pairs))))
    axes.yaxis.set_major_formatter(FixedFormatter([pair.label for pair in pairs]))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.xaxis.set_major_formatter(FixedFormatter(["0 %", "25 %", "50 %", "75 %", "100 %"]))
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    return _svg(figure, "before-after", alt)


def loss_curve(steps: Sequence[Step], alt: str) -> str:
    """Training loss of each step (thin), its running mean (thick), and the validation loss (dots)."""
    figure, axes = _figure(250)
    trained = [(step.step, step.loss) for step in steps if step.loss is not None]
    checked = [(step.step, step.validation) for step in steps if step.validation is not None]
    if trained:
        xs, ys = zip(*trained, strict=True)
        axes.plot(xs, ys, color=QUIET, linewidth=0.9, alpha=0.7)
        axes.plot(xs, _running_mean(ys, max(1, len(ys) // 20)), color=ACCENT, linewidth=2)
    if checked:
        xs, ys = zip(*checked, strict=True)
        axes.plot(xs, ys, linestyle="none", marker="o", markersize=5.5, color=INK)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    return _svg(figure, "loss", alt)


def size_and_divergence(points: Sequence[Point], alt: str) -> str:
    """Divergence from the unquantized file (logarithmic) by size; the file that ships stands out."""
    figure, axes = _figure(290)
    for point in points:
        colour, size = (ACCENT, 10) if point.chosen else (QUIET, 7)
        axes.plot([point.megabytes], [point.divergence], marker="o", markersize=size, color=colour, linestyle="none")
    axes.set_yscale("log")
    values = [point.divergence for point in points]
    low, high = min(values) / 2, max(values) * 2
    axes.set_ylim(low, high)
    ticks = [
        base * 10.0**power
        for power in range(-6, 3)
        for base in (1, 2, 5)
        if low <= base * 10.0**power <= high and (base == 1 or high / low < 300)
    ]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)
    sizes = [point.megabytes for point in points]
    room = max(1.0, (max(sizes) - min(sizes)) * 0.18)
    axes.set_xlim(min(sizes) - room * 0.5, max(sizes) + room)
    _label(axes, points)
    axes.set_xlabel("size, MB")
    axes.set_ylabel("KL divergence, nats per token")
    axes.grid(color=LINE, linewidth=0.8)
    return _svg(figure, "size", alt)


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Write each name beside its dot; a name that would lie on an earlier one goes below, then is left to the table."""
    figure = axes.figure
    with _any_letter():
        figure.canvas.draw()
    # The chosen file first, so that its name is never the one left out.
    taken = []
    dots = [axes.transData.transform((point.megabytes, point.divergence)) for point in points]
    for point in sorted(points, key=lambda point: not point.chosen):
        for dx, dy, align in (
            (8, 4, "left"),
            (8, -12, "left"),
            (-8, 4, "right"),
            (-8, -12, "right"),
            (0, 10, "center"),
        ):
            text = axes.annotate(
                point.label,
                (point.megabytes, point.divergence),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=align,
                fontsize=_FONT - 1,
                color=INK,
                fontweight="bold" if point.chosen else "normal",
            )
            with _any_letter():
                box = text.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and axes.bbox.y0 <= box.y0
            if (
                inside
                and not any(box.overlaps(other) for other in taken)
                and not any(box.contains(*dot) for dot in dots)
            ):
                taken.append(box)
                break
            text.remove()


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values, fewer at the beginning."""
    return [sum(part) / len(part) for end in range(1, len(values) + 1) if (part := values[max(0, end - window) : end])]


def _figure(height: float) -> tuple[Figure, Axes]:
    # Its first start on a machine builds a font cache and says so; that is nothing to a user.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context({"font.size": _FONT, "font.family": "sans-serif"}):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=_FONT, length=3)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    return figure, axes


@contextlib.contextmanager
def _any_letter() -> Iterator[None]:
    """Matplotlib warns of letters that its own font lacks; here the browser's font draws them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an `<svg>` element that takes its colours and its font from the page."""
    buffer = io.StringIO()
    # The salt keeps the ids of two plots on one page apart, and equal from run to run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), _any_letter():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _ROLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"font: (?:(bold|\d{3}) )?([\d.]+)px [^;\"]*", _font, text)
    # A style element would reach the whole page; what it says is in the page's own style sheet.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    # Ids that matplotlib counts (figure_1, axes_1, ...) would stand twice on a page with two plots.
    text = re.sub(r'\bid="([a-z]+[\w.]*)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)(?=[a-z]+\w*)', rf"\1{name}-", text)
    head = f'<svg class="plot" role="img" aria-label="{escape(alt, quote=True)}" viewBox="0 0 {{}} {{}}">'
    width, height = (figure.get_size_inches() * 72).round(2)
    return re.sub(r"<svg[^>]*>", head.format(f"{width:g}", f"{height:g}"), text, count=1, flags=re.DOTALL).strip()


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}px; font-family: inherit"
