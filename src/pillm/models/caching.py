"""What both caches need: one process at a time, and the disk's refusals in words that fit a cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pillm.core.errors import ResourceError, writing
from pillm.core.events import Emit, Log


@contextlib.contextmanager
def locked(path: Path, what: str, emit: Emit) -> Iterator[None]:
    """Hold the lock file `path`; if another process has it, say so and wait. A killed process lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Writable by the group, as the hub's client makes its own: a cache may be shared.
    lock = FileLock(path, mode=0o664)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        emit(Log(f"{what}: another process is fetching it; waiting"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def caching(folder: Path, variable: str) -> Iterator[None]:
    """A full or read-only disk below `folder` as a ResourceError that names the variable to move the cache with."""
    try:
        with writing(folder):
            yield
    except ResourceError as error:
        raise ResourceError(error.message, space_hint(variable)) from error


def space_hint(variable: str) -> str:
    """What to do when a cache cannot grow."""
    return f"free some space, or set {variable} to a folder on a larger disk, then run the same command again"
