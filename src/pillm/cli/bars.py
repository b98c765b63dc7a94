"""Progress bars on a terminal's stderr."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from pillm.core.amounts import amount, share
from pillm.core.events import Progress

_REFRESH_SECONDS = 0.1


class Bars:
    """One bar for each label, drawn at most ten times a second.

    It draws when it is told something and has no thread of its own: stages start child processes, and
    a fork beside a drawing thread can hang.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Amount(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        self._tasks: dict[str, object] = {}
        self._drawn = 0.0
        self._rich.start()

    def update(self, event: Progress) -> None:
        """Move the bar of the event's label."""
        if event.label not in self._tasks:
            self._tasks[event.label] = self._rich.add_task(event.label, total=event.total, unit=event.unit)
        task = self._tasks[event.label]
        self._rich.update(task, completed=event.done, total=event.total)  # type: ignore[arg-type]
        now = time.monotonic()
        if now - self._drawn >= _REFRESH_SECONDS or event.done == event.total:
            self._drawn = now
            self._rich.refresh()

    def line(self, text: str) -> None:
        """A line above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bars away."""
        self._rich.stop()


class _Amount(ProgressColumn):
    """`12 of 40 steps`, `1.2 MB of 98.4 MB, 3.1 MB/s`."""

    def render(self, task: Task) -> Text:
        unit = str(task.fields.get("unit", ""))
        text = share(task.completed, task.total, unit)
        if unit in ("B", "bytes") and task.speed:
            text += f", {amount(task.speed, unit)}/s"
        return Text(text)
