"""Quality against size, in a tab."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import DataTable, Select, Static
from textual.worker import get_current_worker

from pillm.core.amounts import amount
from pillm.pipeline import quality
from pillm.pipeline.quality import Measured
from pillm.tui.dashboard.charts import QualityChart
from pillm.tui.table import Table


def names(points: list[Measured]) -> list[str]:
    """The measures that any of them has, in the order in which reports have them."""
    return list(dict.fromkeys(name for item in points for name in item.measures))


def rows(points: list[Measured], measures: list[str]) -> list[tuple[str, ...]]:
    """A row for each: run, size, its measures in percent with their intervals, questions, file."""
    return [
        (
            item.run,
            amount(item.bytes, "B"),
            *(
                f"{100 * rate.value:.1f} ({100 * rate.low:.1f}-{100 * rate.high:.1f})"
                if (rate := item.measures.get(name))
                else "-"
                for name in measures
            ),
            f"{item.asked:,}",
            item.file,
        )
        for item in points
    ]


class QualityTab(Vertical):
    """The runs below a folder: a table of what they measured, and one measure as a plot."""

    DEFAULT_CSS = """
    QualityTab Select { width: 40; }
    QualityTab QualityChart { height: 1fr; min-height: 6; }
    QualityTab DataTable { height: auto; max-height: 50%; }
    QualityTab .none { display: none; color: $text-muted; height: 1fr; }
    QualityTab.-empty .none { display: block; }
    QualityTab.-empty QualityChart, QualityTab.-empty DataTable, QualityTab.-empty Select { display: none; }
    """

    class _Found(Message):
        def __init__(self, points: list[Measured]) -> None:
            super().__init__()
            self.points = points

    def __init__(self, root: Path) -> None:
        super().__init__(classes="-empty")
        self.root = root
        self.points: list[Measured] = []
        self.name_shown = ""
        self._stamp: object = None

    def compose(self) -> ComposeResult:
        """Which measure, its plot, all of them."""
        yield Static(f"no run below {self.root} has measured quality yet", classes="none", markup=False)
        yield Select[str]([], prompt="measure", id="measure", compact=True)
        yield QualityChart()
        yield Table(cursor_type="row")

    def look(self) -> None:
        """Read the reports, if any of them is new, and nobody is at it."""
        if not any(worker.group == "quality" and worker.is_running for worker in self.workers):
            self._look()

    @work(thread=True, group="quality")
    def _look(self) -> None:
        stamp = [(path, path.stat().st_mtime_ns) for path in quality.reports(self.root) if path.is_file()]
        if stamp == self._stamp:
            return
        found = quality.found(self.root)
        if not get_current_worker().is_cancelled:
            self._stamp = stamp
            self.post_message(self._Found(found))

    def on_quality_tab__found(self, message: _Found) -> None:
        """Show them."""
        message.stop()
        self.points = message.points
        measures = names(self.points)
        self.set_class(not measures, "-empty")
        table = self.query_one(DataTable)
        table.clear(columns=True)
        titles = ("run", "size", *(name.replace("_", " ") + ", %" for name in measures), "asked", "file")
        # Text, not words: a bracket in a name is no markup.
        table.add_columns(*map(Text, titles))
        table.add_rows(map(Text, row) for row in rows(self.points, measures))
        if self.name_shown not in measures:
            self.name_shown = measures[0] if measures else ""
        select = self.query_one(Select)
        with self.prevent(Select.Changed):
            select.set_options([(Content(name.replace("_", " ")), name) for name in measures])
            if self.name_shown:
                select.value = self.name_shown
        self._draw()

    @on(Select.Changed, "#measure")
    def _chosen(self, event: Select.Changed) -> None:
        event.stop()
        if isinstance(event.value, str):
            self.name_shown = event.value
            self._draw()

    @on(DataTable.RowHighlighted)
    def _row(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        self._draw()

    def _draw(self) -> None:
        if self.name_shown:
            self.query_one(QualityChart).show(self.name_shown, self.points, self.query_one(DataTable).cursor_row)
