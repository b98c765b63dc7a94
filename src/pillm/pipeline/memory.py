"""The largest resident memory of a process and its children, by looking twice a second."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Self

import psutil

_EVERY_SECONDS = 0.5


class PeakMemory:
    """Watches a process tree while the block runs; `bytes` is the largest that was seen.

    It is the larger of two figures: the resident memory of all processes together at any look, and the
    kernel's own high-water mark of any one of them (Linux). Pages that processes share count in each.
    A peak of several processes that comes and goes between two looks is missed.
    """

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        wait = 0.02
        while not self._done.wait(wait):
            # A process that ends while it is looked at is nothing to tell of.
            with contextlib.suppress(psutil.Error, OSError):
                self._look()
            wait = min(_EVERY_SECONDS, wait * 2)

    def _look(self) -> None:
        root = psutil.Process(self._pid)
        together = 0
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                together += process.memory_info().rss
                self.bytes = max(self.bytes, _high_water(process.pid))
        self.bytes = max(self.bytes, together)


def _high_water(pid: int) -> int:
    """Largest resident memory of one process so far in bytes; 0 where the kernel does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
