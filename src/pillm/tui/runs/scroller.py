"""The thread behind a log on the screen: does what was asked for in order, follows the file, passes on what to show.

Asking never waits. What is asked while a long search runs ends it, except for moves, which come after it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pillm.tui.runs.lines import EVERYTHING, Keep, Line, Numbers, Stop
from pillm.tui.runs.window import Window

TICK = 0.1
"""Seconds between looks at a file that grows: nothing is redrawn more often than that, but for a key."""


class Shown(NamedTuple):
    """What stands on the screen: lines, the number of the first (0: not known), and how far down the file it is."""

    lines: tuple[Line, ...]
    number: int
    share: float
    following: bool
    searching: bool


Tell = Callable[[Shown], object]
Goal = Callable[[Window, Stop, Callable[[], None]], object]


class Scroller:
    """A window and what is asked of it. `ask_*` come from the screen, `work` is the thread."""

    def __init__(self, path: Path, tell: Tell, *, numbered: bool = False) -> None:
        self._tell = tell
        self._window = Window(path)
        self._numbers = Numbers(path) if numbered else None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._goal: Goal | None = lambda window, stop, some: window.last(stop, some)
        # What is shown of which file, and where: who asks for one of them leaves the others as they were asked for.
        self._path: Path | None = None
        self._keep: Keep | None = None
        self._moves = 0
        self._height = self._window.height
        self._awake = True

    def ask_last(self) -> None:
        """To the end, and follow."""
        self._ask(lambda window, stop, some: window.last(stop, some))

    def ask_first(self) -> None:
        """To the beginning."""
        self._ask(lambda window, stop, some: window.first(stop, some))

    def ask_place(self, place: int, above: int = 0, keep: Keep = EVERYTHING) -> None:
        """To the line at a byte, with some lines above it."""

        def goal(window: Window, stop: Stop, some: Callable[[], None]) -> None:
            window.show(place, stop, some)
            window.move(-above, stop)

        self._ask(goal, keep=keep)

    def ask_line(self, number: int, above: int = 0) -> None:
        """To a line by its number, with some lines above it."""

        def goal(window: Window, stop: Stop, some: Callable[[], None]) -> None:
            if self._numbers:
                self._numbers.extend(stop)
                place = self._numbers.place(number)
                window.show(place if place is not None else self._numbers.read, stop, some)
                window.move(-above, stop)

        self._ask(goal)

    def ask_keep(self, keep: Keep) -> None:
        """Only some lines; the last ones of them."""
        self._ask(lambda window, stop, some: window.last(stop, some), keep=keep)

    def ask_file(self, path: Path) -> None:
        """Another file, its end."""
        self._ask(lambda window, stop, some: window.last(stop, some), path=path)

    def ask_move(self, by: int) -> None:
        """Some lines down, or up."""
        with self._lock:
            self._moves += by
        self._wake.set()

    def ask_height(self, height: int) -> None:
        """Another height of the window."""
        self._height = max(height, 1)
        self._wake.set()

    def follow(self, awake: bool) -> None:
        """Whether to look at the file at all: not while nobody sees it."""
        self._awake = awake
        self._wake.set()

    def settled(self, height: int) -> bool:
        """Whether nothing is left to do that was asked for, in a window of this height."""
        return self._window.height == height and self._goal is None and not self._moves

    def work(self, ended: Stop) -> None:
        """Do what is asked until `ended`."""
        while not ended():
            self._wake.wait(TICK if self._awake else 10 * TICK)
            if self._step(ended):
                self._show(False)
                self._wake.wait(TICK / 2)  # what is asked meanwhile is done at once with the next

    def _step(self, ended: Stop) -> bool:
        with self._lock:
            goal, self._goal = self._goal, None
            moves, self._moves = self._moves, 0
            window = self._window
            window.path, self._path = self._path or window.path, None
            window.keep, self._keep = self._keep or window.keep, None
            self._wake.clear()

        def stop() -> bool:
            return ended() or self._goal is not None

        changed = self._height != window.height
        if changed:
            window.resize(self._height, stop)
        if goal:
            goal(window, stop, lambda: self._show(True))
            # Keys that came after what was asked for, before this thread woke: they move from there.
            window.move(moves, stop)
            return True
        if moves:
            return window.move(moves, stop) or changed
        return (self._awake and window.grow(stop)) or changed

    def _show(self, searching: bool) -> None:
        window = self._window
        first = self._numbers.number(window.lines[0].start) if self._numbers and window.lines else None
        self._tell(Shown(tuple(window.lines), first or 0, window.share, window.following, searching))

    def _ask(self, goal: Goal, *, path: Path | None = None, keep: Keep | None = None) -> None:
        with self._lock:
            self._goal, self._moves = goal, 0
            self._path, self._keep = path or self._path, keep or self._keep
        self._wake.set()
