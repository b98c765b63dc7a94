"""Which ids stand twice, among any number of records, in flat memory.

Entries wait in a temporary file and are sorted a part at a time: the parts are ranges of the hash, so
equal ids are always in the same one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("source", "<u4"), ("line", "<u8"), ("byte", "<u8")])
_GIVEN = np.dtype([("high", "<u8"), ("low", "<u8"), ("line", "<u8"), ("byte", "<u8")])
# About 36 MB of entries are sorted at once.
_PART = 10**6


class Place(NamedTuple):
    """Where a record stands: number of its source, offset of the line's first byte, line from 1."""

    source: int
    byte: int
    line: int


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

    def doubled(self, limit: int) -> tuple[list[tuple[Place, Place]], int]:
        """Each record whose id an earlier one has, with the first that has it, in the order of the data; and how many.

        No more than the first `limit` are given.
        """
        found: list[tuple[Place, Place]] = []
        count = 0
        for part in self._parts():
            again, first = _pairs(part)
            count += len(again)
            # Those of all parts together are cut again below.
            kept = np.lexsort((again["byte"], again["source"]))[:limit]
            found += [(_place(again[index]), _place(first[index])) for index in kept]
        return sorted(found)[:limit], count

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


def _pairs(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entries whose id stands in an earlier one, and for each the first of all with that id."""
    entries = entries[np.lexsort((entries["byte"], entries["source"], entries["low"], entries["high"]))]
    same = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
    later = np.flatnonzero(same) + 1
    # The last entry before each that does not repeat the one before it.
    starts = np.flatnonzero(np.concatenate(([True], ~same)))
    return entries[later], entries[starts[np.searchsorted(starts, later) - 1]]


def _place(entry: Any) -> Place:
    return Place(int(entry["source"]), int(entry["byte"]), int(entry["line"]))
