"""What of a log stands on the screen: a window of lines that moves, follows, filters. Nothing is drawn here.

Every method reads the file and may take long where few lines are wanted, so it belongs into a thread; `on_some` is
called with what there is as it is found.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from pillm.tui.runs.lines import EVERYTHING, Keep, Line, Stop, after, before, line_start, never, size

_LEAP = 4 * 1024 * 1024
"""Growth beyond this since the last look is not read: only its end will be seen."""

_SOME = 8

Some = Callable[[], None]


def _nothing() -> None:
    """Nobody wants to see what was found so far."""


class Window:
    """`lines` are at most `height` neighbours among the wanted lines; `following` keeps them the last ones."""

    def __init__(self, path: Path, height: int = 20, keep: Keep = EVERYTHING) -> None:
        self.path, self.height, self.keep = path, height, keep
        self.lines: list[Line] = []
        self.following = True
        self._read = self._seen = 0
        """While following: the end of the last whole line that was looked at, and that of the file then."""

    def last(self, stop: Stop = never, on_some: Some = _nothing) -> None:
        """Go to the end, and follow."""
        self.following = True
        end = size(self.path)
        found: list[Line] = []
        for line in islice(before(self.path, end, self.keep, stop), self.height):
            found.append(line)
            if len(found) % _SOME == 1:
                self.lines = found[::-1]
                on_some()
        self.lines = found[::-1]
        self._read, self._seen = self._whole(end), end

    def grow(self, stop: Stop = never) -> bool:
        """While following, take in what was written since; True if that changed the window."""
        end = size(self.path)
        if not self.following or end == self._seen:
            return False
        if end < self._seen or end - self._read > _LEAP:
            self.last(stop)
            return True
        fresh = list(after(self.path, self._read, self.keep, stop))
        shown = [line for line in self.lines if line.end <= self._read]
        self.lines = (shown + fresh)[-self.height :]
        self._read, self._seen = self._whole(end), end
        return bool(fresh)

    def first(self, stop: Stop = never, on_some: Some = _nothing) -> None:
        """Go to the beginning."""
        self.show(0, stop, on_some)

    def show(self, place: int, stop: Stop = never, on_some: Some = _nothing) -> None:
        """Go to the line that holds the byte `place`: it becomes the first one."""
        self.following = False
        found: list[Line] = []
        for line in islice(after(self.path, line_start(self.path, place), self.keep, stop), self.height):
            found.append(line)
            if len(found) % _SOME == 1:
                self.lines = found
                on_some()
        if len(found) < self.height and not stop():
            start = found[0].start if found else size(self.path)
            above = islice(before(self.path, start, self.keep, stop), self.height - len(found))
            found = [*reversed(list(above)), *found]
        self.lines = found

    def move(self, by: int, stop: Stop = never) -> bool:
        """Go down `by` lines, or up if it is negative; False if there is nothing more in that direction."""
        if not self.lines:
            return False
        if by < 0:
            more = list(islice(before(self.path, self.lines[0].start, self.keep, stop), -by))
            if more:
                self.following = False
                self.lines = [*reversed(more), *self.lines][: self.height]
        else:
            more = list(islice(after(self.path, self.lines[-1].end, self.keep, stop), by))
            self.lines = [*self.lines, *more][-self.height :]
            if len(more) < by and not self.following:
                self.last(stop)
        return bool(more)

    def resize(self, height: int, stop: Stop = never) -> None:
        """Another height: the first line stays, or the last one while following."""
        if height == self.height:
            return
        self.height = max(height, 1)
        if self.following or not self.lines:
            self.last(stop)
        else:
            self.show(self.lines[0].start, stop)

    def want(self, keep: Keep, stop: Stop = never, on_some: Some = _nothing) -> None:
        """Another choice of lines: the last ones of them, or those from where we are."""
        self.keep = keep
        if self.following or not self.lines:
            self.last(stop, on_some)
        else:
            self.show(self.lines[0].start, stop, on_some)

    @property
    def share(self) -> float:
        """How far down the file the last line is, from 0 to 1."""
        whole = size(self.path)
        return min(self.lines[-1].end / whole, 1.0) if self.lines and whole else 1.0

    def _whole(self, end: int) -> int:
        # A last line without an end is looked at again: its rest is still to come.
        return line_start(self.path, end)
