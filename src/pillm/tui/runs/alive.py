"""Whether the process that wrote its number into a file still runs: a number alone may be another's by now.

What was started from here leaves its moment of start beside its number. The engine's lock is held by the kernel for
as long as a run is at work; its number counts while somebody holds it, and only for a Python that is older than it.
"""

from __future__ import annotations

import fcntl
from pathlib import Path

import psutil

_SLACK_SECONDS = 5.0
"""How much later than its file a process may seem to have begun: clocks are set, and files have their own."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def mark(number: int) -> str:
    """What to write into a file of a process: its number, and when it began."""
    return f"{number}\n{_began(number)}\n"


def worker(file: Path) -> int | None:
    """The number in a file made by `mark` if that very process lives; else None, also where that is in doubt."""
    try:
        number, began, *_ = file.read_text("utf-8").split()
        same = bool(began) and _began(int(number)) == began
    except (OSError, ValueError):
        return None
    return int(number) if same and _lives(int(number)) else None


def held(lock: Path) -> bool:
    """Whether a process holds the engine's lock now.

    Asking holds it, too, for a moment, so an empty lock is not asked for; and shared, so that two who ask at the same
    time do not take each other for a run.
    """
    try:
        with lock.open("rb") as file:
            if not file.read(1):
                return False  # nobody has it, or its holder is about to write
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(file, fcntl.LOCK_UN)
    except OSError:
        pass
    return False


def holder(lock: Path) -> int | None:
    """The number of the process that holds the engine's lock; None if nobody does, or if it may be another's."""
    try:
        number = int(lock.read_text("ascii").strip())
        written = lock.stat().st_mtime
    except (OSError, ValueError):
        return None
    return number if _lives(number) and _is_python(number, written) and held(lock) else None


def _is_python(number: int, before: float) -> bool:
    try:
        process = psutil.Process(number)
        names = [Path(word).name for word in process.cmdline()[:2]]
        return process.create_time() <= before + _SLACK_SECONDS and any(
            name.startswith(("python", "pypy", "pillm")) for name in names
        )
    except (psutil.Error, ValueError, OverflowError):
        return False


def _lives(number: int) -> bool:
    try:
        # A zombie has ended: only its parent has not asked yet.
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError, OverflowError):
        return False


def _began(number: int) -> str:
    """When a process began, as one word that no other process of its number has; empty if there is none."""
    try:
        # On Linux exactly, in ticks since the boot. The name before it may hold blanks and brackets.
        ticks = Path(f"/proc/{number}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
        return f"{_BOOT.read_text('ascii').strip()}/{ticks}"
    except (OSError, IndexError):
        pass
    try:
        return f"{psutil.Process(number).create_time():.3f}"
    except (psutil.Error, ValueError, OverflowError):
        return ""
