"""A log on the screen: a window of lines with a cursor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from pillm.tui.runs.endless import End, endless
from pillm.tui.runs.lines import Line
from pillm.tui.runs.row import Row
from pillm.tui.runs.scroller import Scroller, Shown

_STYLES = {"error": "$text-error", "warning": "$text-warning", "debug": "$text-muted", "info": ""}
_CURSOR = "$block-cursor-foreground on $block-cursor-background"
_FOUND = "bold underline"
_WHEEL = 3

MakeRow = Callable[[bytes], Row]


class Pane(Widget, can_focus=True):
    """Lines of a file of any size. Arrows, page keys, Home, End and the wheel move; End follows what is written."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Line up", show=False),
        Binding("down", "move(1)", "Line down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "first", "First line", show=False),
        Binding("end", "last", "Last line, and follow what comes", show=False),
        Binding("left", "shift(-16)", "Columns to the left", show=False),
        Binding("right", "shift(16)", "Columns to the right", show=False),
        Binding("enter", "pick", "Whole line", show=False),
    ]
    DEFAULT_CSS = "Pane { text-wrap: nowrap; text-overflow: ellipsis; height: 1fr; }"

    shown: reactive[Shown | None] = reactive(None)
    cursor: reactive[int] = reactive(0)
    column: reactive[int] = reactive(0)

    class Changed(Message):
        """Other lines are shown."""

        def __init__(self, pane: Pane, shown: Shown) -> None:
            super().__init__()
            self.pane, self.shown = pane, shown

        @property
        def control(self) -> Pane:
            """The pane."""
            return self.pane

    class Picked(Message):
        """Enter on a line."""

        def __init__(self, line: Line) -> None:
            super().__init__()
            self.line = line

    class _Fresh(Message):
        """The thread has something to show."""

        def __init__(self, shown: Shown, rows: tuple[Row, ...]) -> None:
            super().__init__()
            self.shown, self.rows = shown, rows

    def __init__(self, path: Path, make: MakeRow, *, numbered: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.path, self._make = path, make
        self._rows: tuple[Row, ...] = ()
        self._end: End | None = None
        self.marked = -1
        """The byte at which a line begins that is marked."""
        self.marked_number = 0
        """The number of a line that is marked."""
        self.pattern = ""
        self.numbered = numbered
        self.scroller = Scroller(path, self._tell, numbered=numbered)

    def on_mount(self) -> None:
        """Begin to read."""
        self._end = endless(self, self.scroller.work)

    def on_unmount(self) -> None:
        """Read no more."""
        if self._end:
            self._end()

    def _tell(self, shown: Shown) -> None:
        # In the thread: what takes time is done here, and what is sent is only drawn.
        self.post_message(self._Fresh(shown, tuple(self._make(line.data) for line in shown.lines)))

    def on_pane__fresh(self, message: _Fresh) -> None:
        """Draw what the thread found."""
        message.stop()
        before, at_end = self.shown, self.cursor >= len(self._rows) - 1
        self._rows = message.rows
        self.shown = message.shown
        last = max(len(self._rows) - 1, 0)
        self.cursor = last if at_end and (before is None or message.shown.following) else min(self.cursor, last)
        self.refresh()
        self.post_message(self.Changed(self, message.shown))

    def on_resize(self, event: events.Resize) -> None:
        """As many lines as there is room for."""
        self.scroller.ask_height(event.size.height)

    def on_show(self) -> None:
        """Somebody looks again."""
        self.scroller.follow(True)

    def on_hide(self) -> None:
        """Nobody looks."""
        self.scroller.follow(False)

    def on_mouse_scroll_down(self) -> None:
        """The wheel."""
        self.scroller.ask_move(_WHEEL)

    def on_mouse_scroll_up(self) -> None:
        """The wheel."""
        self.scroller.ask_move(-_WHEEL)

    def on_click(self, event: events.Click) -> None:
        """A click puts the cursor; a second one picks."""
        if event.y < len(self._rows):
            self.cursor = event.y
        if event.chain == 2:
            self.action_pick()

    def action_move(self, by: int) -> None:
        """The cursor by a line; at an edge the lines move."""
        if 0 <= self.cursor + by < len(self._rows):
            self.cursor += by
        else:
            self.scroller.ask_move(by)

    def action_page(self, by: int) -> None:
        """A screen of lines."""
        self.scroller.ask_move(by * max(self.size.height - 1, 1))

    def action_first(self) -> None:
        """The beginning of the file."""
        self.cursor = 0
        self.scroller.ask_first()

    def action_last(self) -> None:
        """The end of the file, and what comes."""
        self.cursor = max(len(self._rows) - 1, 0)
        self.scroller.ask_last()

    def action_shift(self, by: int) -> None:
        """Other columns of long lines."""
        self.column = max(0, self.column + by)

    def action_pick(self) -> None:
        """The line at the cursor."""
        if self.shown and self.cursor < len(self.shown.lines):
            self.post_message(self.Picked(self.shown.lines[self.cursor]))

    def render(self) -> Content:
        """The lines."""
        if self.shown is None:
            return Content("")
        if not self._rows:
            return Content.styled("searching" if self.shown.searching else "there is no such line", "$text-muted")
        first = self.shown.number
        wide = len(str(first + len(self._rows)))
        # Times and stages stand below each other, as wide as this screen of them needs.
        when = max(len(row.when) + 1 if row.when else 0 for row in self._rows)
        stage = max(len(row.stage) + 1 if row.stage else 0 for row in self._rows)
        rows = []
        for place, (row, line) in enumerate(zip(self._rows, self.shown.lines, strict=False)):
            number = f"{first + place if first else '?':>{wide}} " if self.numbered else ""
            marked = line.start == self.marked or bool(first and first + place == self.marked_number)
            head = number or f"{row.when:<{when}}{row.stage:<{stage}}"
            rows.append(self._row(row, head, marked, place == self.cursor and self.has_focus))
        return Content("\n").join(rows)

    def _row(self, row: Row, head: str, marked: bool, here: bool) -> Content:
        text = row.text[self.column :]
        body = Content.styled(text, _STYLES[row.level])
        if self.pattern:
            low, at = text.lower(), 0
            while (at := low.find(self.pattern.lower(), at)) >= 0:
                body = body.stylize(_FOUND, at, at + len(self.pattern))
                at += len(self.pattern)
        # A level is a letter as well as a colour.
        sign = {"error": "E ", "warning": "W "}.get(row.level, "  ") if not self.numbered else ""
        mark = "▶ " if marked else "  " if self.marked >= 0 or self.marked_number else ""
        found = Content.assemble(mark, (head, "$text-muted"), (sign, _STYLES[row.level]), body)
        if here or marked:
            return found.pad_right(max(self.size.width - found.cell_length, 0)).stylize(_CURSOR)
        return found
