"""Which ids stand twice, among any number of records, in flat memory.

Entries wait in a temporary file and are sorted a part at a time: the parts are ranges of the hash, so
equal ids are always in the same one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("source", "<u4"), ("line", "<u8"), ("byte", "<u8")])
_GIVEN = np.dtype([("high", "<u8"), ("low", "<u8"), ("line", "<u8"), ("byte", "<u8")])
# About 36 MB of entries are sorted at once.
_PART = 10**6


class Place(NamedTuple):
    """Where a record stands: number of its source, line from 1, offset of the line's first byte."""

    source: int
    line: int
    byte: int


class Ids:
    """Hashes of ids with their places; a context, since it holds a file."""

    def __init__(self, part: int = _PART) -> None:
        self._file = tempfile.TemporaryFile(prefix="pillm-ids-")  # noqa: SIM115
        self._count, self._part = 0, part

    def __enter__(self) -> Ids:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, source: int, lines_before: int, entries: bytes) -> None:
        """Entries of 16 bytes hash, 8 bytes line and 8 bytes offset, little endian."""
        given = np.frombuffer(entries, _GIVEN)
        kept = np.empty(len(given), _ENTRY)
        for field in ("high", "low", "byte"):
            kept[field] = given[field]
        kept["line"] = given["line"] + np.uint64(lines_before)
        kept["source"] = source
        self._file.write(kept.tobytes())
        self._count += len(given)

    def doubled(self) -> Iterator[tuple[Place, Place]]:
        """Each record whose id an earlier one has, with the first that has it; in the order of the data."""
        found = [pair for part in self._parts() for pair in _pairs(part)]
        yield from sorted(found, key=lambda pair: (pair[0].source, pair[0].byte))

    def _parts(self) -> Iterator[np.ndarray]:
        parts = -(-self._count // self._part)
        width = 2**64 // max(1, parts) + 1
        for index in range(parts):
            low, high = np.uint64(index * width), np.uint64(min((index + 1) * width, 2**64 - 1))
            self._file.seek(0)
            kept = []
            while data := self._file.read(_ENTRY.itemsize * self._part):
                entries = np.frombuffer(data, _ENTRY)
                last = index == parts - 1
                inside = (entries["high"] >= low) & ((entries["high"] < high) | last)
                kept.append(entries[inside])
            yield np.concatenate(kept)


def _pairs(entries: np.ndarray) -> Iterator[tuple[Place, Place]]:
    entries = entries[np.lexsort((entries["byte"], entries["source"], entries["low"], entries["high"]))]
    same = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
    first = None
    for index in np.flatnonzero(same):
        if first is None or index == 0 or not same[index - 1]:
            first = index
        yield _place(entries[index + 1]), _place(entries[first])


def _place(entry: np.void) -> Place:
    return Place(int(entry["source"]), int(entry["line"]), int(entry["byte"]))
