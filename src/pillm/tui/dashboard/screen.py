"""The dashboard: benchmarks over time, quality against size, coverage of datasets."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static, TabbedContent, TabPane
from textual.worker import get_current_worker

from pillm.core.errors import PillmError
from pillm.tui.dashboard import speed
from pillm.tui.dashboard.charts import TrendChart
from pillm.tui.dashboard.coverage import CoverageTab
from pillm.tui.dashboard.quality import QualityTab
from pillm.tui.dashboard.speed import COLUMNS, Speeds
from pillm.tui.runs import folder
from pillm.tui.table import Table

_EVERY_SECONDS = 3.0


class DashboardScreen(Screen[None]):
    """What was measured: speed over time, quality against size, and what datasets cover.

    Everything is looked at again every few seconds, and read again only if it has changed. A cross marks runs that do
    not count, because the board was throttled or the machine was busy.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "app.pop_screen", "Back"),
        ("1", "tab('speed')", "Speed"),
        ("2", "tab('quality')", "Quality"),
        ("3", "tab('coverage')", "Coverage"),
    ]
    CSS = """
    DashboardScreen #head { height: 1; padding: 0 1; background: $panel; text-wrap: nowrap; text-overflow: ellipsis; }
    DashboardScreen #wrong { height: auto; padding: 0 1; color: $text-error; display: none; }
    DashboardScreen #wrong.-some { display: block; }
    DashboardScreen TabbedContent { height: 1fr; }
    DashboardScreen TabPane { padding: 0 1; }
    DashboardScreen #series { height: 1fr; min-height: 4; }
    DashboardScreen #lower { height: 1.2fr; min-height: 6; }
    DashboardScreen TrendChart { width: 1fr; height: 1fr; }
    DashboardScreen #builds { width: 45; height: 1fr; padding: 0 1; }
    DashboardScreen.-narrow #builds { width: 39; }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012  as Screen has it

    class _Read(Message):
        def __init__(self, speeds: Speeds | None, wrong: str = "") -> None:
            super().__init__()
            self.speeds, self.wrong = speeds, wrong

    def __init__(
        self, history: Path | None = None, runs: Path = folder.RUNS, data: str = "", targets: str = ""
    ) -> None:
        super().__init__()
        self._history, self._runs = history, runs
        self._data, self._targets = data, targets
        self.speeds: Speeds | None = None
        self._stamp: object = None

    def compose(self) -> ComposeResult:
        """Head and three tabs."""
        yield Static("reading the history", id="head", markup=False)
        yield Static(id="wrong", markup=False)
        with TabbedContent(id="tabs"):
            with TabPane("Speed", id="speed"), Vertical():
                yield Table(id="series", cursor_type="row")
                with Horizontal(id="lower"):
                    yield TrendChart()
                    with VerticalScroll(id="builds"):
                        yield Static(id="build-lines", markup=False)
            with TabPane("Quality", id="quality"):
                yield QualityTab(self._runs)
            with TabPane("Coverage", id="coverage"):
                yield CoverageTab(self._data, self._targets)
        yield Footer()

    def on_mount(self) -> None:
        """Read, and look again from time to time."""
        self.query_one("#series", DataTable).add_columns(*((name, name) for name in COLUMNS))
        self.query_one("#series").focus()
        self._look()
        self.set_interval(_EVERY_SECONDS, self._look)

    def _look(self) -> None:
        self._read_history()
        self.query_one(QualityTab).look()
        self.query_one(CoverageTab).look()

    @work(thread=True, group="history")
    def _read_history(self) -> None:
        worker = get_current_worker()
        if any(other is not worker and other.group == "history" and other.is_running for other in self.workers):
            return  # the one before is still at it
        try:
            now = speed.stamp(self._history)
            if now == self._stamp:
                return
            self._stamp = now
            found = speed.read(self._history)
            self.post_message(self._Read(found))
            self.post_message(self._Read(speed.judged(found)))
        except PillmError as error:
            self.post_message(self._Read(None, f"{error.message}\n{error.hint}".rstrip()))
        except OSError as error:
            self.post_message(self._Read(None, str(error)))

    def on_dashboard_screen__read(self, message: _Read) -> None:
        """Show it; the cursor stays on its series."""
        said = self.query_one("#wrong", Static)
        said.update(message.wrong)
        said.set_class(bool(message.wrong), "-some")
        if message.speeds is None:
            self.query_one("#head", Static).update("the history cannot be read")
            return
        before, self.speeds = self.speeds, message.speeds
        found = self.speeds
        words = f"{found.runs:,} run{'s' if found.runs > 1 else ''}"
        words += f", {found.invalid:,} do not count ×" if found.invalid else ""
        if not found.runs:
            words = "no run was measured yet: pillm bench MODEL"
        self.query_one("#head", Static).update(f"{words}  ·  {found.path.name}")
        table = self.query_one("#series", DataTable)
        cells = speed.rows(found)
        keys = [whole.key for whole in found.series]
        if before is not None and keys == [whole.key for whole in before.series]:
            for place, row in enumerate(cells):
                for name, cell in zip(COLUMNS, row, strict=True):
                    table.update_cell(str(place), name, Text(cell))
        else:
            here = before.series[table.cursor_row].key if before and before.series else None
            table.clear()
            for place, row in enumerate(cells):
                table.add_row(*map(Text, row), key=str(place))
            if here is not None and here in keys:
                table.move_cursor(row=keys.index(here))
        self._draw()

    @on(DataTable.RowHighlighted, "#series")
    def _row(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        self._draw()

    def _draw(self) -> None:
        if not self.speeds or not self.speeds.series:
            return
        place = min(self.query_one("#series", DataTable).cursor_row, len(self.speeds.series) - 1)
        whole = self.speeds.series[place]
        self.query_one(TrendChart).show(f"{whole.key.what}, tokens/s: {speed.plain(whole.key.label)}", whole)
        lines = speed.build_lines(self.speeds.builds[place]) if self.speeds.builds else ["working out verdicts"]
        self.query_one("#build-lines", Static).update("\n".join(lines))

    def action_tab(self, name: str) -> None:
        """Another tab."""
        self.query_one("#tabs", TabbedContent).active = name
