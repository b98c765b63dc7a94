"""`?`: what a screen is for and which keys it has, out of its docstring and its bindings."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Label, Static


def help_of(screen: Screen[Any]) -> str:
    """The help text of a screen: its docstring, then a line for each key that does something there."""
    about = inspect.cleandoc(type(screen).__doc__ or "")
    rows: dict[tuple[str, str], list[str]] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if binding.description and not binding.system:
            rows.setdefault((binding.description, binding.tooltip), []).append(screen.app.get_key_display(binding))
    lines = [f"{' '.join(keys):<20} {words}" for (words, _), keys in rows.items()]
    return "\n".join([about, "", *lines, "", "Tab and Shift+Tab go from field to field; the mouse works everywhere."])


class HelpScreen(ModalScreen[None]):
    """Help for the screen below."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,question_mark,f1", "app.pop_screen", "Back")]
    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen > Vertical { width: 90%; max-width: 90; height: 90%; background: $surface; padding: 0 1; }
    HelpScreen Label { text-style: bold; }
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """The text."""
        with Vertical():
            yield Label("Help")
            with VerticalScroll():
                yield Static(self._text, markup=False)
            yield Footer()
