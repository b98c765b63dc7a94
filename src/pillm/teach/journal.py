"""The journal of answers: append only, so that a killed run loses nothing that was answered.

One line is one JSON object, `{"sum": "<crc32 of the entry's bytes>", "entry": {...}}`. A line is
handed to the operating system in one write and synced before the answer counts as given. After a
kill or a power cut only the last line can be torn; it is cut off when the journal is opened again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from pillm.core.errors import UsageError, writing
from pillm.core.events import Emit, Log
from pillm.core.records import Message
from pillm.teach.ask import Reason

NAME = "label.journal.jsonl"


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answer. It can be used if it has no `reasons`; `lasting` ones are not asked again.

    What else is demanded of answers (`validators`) is not written here: it may change from run to run.
    """

    key: str
    attempt: int
    message: Message | None = None
    reasons: tuple[Reason, ...] = ()
    lasting: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    logprob: float | None = None
    """Mean log-probability of a token, where the teacher gave it."""
    template: str = ""
    """sha256 of the chat template that the teacher used, where it is known."""


class _Line(msgspec.Struct, frozen=True):
    sum: str
    entry: msgspec.Raw


_encoder = msgspec.json.Encoder()
_lines = msgspec.json.Decoder(_Line)
_entries = msgspec.json.Decoder(Entry)


class Journal:
    """The open journal: what was answered before, by key and in order, and a way to add to it."""

    def __init__(self, path: Path, handle: int, entries: dict[str, list[Entry]]) -> None:
        self.path = path
        self.entries = entries
        self._handle = handle

    def add(self, entries: Sequence[Entry]) -> None:
        """Append and sync. Raises ResourceError if the disk is full."""
        block = b"".join(_encode(entry) for entry in entries)
        with writing(self.path):
            while block:
                block = block[os.write(self._handle, block) :]
            os.fsync(self._handle)
        for entry in entries:
            self.entries.setdefault(entry.key, []).append(entry)


@contextlib.contextmanager
def opened(path: Path, emit: Emit) -> Iterator[Journal]:
    """Open or create the journal, alone. Raises UsageError if another run has it open."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        # The kernel gives the lock back however the process ends.
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{path}: another run is labelling into this folder",
                "wait for it, or choose another folder with --out",
            ) from None
        entries = _load(path, handle, emit)
        yield Journal(path, handle, entries)
    finally:
        os.close(handle)


def _encode(entry: Entry) -> bytes:
    data = _encoder.encode(entry)
    return _encoder.encode(_Line(f"{zlib.crc32(data):08x}", msgspec.Raw(data))) + b"\n"


def _decode(line: bytes) -> Entry | None:
    try:
        outer = _lines.decode(line)
        if f"{zlib.crc32(outer.entry):08x}" == outer.sum:
            return _entries.decode(outer.entry)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    return None


def _load(path: Path, handle: int, emit: Emit) -> dict[str, list[Entry]]:
    entries: dict[str, list[Entry]] = {}
    good, damaged = 0, 0
    with os.fdopen(os.dup(handle), "rb") as file:
        for line in file:
            entry = _decode(line) if line.endswith(b"\n") else None
            if entry:
                entries.setdefault(entry.key, []).append(entry)
            elif not line.endswith(b"\n"):
                break
            else:
                damaged += 1
            good += len(line)
    if good < os.fstat(handle).st_size:
        with writing(path):
            os.ftruncate(handle, good)
    if damaged:
        emit(Log(f"{path}: {damaged} damaged lines are left out; their prompts are asked again", "warning"))
    return entries
