"""Look at a file at the line of a finding."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Label, Static

from pillm.core.errors import PillmError, UsageError
from pillm.core.findings import Finding
from pillm.core.shipped import data_path
from pillm.tui.runs.pane import Pane
from pillm.tui.runs.row import Row, plain

_ABOVE = 3
_PACKED = (".gz", ".zst")


def file_of(finding: Finding) -> Path:
    """The file a finding is about. Raises UsageError, with the reason, where it cannot be shown."""
    path = data_path(finding.file)
    if not path.is_file():
        raise UsageError(f"{finding.file}: there is no such file here", "it may be given relative to another folder")
    if path.suffix in _PACKED:
        raise UsageError(f"{finding.file}: a packed file cannot be shown", f"unpack it, then see line {finding.line}")
    return path


class FileViewer(ModalScreen[None]):
    """A file at the line of a finding. The marked line is the one that it is about."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q", "app.pop_screen", "Back")]
    DEFAULT_CSS = """
    FileViewer { align: center middle; }
    FileViewer > Vertical { width: 96%; height: 92%; background: $surface; border: round $primary; padding: 0 1; }
    FileViewer Label { text-style: bold; width: 1fr; }
    FileViewer .words { color: $text-warning; height: auto; max-height: 5; }
    """

    def __init__(self, path: Path, finding: Finding) -> None:
        super().__init__()
        self.path, self.finding = path, finding

    def compose(self) -> ComposeResult:
        """What is wrong, and the file."""
        found = self.finding
        with Vertical():
            yield Label(f"{found.file}:{found.line}" if found.line else found.file, markup=False)
            where = f"{found.path}: " if found.path else ""
            yield Static(f"{where}{found.message}\n{found.hint}".rstrip(), classes="words", markup=False)
            yield Pane(self.path, lambda data: Row("info", plain(data.decode("utf-8", "replace"))), numbered=True)
            yield Footer()

    def on_mount(self) -> None:
        """Go to the line, counted from the file itself: what a finding says of bytes may be of another version."""
        pane = self.query_one(Pane)
        pane.marked_number = max(self.finding.line, 1)
        pane.scroller.ask_line(max(self.finding.line, 1), _ABOVE)
        pane.focus()


def words(error: PillmError) -> str:
    """An error for a notification."""
    return f"{error.message}\n{error.hint}".rstrip()
