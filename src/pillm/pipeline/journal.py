"""`events.jsonl` of a run: every event with its time and stage, one JSON object a line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Self

import msgspec

from pillm.core.events import Event, Progress
from pillm.models.redact import redact
from pillm.pipeline.manifest import now

NAME = "events.jsonl"
_PROGRESS_EVERY = 1.0


class Journal:
    """Appends events to a run's journal; progress at most once a second for each label.

    A line is an event as `core.events.decode` reads it, with `at` (UTC) and `stage` besides. Lines are
    whole or missing: each goes out in one write. Secrets are left out as in everything that is shown.
    """

    def __init__(self, run_dir: Path) -> None:
        self.stage = ""
        self._file = (run_dir / NAME).open("ab", buffering=0)
        self._told: dict[str, float] = {}

    def add(self, event: Event) -> None:
        """Write one event down."""
        if isinstance(event, Progress):
            if time.monotonic() - self._told.get(event.label, -_PROGRESS_EVERY) < _PROGRESS_EVERY:
                return
            self._told[event.label] = time.monotonic()
        line = msgspec.json.encode({"at": now(), "stage": self.stage, **msgspec.to_builtins(event)})
        self._file.write(redact(line.decode()).encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
