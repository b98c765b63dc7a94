"""Finished answers on disk as they come, so that a killed evaluation does not ask twice."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from pillm.evaluate.report import Said

NAME = ".answers.journal"


class _Line(msgspec.Struct):
    key: str
    said: Said


_lines = msgspec.json.Decoder(_Line)


class Journal:
    """`done` holds what earlier runs finished; `keep` adds to it and may be called from any thread."""

    def __init__(self, file: IO[bytes], done: dict[str, Said]) -> None:
        self.done = done
        self._file = file
        self._lock = threading.Lock()

    def keep(self, key: str, said: Said) -> None:
        """Append one answer. The line is with the kernel when this returns, so a kill cannot take it back."""
        with self._lock:
            self.done[key] = said
            self._file.write(msgspec.json.encode(_Line(key, said)) + b"\n")
            self._file.flush()


@contextlib.contextmanager
def journal(path: Path, settings: str) -> Iterator[Journal]:
    """The journal at `path`, if it was begun with the same `settings` (a hash); else a new one.

    A last line that a kill cut in half is dropped.
    """
    done, size = _read(path, settings.encode())
    with path.open("r+b" if size else "wb") as file:
        if size:
            file.truncate(size)
            file.seek(0, os.SEEK_END)
        else:
            file.write(settings.encode() + b"\n")
            file.flush()
        yield Journal(file, done)


def _read(path: Path, settings: bytes) -> tuple[dict[str, Said], int]:
    """Answers, and how many bytes of the file are whole lines; 0 if the journal is of something else."""
    try:
        head, *rest = path.read_bytes().splitlines(keepends=True)
    except (FileNotFoundError, ValueError):
        return {}, 0
    if head != settings + b"\n":
        return {}, 0
    done, size = {}, len(head)
    for line in rest:
        try:
            entry = _lines.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            break
        if not line.endswith(b"\n"):
            break
        done[entry.key] = entry.said
        size += len(line)
    return done, size
