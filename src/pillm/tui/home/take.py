"""A dataset or a board, and the commands that take it."""

from __future__ import annotations

from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Label, OptionList, Static
from textual.widgets.option_list import Option

from pillm.pipeline.stages import Stage
from pillm.tui.home.entries import Entry, facts, taking


class TakeModal(ModalScreen[tuple[Stage, str] | None]):
    """What can be done with it: each command opens its form, with this filled in."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "leave", "Back")]
    DEFAULT_CSS = """
    TakeModal { align: center middle; }
    TakeModal > Vertical { width: 80%; max-width: 100; height: auto; max-height: 90%; background: $surface; padding: 0 1; }
    TakeModal Label { text-style: bold; }
    TakeModal OptionList { height: auto; max-height: 14; }
    TakeModal #facts { color: $text-muted; }
    """

    def __init__(self, entry: Entry) -> None:
        super().__init__()
        self.entry = entry
        self._found: list[tuple[Stage, str]] = []

    def compose(self) -> ComposeResult:
        """The name, what is known, the commands."""
        with Vertical():
            yield Label(self.entry.name, markup=False)
            yield Static(self.entry.about, id="facts", markup=False)
            yield OptionList(markup=False)
            yield Footer()

    def on_mount(self) -> None:
        """Look for the commands beside."""
        self._read()

    @work(thread=True)
    def _read(self) -> None:
        words = facts(self.entry.key) if self.entry.kind == "board" else [self.entry.about]
        self.app.call_from_thread(self._show, taking(self.entry.kind), "\n".join(words))

    def _show(self, found: list[tuple[Stage, str]], words: str) -> None:
        self._found = found
        self.query_one("#facts", Static).update(words)
        options = self.query_one(OptionList)
        options.add_options([Option(f"{' '.join(stage.words):<18} {stage.summary}") for stage, _ in found])
        options.highlighted = 0 if found else None
        options.focus()

    @on(OptionList.OptionSelected)
    def _take(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._found[event.option_index])

    def action_leave(self) -> None:
        """Leave."""
        self.dismiss(None)
