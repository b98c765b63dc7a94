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
    settings: dict[str, object] = {}
    """What answers were judged by: `require`, bounds, a hash of the user's own function, `best_of`."""
    answer_reasons: dict[str, int] = {}
    """Answers (of this and earlier runs, those to prompts that got a good one later included) by fault."""
    validators: dict[str, int] = {}
    """Answers rejected by each validator; "basic" are the checks that are always made."""
    chosen: dict[str, int] = {}
    """With best_of above 1: labelled prompts by what told the kept answer from the others."""
    stored_tokens_in: int = 0
    stored_tokens_out: int = 0
    """Of all stored answers to these prompts, whichever run got them."""
    cost: float | None = None
    stored_cost: float | None = None
    """Tokens of this run, and of all stored answers, times the prices that were given; in their currency."""


def load(path: Path) -> LabelReport:
    """Read a `label.json`. Raises UsageError if it is not one."""
    return read_report(path, LabelReport, "label")
