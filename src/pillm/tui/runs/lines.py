"""Lines of a file of any size around a place in it, in both directions, without reading what is not asked for.

A place is the byte at which a line begins. What is held is one block and what was found in it, so a log of 1 GB opens
as fast as one of 1 MB. A last line without an end is shown as it is: its writer may have been cut off.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK = 256 * 1024
_LONGEST = 64 * 1024
"""What is kept of a line: more cannot be looked at."""

Test = Callable[[bytes], bool]
Stop = Callable[[], bool]


class Line(NamedTuple):
    """Where a line begins, where the next one begins, and its text without the end."""

    start: int
    end: int
    data: bytes


def _yes(_: bytes) -> bool:
    return True


class Keep(NamedTuple):
    """Which lines are wanted. `block` may say of many lines at once that none of them is, which is much faster."""

    line: Test = _yes
    block: Test = _yes


EVERYTHING = Keep()


def never() -> bool:
    """A `Stop` that lets a search go on."""
    return False


def after(path: Path, start: int, keep: Keep = EVERYTHING, stop: Stop = never) -> Iterator[Line]:
    """Lines from the place `start` to the end of the file as it is now. No file: no lines."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            place, held = start, b""
            while not stop() and (block := file.read(BLOCK)):
                data = held + block
                if not keep.block(data):
                    cut = data.rfind(b"\n") + 1
                    place, held = place + cut, data[cut:]
                    if len(held) > 2 * BLOCK:  # as below: a line that no one can look at is not kept for its end
                        place, held = place + len(held), b""
                    continue
                *whole, held = data.split(b"\n")
                for line in whole:
                    end = place + len(line) + 1
                    if keep.line(line):
                        yield Line(place, end, line[:_LONGEST])
                    place = end
                if len(held) > 2 * BLOCK:
                    # No line of a person: its parts are shown as lines, and memory stays what it is.
                    if keep.line(held):
                        yield Line(place, place + len(held), held[:_LONGEST])
                    place, held = place + len(held), b""
            if held and not stop() and keep.line(held):
                yield Line(place, place + len(held), held[:_LONGEST])
    except OSError:
        return


def before(path: Path, end: int, keep: Keep = EVERYTHING, stop: Stop = never) -> Iterator[Line]:
    """Lines that end at the place `end` or before, the last first. No file: no lines."""
    try:
        with path.open("rb") as file:
            place, held = end, b""
            while place > 0 and not stop():
                size = min(BLOCK, place)
                file.seek(place - size)
                data = file.read(size) + held
                place -= size
                # The first line of the block may begin in the block before.
                cut = data.find(b"\n") + 1 if place else 0
                if cut == len(data):
                    cut = 0  # its end is no other line's beginning
                if place and not cut and len(data) <= 2 * BLOCK:
                    held = data
                    continue
                body, held = data[cut:], data[:cut]
                if keep.block(body):
                    yield from reversed(list(_split(body, place + cut, keep)))
    except OSError:
        return


def _split(body: bytes, place: int, keep: Keep) -> Iterator[Line]:
    pieces = body.split(b"\n")
    for number, line in enumerate(pieces):
        last = number == len(pieces) - 1
        end = place + len(line) + (0 if last else 1)
        if (line or not last) and keep.line(line):
            yield Line(place, end, line[:_LONGEST])
        place = end


def size(path: Path) -> int:
    """Bytes of the file; 0 if it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def line_start(path: Path, place: int) -> int:
    """Where the line begins that holds the byte `place`; that of the last line where the file is shorter."""
    try:
        with path.open("rb") as file:
            end = min(place, path.stat().st_size)
            while end > 0:
                begin = max(0, end - BLOCK)
                file.seek(begin)
                found = file.read(end - begin).rfind(b"\n")
                if found >= 0:
                    return begin + found + 1
                end = begin
    except OSError:
        pass
    return 0


class Numbers:
    """Numbers of lines by place, as far as the file was read: one entry a block, not one a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places = array("q", [0])
        self._lines = array("q", [0])

    @property
    def read(self) -> int:
        """Bytes that were looked at."""
        return self._places[-1]

    def extend(self, stop: Stop = never) -> None:
        """Count on to the end of the file as it is now."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.read)
                while not stop() and (block := file.read(BLOCK)):
                    self._places.append(self.read + len(block))
                    self._lines.append(self._lines[-1] + block.count(b"\n"))
        except OSError:
            return

    def number(self, place: int) -> int | None:
        """The number of the line that begins at `place`, from 1; None if that was not counted yet."""
        if place > self.read:
            return None
        at = bisect.bisect_right(self._places, place) - 1
        with self.path.open("rb") as file:
            file.seek(self._places[at])
            return self._lines[at] + file.read(place - self._places[at]).count(b"\n") + 1

    def place(self, number: int) -> int | None:
        """Where the line with this number begins; None if the file has fewer, or was not counted so far."""
        if number <= 1:
            return 0
        at = bisect.bisect_left(self._lines, number - 1) - 1
        if number - 1 > self._lines[-1]:
            return None
        with self.path.open("rb") as file:
            file.seek(self._places[at])
            data = file.read(self._places[at + 1] - self._places[at])
        found = -1
        for _ in range(number - 1 - self._lines[at]):
            found = data.find(b"\n", found + 1)
        return self._places[at] + found + 1
