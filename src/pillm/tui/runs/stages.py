"""The stages of a run, one a line, with bars."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from pillm.tui.runs.picture import MARKS, WORDS, StageRow, bar

STYLES = {
    "running": "$text-accent", "ran": "$text-success", "done": "$text-success", "cached": "$text-success",
    "failed": "$text-error", "dead": "$text-error", "stopped": "$text-warning", "waiting": "$text-muted",
}  # fmt: skip
_STATE, _TIME, _PERCENT = 9, 12, 5
_LONGEST_NAME = 18


def line(row: StageRow, width: int, name_width: int) -> list[tuple[str, str]]:
    """A stage as pieces of text with their styles, `width` cells in all.

    Where there is little room the words go first, then the bar.
    """
    style = STYLES.get(row.state, "")
    head = f"{MARKS.get(row.state, ' ')} {_cut(row.id, name_width):<{name_width}} "
    state = f"{WORDS.get(row.state, row.state):<{_STATE}} "
    rest = width - len(head) - len(state) - _TIME - 1
    done = row.state in ("ran", "done", "cached")
    if rest < 6:
        return [(_cut(head + state, width), style)]
    if row.share is None or done:
        middle = [(f"{_cut(row.amount, rest):<{rest}}", "")]
    else:
        cells = min(24, max(rest - _PERCENT - 28, min(rest - _PERCENT, 10)))
        words = max(rest - cells - _PERCENT - 1, 0)
        middle = [
            (bar(row.share, cells), style),
            (f"{row.share:>{_PERCENT}.0%}", ""),
            (f" {_cut(row.amount, words):<{words}}" if words else " " * (rest - cells - _PERCENT), "$text-muted"),
        ]
    return [
        (head, "bold" if row.state == "running" else ""),
        (state, style),
        *middle,
        (f" {_cut(row.time, _TIME):>{_TIME}}", ""),
    ]


def _cut(text: str, width: int) -> str:
    text = text.replace("\n", " ")
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


class Stages(Widget, can_focus=True):
    """Up and down choose the stage whose curves are drawn."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Stage above", show=False),
        Binding("down", "move(1)", "Stage below", show=False),
    ]
    DEFAULT_CSS = "Stages { text-wrap: nowrap; min-height: 1; }"

    rows: reactive[tuple[StageRow, ...]] = reactive((), layout=True)
    cursor: reactive[int] = reactive(-1)
    """-1: none was chosen yet."""

    class Chosen(Message):
        """Another stage is looked at."""

        def __init__(self, stage: str) -> None:
            super().__init__()
            self.stage = stage

    def action_move(self, by: int) -> None:
        """Another stage."""
        self._choose(self.cursor + by)

    def on_click(self, event: events.Click) -> None:
        """The stage that is pointed at."""
        self._choose(self._first + event.y)

    def _choose(self, place: int) -> None:
        if self.rows:
            self.cursor = min(max(place, 0), len(self.rows) - 1)
            self.post_message(self.Chosen(self.rows[self.cursor].id))

    def point(self, stage: str) -> None:
        """Put the cursor on a stage, where nobody has put it elsewhere."""
        places = [place for place, row in enumerate(self.rows) if row.id == stage]
        self.cursor = places[0] if places else -1

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """A line for each stage."""
        return max(len(self.rows), 1)

    @property
    def _first(self) -> int:
        return max(0, min(self.cursor - self.size.height + 1, len(self.rows) - self.size.height))

    def render(self) -> Content:
        """The stages that there is room for, the chosen one among them."""
        if not self.rows:
            return Content.styled("no stage has begun", "$text-muted")
        wide = min(max(len(row.id) for row in self.rows), _LONGEST_NAME)
        shown = []
        for place, row in list(enumerate(self.rows))[self._first : self._first + max(self.size.height, 1)]:
            found = Content.assemble(*line(row, self.size.width, wide))
            if place == self.cursor:
                focus = "$block-cursor-foreground on $block-cursor-background" if self.has_focus else "on $panel"
                found = found.pad_right(max(self.size.width - found.cell_length, 0)).stylize(focus)
            shown.append(found)
        return Content("\n").join(shown)
