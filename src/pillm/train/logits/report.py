"""The form of logits.json."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pillm.core.stage import read_report


class LogitsReport(msgspec.Struct, frozen=True):
    """What was cached. Holds no times, so that equal runs give equal files."""

    teacher: str
    """What names its weights, as in the manifest."""
    kind: str
    biased: bool
    chat_template: str
    top: int
    samples: int
    temperature: float
    records: int
    dropped_records: int
    dialogues: int
    """Different ones."""
    learned_tokens: int
    processed_tokens: int
    """Tokens that go through the teacher; shared beginnings count once a pass."""
    shards: int
    bytes: int
    """Of all files of the cache."""
    bytes_per_token: float
    """Of all files, per learned token."""
    entries_per_token: float
    """Exact probabilities and samples."""
    mean_tail_mass: float
    """Mass that is not kept exactly."""
    mean_entropy: float | None
    """In nats; not known from a server, which gives only the top."""
    arithmetic: str
    manifest: str
    """sha256 of the cache's manifest."""


def load(path: Path) -> LogitsReport:
    """Read a `logits.json`. Raises UsageError if it is not one."""
    return read_report(path, LogitsReport, "logits")
