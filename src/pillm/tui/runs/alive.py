"""Whether the process that wrote its number into a file is still the one of that number.

Asking for the engine's lock would hold it for a moment, in which a run could not start; so the number is asked.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

_SLACK_SECONDS = 5.0
"""How much later than its file a process may seem to have begun: clocks are set, and files have their own."""


def worker(file: Path) -> int | None:
    """The number in `file` if that process lives and is not a later one with the same number; else None."""
    try:
        number = int(file.read_text("ascii").strip())
        written = file.stat().st_mtime
    except (OSError, ValueError):
        return None
    with contextlib.suppress(psutil.Error, ValueError, OverflowError):
        process = psutil.Process(number)
        # A zombie has ended: only its parent has not asked yet.
        if process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written + _SLACK_SECONDS:
            return number
    return None
