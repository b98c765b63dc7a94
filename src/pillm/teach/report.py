"""What `label.json` says."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pillm.core.stage import read_report


class LabelReport(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one run. `requests`, `retries`, tokens and seconds are of this run alone.

    An answer that an earlier run got is in `reused` (and in `labelled` or `rejected`), not in these.
    """

    teacher: str
    backend: str
    sampling: dict[str, object]
    passed: int
    """Records that had an answer already."""
    prompts: int
    labelled: int
    rejected: int
    unasked: int
    """Prompts beyond `limit`."""
    reused: int
    answers: int
    """Answers that came back in this run, rejected ones included."""
    requests: int
    """Requests to the server, failed ones included; in process as many as answers."""
    retries: int
    """Requests and answers after the first of their prompt."""
    tokens_in: int
    tokens_out: int
    seconds: float
    reasons: dict[str, int]
    """Rejected prompts by the code of the last answer's first reason."""
    without_tools: int
    """Prompts whose tools the teacher could not be shown, since its chat template knows none."""


def load(path: Path) -> LabelReport:
    """Read a `label.json`. Raises UsageError if it is not one."""
    return read_report(path, LabelReport, "label")
