"""The form of train.json."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pillm.core.stage import read_report


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of training.jsonl. Losses in nats per learned token."""

    step: int
    loss: float
    """What was trained: cross-entropy, a divergence from the teacher, or the mix of both."""
    learning_rate: float
    tokens: int
    """Tokens processed so far, shared beginnings counted once a pack."""
    validation_loss: float | None = None
    """The same loss on the data kept aside."""
    cross_entropy: float | None = None
    """Of the labels, in distillation, where it costs nothing to know."""
    divergence: float | None = None
    """From the teacher, in distillation, times the temperature's square."""
    validation_cross_entropy: float | None = None
    on_policy: bool = False
    """The student wrote this step's answers."""


class Distillation(msgspec.Struct, frozen=True):
    """What the student was taught by, where that is more than labels."""

    loss: str
    own_loss: str | None
    """On answers that the student wrote; None if it wrote none."""
    weight: float
    """Share of the divergence in the loss; the rest is cross-entropy."""
    temperature: float
    teacher: str | None
    """A live teacher's reference."""
    teacher_identity: str | None
    """What names the teacher's weights."""
    cache: str | None
    """sha256 of the cache's manifest."""
    cache_kind: str | None
    biased: bool
    """Whether the cache lacks the tail of the distributions."""
    on_policy_steps: int
    first_validation_cross_entropy: float | None
    last_validation_cross_entropy: float | None


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
    loss: str = "cross-entropy"
    distillation: Distillation | None = None


def load(path: Path) -> TrainReport:
    """Read a `train.json`. Raises UsageError if it is not one."""
    return read_report(path, TrainReport, "train")
