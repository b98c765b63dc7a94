"""What a dataset covers, against targets, in a tab."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Select, Static
from textual.worker import get_current_worker

from pillm.core.errors import PillmError
from pillm.core.shipped import data_path
from pillm.tui.home.entries import datasets

if TYPE_CHECKING:  # the language model behind it takes a second to load, and belongs into the thread
    from pillm.data.coverage import Coverage

_MOST_BANNERS = 50


def measured(data: str, targets: str) -> Coverage:
    """The coverage of a dataset; no targets where `targets` is empty. Raises PillmError."""
    from pillm.data import coverage
    from pillm.data import targets as target_files
    from pillm.data.inputs import sources

    wanted = target_files.read(Path(targets).expanduser()) if targets else ()
    return coverage.measure(sources((Path(data),)), wanted)


def banners(found: Coverage) -> list[str]:
    """What is missing: how many records of what. Then what speaks against what the records declare."""
    told = list(found.warnings)
    if found.invalid:
        told.append(f"{found.invalid:,} lines are no records: pillm dataset validate says why")
    if found.findings_in_all:
        told.append(f"{found.findings_in_all:,} records show another language or variety than they declare")
    return told


def stamp(data: str, targets: str) -> object:
    """Something that is another after one of the files has changed."""
    found = []
    for text in (data, targets):
        if text:
            try:
                about = data_path(text).stat()
                found.append((text, about.st_mtime_ns, about.st_size))
            except (PillmError, OSError):
                found.append((text,))
    return found


def _choices(known: list[str]) -> list[tuple[Content, str]]:
    # Content, since a bracket in the name of a file is no markup.
    return [(Content(key), key) for key in known]


class CoverageTab(Vertical):
    """Choose a dataset, and a file of targets; what is missing stands above the counts."""

    DEFAULT_CSS = """
    CoverageTab Horizontal { height: 1; }
    CoverageTab Select { width: 1fr; }
    CoverageTab Input { width: 1fr; height: 1; border: none; background: $panel; margin-left: 1; }
    CoverageTab #banners { height: auto; max-height: 40%; display: none; background: $warning 20%; color: $text-warning; padding: 0 1; }
    CoverageTab.-missing #banners { display: block; }
    CoverageTab #counts { width: auto; }
    CoverageTab #table { height: 1fr; overflow-x: auto; }
    """

    class _Found(Message):
        def __init__(self, lines: list[str], missing: list[str]) -> None:
            super().__init__()
            self.lines, self.missing = lines, missing

    class _Known(Message):
        def __init__(self, known: list[str]) -> None:
            super().__init__()
            self.known = known

    def __init__(self, data: str = "", targets: str = "") -> None:
        super().__init__()
        self.data, self.targets = data, targets
        self._stamp: object = None

    def compose(self) -> ComposeResult:
        """What, against what, and the answer."""
        known = [self.data] if self.data else []
        with Horizontal():
            yield Select[str](_choices(known), prompt="choose a dataset", id="data", compact=True)
            yield Input(self.targets, placeholder="targets.yaml (Enter)", id="targets", compact=True)
        with VerticalScroll(id="banners"):
            yield Static(id="missing", markup=False)
        with VerticalScroll(id="table"):
            yield Static("choose a dataset above", id="counts", markup=False)

    def on_mount(self) -> None:
        """What was chosen before, and what there is."""
        if self.data:
            self.query_one(Select).value = self.data
        self._list()

    @work(thread=True, group="datasets")
    def _list(self) -> None:
        try:
            known = [entry.key for entry in datasets()]
        except OSError:
            return
        if not get_current_worker().is_cancelled:
            self.post_message(self._Known(known))

    def on_coverage_tab__known(self, message: _Known) -> None:
        """Offer them; what was chosen stays."""
        message.stop()
        known = message.known
        if self.data and self.data not in known:
            known.insert(0, self.data)
        select = self.query_one(Select)
        with self.prevent(Select.Changed):
            select.set_options(_choices(known))
            if self.data:
                select.value = self.data

    @on(Select.Changed, "#data")
    def _data(self, event: Select.Changed) -> None:
        event.stop()
        self.data = event.value if isinstance(event.value, str) else ""
        self.look(True)

    @on(Input.Submitted, "#targets")
    def _targets(self, event: Input.Submitted) -> None:
        event.stop()
        self.targets = event.value.strip()
        self.look(True)

    def look(self, asked: bool = False) -> None:
        """Count again, if a file has changed."""
        # A look from time to time must not end one that somebody asked for.
        busy = any(worker.group == "coverage" and worker.is_running for worker in self.workers)
        if self.data and (asked or not busy):
            if asked:
                self.query_one("#counts", Static).update("counting")
            self._look(asked)

    @work(thread=True, exclusive=True, group="coverage")
    def _look(self, asked: bool) -> None:
        data, targets = self.data, self.targets
        now = stamp(data, targets)
        if now == self._stamp and not asked:
            return
        try:
            found = measured(data, targets)
            from pillm.data.coverage_table import table

            message = self._Found(table(found), banners(found))
        except PillmError as error:
            message = self._Found([], [f"{error.message}\n{error.hint}".rstrip()])
        if not get_current_worker().is_cancelled:
            self._stamp = now
            self.post_message(message)

    def on_coverage_tab__found(self, message: _Found) -> None:
        """Show it."""
        message.stop()
        shown = [f"! {line}" for line in message.missing[:_MOST_BANNERS]]
        if len(message.missing) > len(shown):
            shown.append(f"! and {len(message.missing) - len(shown):,} more")
        self.query_one("#missing", Static).update("\n".join(shown))
        self.set_class(bool(shown), "-missing")
        self.query_one("#counts", Static).update("\n".join(message.lines))
