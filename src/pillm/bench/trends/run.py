"""`pillm bench report`: one page of the history that needs nothing but itself: no script, no network, no other file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from pillm import devices
from pillm.bench.trends.changes import Build, changes
from pillm.bench.trends.drawing import Ceiling, Mark, roofline, trend
from pillm.bench.trends.options import ReportOptions
from pillm.bench.trends.series import Series, Spot, groups, series, spots
from pillm.core.artifacts import artifact_of, write_atomic
from pillm.core.errors import UsageError, writing
from pillm.core.events import Emit, Made, Output
from pillm.core.stage import Result
from pillm.history import store
from pillm.history.schema import Summary
from pillm.history.store import Wanted

_GROUPS = 240
"""Places of a plot: more would lie on the same pixel."""


class Drawn(NamedTuple):
    """A series as the page shows it."""

    series: Series
    builds: list[Build]
    plot: Markup
    words: str


def run(options: ReportOptions, emit: Emit) -> Result:
    """Write the page. Raises UsageError (no run fits), ResourceError, PillmError (damaged history)."""
    rows = list(store.summaries(Wanted(board=options.board, model=options.model, since=options.since)))
    if not rows:
        raise UsageError(
            f"there is no run to report in {store.location()}", "run: pillm bench MODEL, or take off the filters"
        )
    text = page(
        rows,
        ceilings=ceilings(),
        drawn=options.series,
        error=options.false_alarms / 100,
        least=1 + options.min_effect / 100,
    )
    path = Path(options.out)
    with writing(path):
        write_atomic(path, text)
    emit(Made("report", artifact_of(path)))
    emit(Output(str(path)))
    return Result({"report": path}, {"runs": len(rows)})


def ceilings() -> list[Ceiling]:
    """Memory bandwidth of the known processors, as the predictor has it (published figures, not measured here)."""
    known = {}
    for name in devices.names():
        soc = devices.load(name).soc
        known[soc.title.partition(",")[0]] = max(soc.read_gbps.values()) * 1e9
    return [Ceiling(label, per_s) for label, per_s in known.items()]


def page(rows: Sequence[Summary], *, ceilings: Sequence[Ceiling], drawn: int, error: float, least: float) -> str:
    """The page's HTML. `ceilings` are in bytes/s; `error` and `least` as `changes` has them."""
    found = series(rows)
    told = changes(found, error=error, least=least)
    shown = [_drawn(whole, builds) for whole, builds in zip(found[:drawn], told, strict=False)]
    points = spots(rows)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("pillm.bench.trends").joinpath("page.html.jinja").read_text(encoding="utf-8")
    context: dict[str, Any] = {
        "runs": len(rows),
        "invalid": sum(not row.valid for row in rows),
        "boards": sorted({row.board for row in rows}),
        "builds": sorted({row.build for row in rows}),
        "first": rows[0].started,
        "last": rows[-1].started,
        "drawn": shown,
        "all": list(zip(found, told, strict=True)),
        "verdicts": [
            (whole, build) for whole, builds in zip(found, told, strict=True) for build in builds if build.change
        ],
        "error": 100 * error,
        "least": 100 * (least - 1),
        "spots": points,
        "decode_plot": _decode_plot(points, ceilings),
        "prefill_plot": _prefill_plot(points),
        "ceilings": ceilings,
    }
    return environment.from_string(source).render(context)


def _drawn(whole: Series, builds: list[Build]) -> Drawn:
    valid = [point.tps for point in whole.points if point.valid]
    words = f"{len(whole.points)} runs from {whole.points[0].started[:10]} to {whole.points[-1].started[:10]}"
    if valid:
        words += f", {min(valid):.2f} to {max(valid):.2f} tokens/s, latest {valid[-1]:.2f}"
    if len(whole.points) > len(valid):
        words += f"; {len(whole.points) - len(valid)} do not count and are marked with a cross"
    title = f"{whole.key.what} speed of {whole.key.label}, in tokens/s"
    return Drawn(whole, builds, Markup(trend(groups(whole.points, _GROUPS), title, words)), words)  # noqa: S704  escaped there


def _label(spot: Spot, points: Sequence[Spot]) -> str:
    """The model, and the board where there are several; the table below the plot has the full names."""
    several = len({each.board for each in points}) > 1
    board = f", {spot.board.partition(' Model')[0].removeprefix('Raspberry ')}"[:24] if several else ""
    return f"{spot.model[:28]} {spot.quant}{board}"


def _decode_plot(points: Sequence[Spot], roofs: Sequence[Ceiling]) -> Markup | None:
    marks = [
        Mark(_label(spot, points), float(spot.read_bytes), spot.decode_tps)
        for spot in points
        if spot.read_bytes and spot.decode_tps
    ]
    if not marks:
        return None
    words = f"{len(marks)} measured models; the lines are memory bandwidths: a token cannot be decoded faster than its bytes are read."
    plot = roofline(
        marks, roofs, unit="MB", per_s="GB/s", scale=1e6,
        title="Decode speed against bytes read a token", description=words,
    )  # fmt: skip
    return Markup(plot)  # noqa: S704  escaped there


def _prefill_plot(points: Sequence[Spot]) -> Markup | None:
    marks = [
        Mark(_label(spot, points), 2.0 * spot.parameters, spot.prefill_tps)
        for spot in points
        if spot.parameters and spot.prefill_tps
    ]
    if not marks:
        return None
    best: dict[str, float] = {}
    for spot in points:
        if spot.operations:
            best[spot.board] = max(best.get(spot.board, 0.0), spot.operations)
    roofs = [Ceiling(f"{board.partition(' Model')[0][:24]}:", value) for board, value in best.items()]
    words = f"{len(marks)} measured models; a line is the highest rate that was measured on a board, not its limit."
    plot = roofline(
        marks, roofs, unit="GFLOP", per_s="GFLOP/s", scale=1e9,
        title="Prefill speed against operations a token", description=words,
    )  # fmt: skip
    return Markup(plot)  # noqa: S704  escaped there
