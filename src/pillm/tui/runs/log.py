"""The log of a run: its lines, search, levels, and the files it may be read from."""

from __future__ import annotations

from pathlib import Path

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, Static

from pillm.tui.runs import folder
from pillm.tui.runs.lines import EVERYTHING, Line
from pillm.tui.runs.pane import Pane
from pillm.tui.runs.row import LEVELS, Level, keeper, row
from pillm.tui.runs.scroller import Shown
from pillm.tui.text_modal import TextModal

_ABOVE = 5


class RunLog(Vertical):
    """A pane with a line for the search above it and one that says what is shown below."""

    DEFAULT_CSS = """
    RunLog Input { display: none; height: 1; border: none; padding: 0; background: $panel; }
    RunLog.-search Input { display: block; }
    RunLog #said { height: 1; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir
        self.path = run_dir / folder.EVENTS
        self.level: Level = "debug"
        self.pattern = ""
        self._shown: Shown | None = None

    def compose(self) -> ComposeResult:
        """Search, lines, words."""
        yield Input(placeholder="search: Enter goes to a match, Escape ends", id="search", compact=True)
        yield Pane(self.path, row, id="lines")
        yield Static(id="said", markup=False)

    def on_mount(self) -> None:
        """What is bars and curves is left out from the beginning."""
        self._want()

    def _want(self) -> None:
        pane = self.query_one(Pane)
        pane.pattern = self.pattern
        pane.marked = -1
        pane.scroller.ask_keep(keeper(self.level, self.pattern))
        self._say()

    def next_level(self) -> None:
        """All, then only what is graver, then all again."""
        self.level = LEVELS[(LEVELS.index(self.level) + 1) % len(LEVELS)]
        self._want()

    def next_file(self) -> None:
        """The next of the run's logs."""
        files = folder.logs(self.run_dir) or [self.path]
        place = files.index(self.path) + 1 if self.path in files else 0
        self.path = files[place % len(files)]
        self.query_one(Pane).scroller.ask_file(self.path)
        self._say()

    def search(self) -> None:
        """Show the line for what is searched."""
        self.add_class("-search")
        self.query_one(Input).focus()

    def end_search(self) -> bool:
        """Show all lines again; False if nothing was searched."""
        if not self.has_class("-search") and not self.pattern:
            return False
        self.remove_class("-search")
        with self.prevent(Input.Changed):
            self.query_one(Input).value = ""
        self.pattern = ""
        self._want()
        self.query_one(Pane).focus()
        return True

    @on(Input.Changed, "#search")
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.pattern = event.value
        self._want()

    @on(Input.Submitted, "#search")
    def _to_matches(self, event: Input.Submitted) -> None:
        event.stop()
        self.query_one(Pane).focus()

    @on(Pane.Picked)
    def _picked(self, event: Pane.Picked) -> None:
        event.stop()
        if self.pattern:
            self._in_context(event.line)
        else:
            found = row(event.line.data)
            self.app.push_screen(TextModal(" ".join(filter(None, (found.level, found.when, found.stage))), found.text))

    def _in_context(self, line: Line) -> None:
        """All lines around a match."""
        self.remove_class("-search")
        self.pattern = ""
        with self.prevent(Input.Changed):
            self.query_one(Input).value = ""
        pane = self.query_one(Pane)
        pane.marked = line.start
        keep = keeper(self.level) if self.path.name == folder.EVENTS else EVERYTHING
        pane.scroller.ask_place(line.start, _ABOVE, keep)
        self._say()

    @on(Pane.Changed)
    def _changed(self, event: Pane.Changed) -> None:
        event.stop()
        self._shown = event.shown
        self._say()

    def _say(self) -> None:
        name = self.path.relative_to(self.run_dir) if self.path.is_relative_to(self.run_dir) else self.path
        parts = [str(name)]
        if self._shown:
            if self._shown.searching:
                parts.append("searching")
            parts.append("follows" if self._shown.following else f"{self._shown.share:.0%}")
        if self.level != LEVELS[0]:
            parts.append(f"{self.level} and graver")
        if self.pattern:
            parts.append(f"lines with “{self.pattern}”")
        self.query_one("#said", Static).update(" · ".join(parts))
