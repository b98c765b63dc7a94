"""Reads a run for its screen: the end of its journal first, then all of it, then what is added."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from pillm.pipeline import journal
from pillm.tui.runs import folder
from pillm.tui.runs.find import state_of
from pillm.tui.runs.lines import before, size
from pillm.tui.runs.picture import Picture, picture, seed, vanished
from pillm.tui.runs.state import RunView, add
from pillm.tui.runs.tail import Tail

_FIRST_LOOK = 2000
"""Lines at the end of a large journal that say how the run stands now."""

_LARGE = 4 * 1024 * 1024

Now = Callable[[], datetime.datetime]


def utc_now() -> datetime.datetime:
    """The time, as a `Now`."""
    return datetime.datetime.now(datetime.UTC)


class Reader:
    """A run that is read piece by piece, in one thread; `look` says how it stands after what was read."""

    def __init__(self, run_dir: Path, now: Now = utc_now) -> None:
        self.run_dir, self._now = run_dir, now
        self.tail = Tail(run_dir / journal.NAME)
        self.shown = ""
        """The stage whose curves are wanted; empty for the one at work."""
        self._seen: object = None
        self._begin()

    def read(self) -> bool:
        """Read one piece on; True if there was anything."""
        restarts = self.tail.restarts
        lines = self.tail.read()
        if self.tail.restarts != restarts:
            self._begin()
        add(self.view, lines)
        if lines and self._glance and self.tail.behind() < _LARGE:
            self._glance = None
        return bool(lines)

    def look(self) -> Picture:
        """The run as it stands now."""
        if not self.run_dir.is_dir():
            return vanished(self.run_dir)
        try:
            state, detail = state_of(self.run_dir)
        except OSError:
            return vanished(self.run_dir)
        if state == "done":
            self._take_manifest()
        whole = size(self.tail.path)
        share = min(self.tail.offset / whole, 1.0) if whole and self.tail.behind() > _LARGE else 1.0
        found = picture(
            self._glance or self.view, self.run_dir, state, detail, self._now(), shown=self.shown, read=share
        )
        return found

    def _begin(self) -> None:
        self.view = RunView()
        seed(self.view, self.run_dir)
        if folder.is_single(self.run_dir):
            self.view.began = _began(self.run_dir)
        self._glance: RunView | None = None
        if size(self.tail.path) > _LARGE:
            # Seconds go by until all of it is read; its end says at once how the run stands.
            self._glance = RunView()
            seed(self._glance, self.run_dir)
            self._glance.began = self.view.began
            end = islice(before(self.tail.path, size(self.tail.path)), _FIRST_LOOK)
            add(self._glance, [line.data for line in reversed(list(end))])

    def _take_manifest(self) -> None:
        """What the manifest of a finished run says of its outputs, which the journal does not."""
        path = self.run_dir / "manifest.json"
        about = path.stat().st_mtime_ns if path.is_file() else None
        if about is not None and about != self._seen:
            self._seen = about
            states = {name: stage.state for name, stage in self.view.stages.items()}
            seed(self.view, self.run_dir)
            for name, state in states.items():
                if state in ("ran", "cached"):
                    self.view.stages[name].state = state


def _began(run_dir: Path) -> str:
    path = run_dir / folder.PID
    if not path.is_file():
        return ""
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).isoformat()
