"""Text to read above a screen: what a dry run prints, one long line of a log."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Label, Static


class TextModal(ModalScreen[None]):
    """A title and a text, wrapped."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,enter", "app.pop_screen", "Back"), ("c", "copy", "Copy")]
    DEFAULT_CSS = """
    TextModal { align: center middle; }
    TextModal > Vertical { width: 96%; height: 92%; background: $surface; border: round $primary; padding: 0 1; }
    TextModal Label { text-style: bold; width: 1fr; }
    """

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        """The title above the text."""
        with Vertical():
            yield Label(self._title, markup=False)
            with VerticalScroll():
                yield Static(self._text, markup=False)
            yield Footer()

    def action_copy(self) -> None:
        """Copy the text."""
        self.app.copy_to_clipboard(self._text)
        self.notify("copied")
