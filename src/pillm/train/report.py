"""The form of train.json."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pillm.core.stage import read_report


class TrainReport(msgspec.Struct, frozen=True):
    """What was trained, and what came of it. Holds no times, so that equal runs give equal files."""

    student: str
    method: str
    chat_template: str
    records: int
    validation_records: int
    dropped_records: int
    learned_tokens: int
    """Tokens with a loss, all epochs."""
    processed_tokens: int
    """Tokens that went through the model, all epochs; shared beginnings count once a pack."""
    unpacked_tokens: int
    """What they would have been without shared beginnings."""
    steps: int
    trained_parameters: int
    parameters: int
    first_loss: float
    last_loss: float
    first_validation_loss: float | None
    last_validation_loss: float | None
    hyperparameters: list[tuple[str, str, str]]
    """Name, value, where it came from."""
    dataset_card: str | None = None
    """sha256 of the dataset's card, of which a copy stands in the model's folder."""


def load(path: Path) -> TrainReport:
    """Read a `train.json`. Raises UsageError if it is not one."""
    return read_report(path, TrainReport, "train")
