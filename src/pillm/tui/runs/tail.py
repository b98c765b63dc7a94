"""A file that grows, read piece by piece: whole lines only, each once, none lost."""

from __future__ import annotations

import os
from pathlib import Path

PIECE = 512 * 1024
"""Bytes of one reading: some milliseconds of work, so that whoever reads can look at other things in between."""

LONGEST = 4 * 1024 * 1024
"""A line longer than this is passed on in parts: memory must not follow a file without line ends."""


class Tail:
    """Reads on where it stopped. What does not end with a newline yet waits in the file for its rest.

    A file that was replaced or cut is read from its beginning; `restarts` counts how often that happened.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        """Where the next line begins."""
        self.restarts = 0
        self._inode: int | None = None

    def read(self) -> list[bytes]:
        """The next whole lines, without their ends; empty where there are none, or no file."""
        try:
            with self.path.open("rb") as file:
                about = os.fstat(file.fileno())
                if about.st_size < self.offset or self._inode not in (None, about.st_ino):
                    self.offset, self.restarts = 0, self.restarts + 1
                self._inode = about.st_ino
                return self._lines(file.fileno(), about.st_size)
        except OSError:
            return []

    def behind(self) -> int:
        """Bytes that are in the file and were not read yet, those of a line without an end among them."""
        try:
            return max(0, self.path.stat().st_size - self.offset)
        except OSError:
            return 0

    def _lines(self, handle: int, size: int) -> list[bytes]:
        wanted = PIECE
        while True:
            data = os.pread(handle, wanted, self.offset)
            end = data.rfind(b"\n") + 1
            if end:
                self.offset += end
                return data[: end - 1].split(b"\n")
            if len(data) >= LONGEST:
                self.offset += len(data)
                return [data]
            if self.offset + len(data) >= size:
                return []  # torn: its rest is still to come
            wanted *= 2
