"""A small plot with a title in its border."""

from __future__ import annotations

import math
from collections.abc import Sequence

from textual.color import Color
from textual.content import Content
from textual_hires_canvas import HiResMode
from textual_plot import NumericAxisFormatter, PlotWidget
from textual_plot.axis_formatter import AxisFormatter

from pillm.tui.runs.picture import Lines


class _Few(NumericAxisFormatter):
    """Ticks at round values, no more than there is room for, with short labels."""

    def __init__(self, most: int) -> None:
        self.most = most

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        """Round values between the ends."""
        raw = (max_ - min_) / max(self.most, 1)
        if not raw > 0:
            return [min_]
        power = 10.0 ** math.floor(math.log10(raw))
        steps = [digit * power for digit in (1, 2, 5, 10) if digit * power >= raw * 0.999]
        # One tick alone says little of a scale: a smaller step then, if need be one below what there is room for.
        below = [digit * power for digit in (5, 2, 1, 0.5, 0.2) if digit * power < steps[0]]
        ticks: list[float] = []
        for step in (steps[0], *below):
            first, last = math.ceil(min_ / step - 1e-9), math.floor(max_ / step + 1e-9)
            ticks = [number * step for number in range(first, last + 1)]
            if len(ticks) > 1:
                break
        return ticks

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        """The same number of digits for all."""
        gap = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
        if any(abs(tick) >= 100_000 for tick in ticks):
            return [f"{tick:.3g}" for tick in ticks]
        digits = max(0, -math.floor(math.log10(gap))) if gap < 1 else 0
        return [f"{tick:.{digits}f}" for tick in ticks]


class Chart(PlotWidget, can_focus=False):
    """Lines or points. It has no keys of its own: those are the screen's."""

    DEFAULT_CSS = """
    Chart { border: round $panel; border-title-color: $foreground; background: $background; }
    Chart Canvas { background: $background; color: $foreground; }
    Chart > .plot--axis { color: $foreground-muted; }
    Chart > .plot--tick { color: $foreground; text-style: none; }
    """

    def __init__(self, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes, allow_pan_and_zoom=False)

    def on_mount(self) -> None:
        """Less margin than the plot's own: a terminal has few lines."""
        self.margin_top, self.margin_bottom, self.margin_left = 0, 1, 8
        super().on_mount()

    def on_resize(self) -> None:
        """As many ticks as there is room for."""
        self.set_x_formatter(self.x_axis(self.size.width))
        self.set_y_formatter(_Few(max(self.size.height // 3, 2)))
        # Ticks that were drawn for another size are drawn again.
        self.refresh(layout=True)

    def x_axis(self, width: int) -> AxisFormatter:
        """What stands below a plot of this width."""
        return _Few(max(width // 14, 2))

    def colour(self, name: str) -> str:
        """A colour of the theme as the plot wants it."""
        variables = self.app.theme_variables
        colour = Color.parse(variables.get(name, "#ffffff"))
        # Rich knows no transparency.
        return Color.parse(variables.get("background", "#000000")).blend(colour, colour.a, alpha=1.0).hex6

    def lines(self, shown: Lines) -> None:
        """Draw one curve."""
        # Content, since names are data: a bracket in one is no markup.
        self.border_title = Content(f"{shown.title}: {shown.last}")
        with self.app.batch_update():
            self.clear()
            self.plot(shown.steps, shown.values, line_style=self.colour("secondary"), hires_mode=HiResMode.QUADRANT)
