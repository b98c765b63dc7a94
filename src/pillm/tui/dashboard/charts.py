"""Plots of the dashboard: a speed over time, quality against size."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from textual.content import Content
from textual_hires_canvas import HiResMode
from textual_plot.axis_formatter import AxisFormatter

from pillm.bench.trends.series import Series
from pillm.pipeline.quality import Measured
from pillm.tui.dashboard import speed
from pillm.tui.runs.chart import Chart

CROSS, DOT = "×", "●"


class _Days(AxisFormatter):
    """Days since 1970 as dates, at equal distances."""

    def __init__(self, most: int) -> None:
        self.most = max(most, 2)

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        """Both ends need room for their label, so ticks stand within."""
        step = (max_ - min_) / self.most
        return [min_ + step * (number + 0.5) for number in range(self.most)]

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        """Dates; with the hour where days are too long."""
        close = len(ticks) > 1 and ticks[1] - ticks[0] < 1
        form = "%m-%d %Hh" if close else "%Y-%m-%d"
        return [datetime.datetime.fromtimestamp(tick * 86_400, datetime.UTC).strftime(form) for tick in ticks]


class TrendChart(Chart):
    """Tokens a second over time. A line for each build, a bar where it changes, crosses for runs that do not count."""

    _shown: Series | None = None

    def x_axis(self, width: int) -> AxisFormatter:
        """Dates."""
        return _Days(width // 16)

    def show(self, title: str, whole: Series) -> None:
        """Draw a series."""
        self.border_title = Content(title)
        self._shown = whole
        self._draw()

    def on_resize(self) -> None:
        """As many points as there are columns."""
        super().on_resize()
        # Layout may come after the series: what was drawn for another width is drawn again.
        if self._shown is not None:
            self._draw()

    def _draw(self) -> None:
        if self._shown is None:
            raise AssertionError("nothing was shown yet")
        trend = speed.trend(self._shown, 2 * self.size.width)
        xs = [x for piece in trend.pieces for x in piece[0]] + list(trend.crosses[0])
        ys = [y for piece in trend.pieces for y in piece[1]] + list(trend.crosses[1])
        with self.app.batch_update():
            self.clear()
            if not xs:
                return
            wide = max((max(xs) - min(xs)) * 0.02, 0.05)
            self.set_xlimits(min(xs) - wide, max(xs) + wide)
            # From 0 a change of some percent cannot be seen on few rows; the axis says where it begins.
            low, high = min(ys), max(ys)
            room = max((high - low) * 0.15, high * 0.02)
            self.set_ylimits(max(low - room, 0.0), high + room)
            for change in trend.changes:
                self.add_v_line(change, line_style=self.colour("foreground-muted"))
            for piece in trend.pieces:
                if len(piece[0]) > 1:
                    self.plot(*piece, line_style=self.colour("secondary"), hires_mode=HiResMode.QUADRANT)
                else:
                    self.scatter(*piece, marker=DOT, marker_style=self.colour("secondary"))
            if trend.crosses[0]:
                self.scatter(*trend.crosses, marker=CROSS, marker_style=self.colour("error"))


class QualityChart(Chart):
    """Shares against the size of the file. The marked point is that of the row at the cursor."""

    def show(self, name: str, points: Sequence[Measured], chosen: int = -1) -> None:
        """Draw the points that have this measure."""
        self.border_title = Content(f"{name.replace('_', ' ')}, % against size, MB")
        shown = [(place, item) for place, item in enumerate(points) if name in item.measures]
        with self.app.batch_update():
            self.clear()
            if not shown:
                return
            sizes = [item.bytes / 1e6 for _, item in shown]
            room = max((max(sizes) - min(sizes)) * 0.1, max(sizes) * 0.02, 0.001)
            self.set_xlimits(min(sizes) - room, max(sizes) + room)
            self.set_ylimits(-4.0, 104.0)
            for place, item in sorted(shown, key=lambda pair: pair[0] == chosen):
                style = self.colour("accent" if place == chosen else "secondary")
                rate = item.measures[name]
                at = item.bytes / 1e6
                self.plot([at, at], [100 * rate.low, 100 * rate.high], line_style=style)
                self.scatter([at], [100 * rate.value], marker=DOT, marker_style=style)
