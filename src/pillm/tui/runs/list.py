"""The runs of this folder, as a list."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.message import Message
from textual.widget import Widget
from textual.widgets import OptionList
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from pillm.tui.runs import folder
from pillm.tui.runs.find import RunInfo, ago, runs
from pillm.tui.runs.picture import MARKS, WORDS

_EVERY_SECONDS = 2.0


def line(run: RunInfo) -> str:
    """A run in one line: how it stands, its name, when it last said something, and on what it is."""
    state = WORDS.get(run.state, run.state)
    return f"{MARKS[run.state]} {state:<8} {run.name:<28} {ago(run.changed)}  {run.detail}".rstrip()


class RunList(Widget):
    """The runs below a folder, looked for again every two seconds; posts `Chosen` when one is picked."""

    BINDINGS: ClassVar[list[BindingType]] = []
    DEFAULT_CSS = "RunList { height: 1fr; } RunList OptionList { height: 1fr; }"

    class Chosen(Message):
        """A run was picked."""

        def __init__(self, run_dir: Path) -> None:
            super().__init__()
            self.run_dir = run_dir

    class _Found(Message):
        def __init__(self, runs: list[RunInfo]) -> None:
            super().__init__()
            self.runs = runs

    def __init__(self, root: Path = folder.RUNS, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.root = root
        self.runs: list[RunInfo] = []
        self._looking = False

    def compose(self) -> ComposeResult:
        """One list."""
        yield OptionList(markup=False)

    def on_mount(self) -> None:
        """Look, and look again."""
        self._look()
        self.set_interval(_EVERY_SECONDS, self._look)

    def _look(self) -> None:
        # A slow disk must not gather one thread after the other.
        if not self._looking:
            self._looking = True
            self._read()

    @work(thread=True, group="look")
    def _read(self) -> None:
        try:
            found = runs(self.root)
            if not get_current_worker().is_cancelled and found != self.runs:
                self.post_message(self._Found(found))
        finally:
            self._looking = False

    def on_run_list__found(self, message: _Found) -> None:
        """Show them; the cursor stays on its run."""
        message.stop()
        options = self.query_one(OptionList)
        here = self.runs[options.highlighted].run_dir if options.highlighted is not None and self.runs else None
        self.runs = message.runs
        options.clear_options()
        options.add_options([Option(line(run)) for run in self.runs] or [Option("no run yet", disabled=True)])
        places = [place for place, run in enumerate(self.runs) if run.run_dir == here]
        options.highlighted = places[0] if places else (0 if self.runs else None)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """One was picked."""
        event.stop()
        if event.option_index < len(self.runs):
            self.post_message(self.Chosen(self.runs[event.option_index].run_dir))
