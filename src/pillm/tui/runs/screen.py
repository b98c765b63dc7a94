"""Watch a run that is going, or look back at one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static, TabbedContent, TabPane

from pillm.core.errors import PillmError
from pillm.tui.runs import folder, start
from pillm.tui.runs.chart import Chart
from pillm.tui.runs.endless import End, endless
from pillm.tui.runs.lines import Stop
from pillm.tui.runs.log import RunLog
from pillm.tui.runs.pane import Pane
from pillm.tui.runs.picture import MARKS, WORDS, Picture
from pillm.tui.runs.reader import Now, Reader, utc_now
from pillm.tui.runs.stages import STYLES, Stages
from pillm.tui.runs.viewer import FileViewer, file_of, words
from pillm.tui.table import Table

_LOOK_SECONDS, _IDLE_SECONDS = 0.25, 0.2
_CURVES = 2
_CURVES_SECONDS = 1.0


def show(app: App[Any], run_dir: Path) -> None:
    """Show a run: on the screen that it has already, if nothing but runs stands above that, else on a new one."""
    for screen in reversed(app.screen_stack):
        if not isinstance(screen, RunScreen):
            break
        if screen.run_dir.absolute() == run_dir.absolute():
            screen.pop_until_active()
            return
    app.push_screen(RunScreen(run_dir))


class RunScreen(Screen[None]):
    """A run: its stages, curves, log, findings and artifacts, going or gone.

    The run goes on when this screen, or the whole terminal, is closed. Stop does what Ctrl-C does; resume goes on
    where it was. In the log: `/` searches, `l` leaves out what is less grave, `e` takes another of the run's logs.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "back", "Back"),
        ("s", "stop", "Stop"),
        ("r", "resume", "Resume"),
        ("slash", "search", "Search"),
        ("l", "level", "Level"),
        ("e", "file", "File"),
        ("c", "curves", "Curves"),
        Binding("f", "follow", "Follow the log, and the stage at work", show=False),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide"), (170, "-broad")]  # noqa: RUF012  as Screen has it
    CSS = """
    RunScreen #head { height: 1; text-wrap: nowrap; text-overflow: ellipsis; padding: 0 1; background: $panel; }
    RunScreen #message { height: auto; max-height: 4; padding: 0 1; color: $text-error; display: none; }
    RunScreen #message.-some { display: block; }
    RunScreen #top { height: auto; max-height: 40%; }
    RunScreen Stages { width: 1fr; height: auto; padding: 0 1; }
    RunScreen #curves { display: none; width: 1fr; height: 14; layout: horizontal; }
    RunScreen Chart { width: 1fr; height: 1fr; }
    RunScreen.-wide #curves, RunScreen.-broad #curves, RunScreen.-curves #curves { display: block; }
    RunScreen.-wide.-curves #curves, RunScreen.-broad.-curves #curves { display: none; }
    RunScreen.-wide.-no-curves #curves, RunScreen.-broad.-no-curves #curves { display: none; }
    RunScreen.-narrow.-no-curves #curves { display: none; }
    RunScreen.-narrow.-curves Stages { display: none; }
    RunScreen.-narrow.-curves.-no-curves Stages { display: block; }
    RunScreen.-narrow.-curves #top { max-height: 60%; }
    RunScreen.-wide #top { max-height: 50%; }
    RunScreen.-wide #curves { layout: vertical; height: 18; }
    RunScreen.-broad #curves { width: 1.4fr; height: 18; }
    RunScreen TabbedContent { height: 1fr; }
    RunScreen TabPane { padding: 0 1; }
    RunScreen DataTable { height: 1fr; }
    RunScreen .none { color: $text-muted; }
    """

    class Looked(Message):
        """The run was looked at."""

        def __init__(self, picture: Picture) -> None:
            super().__init__()
            self.picture = picture

    class Told(Message):
        """A thread has something to say."""

        def __init__(self, text: str, wrong: bool) -> None:
            super().__init__()
            self.text, self.wrong = text, wrong

    def __init__(self, run_dir: Path, now: Now = utc_now) -> None:
        super().__init__(classes="-no-curves")
        self.run_dir, self._now = run_dir, now
        self.picture: Picture | None = None
        self.lines_read = 0
        self._wanted, self._anew = "", False
        self._asked_to_stop = self._asked_again = False
        self._end: End | None = None
        self._drawn, self._waiting = 0.0, False

    def compose(self) -> ComposeResult:
        """Head, stages beside curves, and the rest as tabs."""
        yield Static(id="head")
        yield Static(id="message", markup=False)
        with Horizontal(id="top"):
            yield Stages()
            with Container(id="curves"):
                for number in range(_CURVES):
                    yield Chart(id=f"curve-{number}")
        with TabbedContent(id="tabs"):
            with TabPane("Log", id="log"):
                yield RunLog(self.run_dir)
            with TabPane("Findings", id="findings"):
                yield Table(id="found", cursor_type="row")
            with TabPane("Artifacts", id="artifacts"):
                yield Table(id="made", cursor_type="row")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to read."""
        self.query_one("#found", DataTable).add_columns("place", "severity", "what is wrong")
        self.query_one("#made", DataTable).add_columns("name", "size", "sha256", "file")
        self.query_one("#lines", Pane).focus()
        self._end = endless(self, self._read)

    def on_unmount(self) -> None:
        """Read no more."""
        if self._end:
            self._end()

    def _read(self, ended: Stop) -> None:
        reader = Reader(self.run_dir, self._now)
        looked, last = 0.0, None
        while not ended():
            more = reader.read()
            if time.monotonic() - looked >= _LOOK_SECONDS:
                reader.shown = self._wanted
                found = reader.look()
                looked = time.monotonic()
                # Two quick keys can choose a stage and let it go between two looks: the cursor is drawn anew all the same.
                if found != last or self._anew:
                    last, self._anew = found, False
                    self.post_message(self.Looked(found))
            self.lines_read = reader.view.lines
            if not more:
                time.sleep(_IDLE_SECONDS)

    def on_run_screen_looked(self, message: Looked) -> None:
        """Draw what has changed."""
        before, self.picture = self.picture, message.picture
        found = message.picture
        style = STYLES.get(found.state or "dead", "")
        state = WORDS.get(found.state or "", found.state or "not there")
        head = self.query_one("#head", Static)
        mark = MARKS.get(found.state or "dead", "")
        head.update(Content.assemble((found.title, "bold"), (f"  {mark} {state}", style), f"  {found.summary}"))
        said = self.query_one("#message", Static)
        said.update(found.message)
        said.set_class(bool(found.message), "-some")
        stages = self.query_one(Stages)
        stages.rows = found.stages
        if not self._wanted:
            stages.point(found.shown)
        if before is None or before.curves != found.curves:
            self._curves_changed()
        if before is None or before.findings != found.findings:
            self._draw_findings(found)
        if before is None or before.artifacts != found.artifacts:
            self._draw_artifacts(found)

    def _curves_changed(self) -> None:
        """Draw the curves, but rarely, and one after the other: each takes longer than a key may wait."""
        if self._waiting:
            return
        if time.monotonic() - self._drawn >= _CURVES_SECONDS:
            self._draw_curves()
        else:
            self._waiting = True
            self.set_timer(_CURVES_SECONDS, self._draw_curves)

    def _draw_curves(self, number: int = 0) -> None:
        self._waiting, self._drawn = False, time.monotonic()
        curves = self.picture.curves if self.picture else ()
        # Empty axes say nothing: without curves the stages have the room.
        self.set_class(not curves, "-no-curves")
        chart = self.query_one(f"#curve-{number}", Chart)
        chart.display = number < len(curves)
        if chart.display:
            chart.lines(curves[number])
        if number + 1 < _CURVES:
            self.set_timer(0.1, lambda: self._draw_curves(number + 1))

    def _draw_findings(self, found: Picture) -> None:
        table = self.query_one("#found", DataTable)
        if len(found.findings) < table.row_count:
            table.clear()
        for item in found.findings[table.row_count :]:
            place = f"{item.file}:{item.line}" if item.line else item.file
            table.add_row(Text(place), Text(item.severity), Text(f"{item.code}: {item.message}"))
        count = f" ({found.findings_in_all:,})" if found.findings_in_all else ""
        self.query_one("#tabs", TabbedContent).get_tab("findings").label = f"Findings{count}"

    def _draw_artifacts(self, found: Picture) -> None:
        table = self.query_one("#made", DataTable)
        table.clear()
        for item in found.artifacts:
            path = item.path.relative_to(self.run_dir) if item.path.is_relative_to(self.run_dir) else item.path
            table.add_row(Text(item.name), item.size, Text(item.sha256), Text(str(path)))
        count = f" ({len(found.artifacts)})" if found.artifacts else ""
        self.query_one("#tabs", TabbedContent).get_tab("artifacts").label = f"Artifacts{count}"

    @on(Stages.Chosen)
    def _chosen(self, event: Stages.Chosen) -> None:
        self._wanted = event.stage

    @on(DataTable.RowSelected, "#found")
    def _open_finding(self, event: DataTable.RowSelected) -> None:
        if self.picture and event.cursor_row < len(self.picture.findings):
            finding = self.picture.findings[event.cursor_row]
            try:
                self.app.push_screen(FileViewer(file_of(finding), finding))
            except PillmError as error:
                self.notify(words(error), severity="warning", markup=False)

    @on(DataTable.RowSelected, "#made")
    def _copy_hash(self, event: DataTable.RowSelected) -> None:
        if self.picture and event.cursor_row < len(self.picture.artifacts):
            item = self.picture.artifacts[event.cursor_row]
            self.app.copy_to_clipboard(item.sha256)
            self.notify(f"{item.path}\n{item.sha256}", title="hash copied", markup=False)

    def action_back(self) -> None:
        """End the search, else go back."""
        if not self.query_one(RunLog).end_search():
            self.app.pop_screen()

    def action_stop(self) -> None:
        """Stop the run as Ctrl-C does; asked again, harder."""
        self._stop(self._asked_to_stop)
        self._asked_to_stop = True

    def action_resume(self) -> None:
        """Go on where it was. A single command that is done has nowhere to go on: it is asked for twice."""
        self._asked_to_stop = False
        done = self.picture is not None and self.picture.state == "done"
        if done and folder.is_single(self.run_dir) and not self._asked_again:
            self._asked_again = True
            self.notify("it is done; press r once more to run it afresh", markup=False)
            return
        self._asked_again = False
        self._resume()

    def action_search(self) -> None:
        """Search in the log."""
        self.query_one("#tabs", TabbedContent).active = "log"
        self.query_one(RunLog).search()

    def action_level(self) -> None:
        """Leave out what is less grave."""
        self.query_one(RunLog).next_level()

    def action_file(self) -> None:
        """Another log."""
        self.query_one(RunLog).next_file()

    def action_curves(self) -> None:
        """Curves, or the room for something else."""
        self.toggle_class("-curves")

    def action_follow(self) -> None:
        """The end of the log, and the stage at work."""
        self._wanted, self._anew = "", True
        self.query_one("#lines", Pane).action_last()

    @work(thread=True, group="ask")
    def _stop(self, hard: bool) -> None:
        try:
            there = start.stop(self.run_dir, hard=hard)
        except (PillmError, OSError) as error:
            self.post_message(self.Told(words(error) if isinstance(error, PillmError) else str(error), True))
            return
        self.post_message(self.Told("it was asked to stop" if there else "nothing is at work here", not there))

    @work(thread=True, group="ask")
    def _resume(self) -> None:
        try:
            start.resume(self.run_dir)
        except (PillmError, OSError) as error:
            self.post_message(self.Told(words(error) if isinstance(error, PillmError) else str(error), True))
            return
        self.post_message(self.Told("it goes on", False))

    def on_run_screen_told(self, message: Told) -> None:
        """Say it."""
        self.notify(message.text, severity="warning" if message.wrong else "information", markup=False)
