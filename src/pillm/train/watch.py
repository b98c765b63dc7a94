"""When a training has come apart, though its loss is still a number."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from pillm.core.errors import PillmError
from pillm.train.report import Step

_START, _PATIENCE = 5, 20
_FACTOR, _MARGIN = 1.5, 1.0


def stop_if_apart(log: Sequence[Step]) -> None:
    """Raise PillmError if each of the last 20 losses is above 1.5 times the first five's mean plus 1 nat.

    Hard batches and the warm-up's bumps are over in a few steps; that each of twenty random batches is so much worse
    than an untrained student is not. The nat is for students that start near their teacher. Steps with the
    student's own answers are held against their like.
    """
    own = log[-1].on_policy
    losses = [step.loss for step in log if step.on_policy == own]
    if len(losses) < _START + _PATIENCE:
        return
    start = fmean(losses[:_START])
    if min(losses[-_PATIENCE:]) > _FACTOR * start + _MARGIN:
        raise PillmError(
            f"step {log[-1].step}: the loss began at {start:.2f} and was above {min(losses[-_PATIENCE:]):.2f} in each of"
            f" the last {_PATIENCE} steps: training has come apart",
            f"try a lower --learning-rate (now up to {max(step.learning_rate for step in log):.2g}),"
            " a longer --warmup, or --dtype float32",
        )
