"""Trackers: real TensorBoard events are read back; a tracker that is not installed says how to get it."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from pillm.core.errors import MissingError
from pillm.train import tracking
from pillm.train.options import TrainOptions

pytestmark = [pytest.mark.train]


class Step(msgspec.Struct, omit_defaults=True):
    step: int
    loss: float
    learning_rate: float
    validation_loss: float | None = None


def _options(tmp_path, track) -> TrainOptions:
    return TrainOptions(student="x", data=Path("x.jsonl"), out=tmp_path, track=track)


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_every_figure_at_its_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracking.opened(_options(tmp_path, "tensorboard")) as track:
        for number in range(1, 6):
            track(Step(number, 5.0 / number, 1e-3, 2.5 if number == 5 else None))
    events = EventAccumulator(str(tmp_path / "track"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/learning_rate", "train/validation_loss"}
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (n, pytest.approx(5.0 / n)) for n in range(1, 6)
    ]
    assert [(e.step, e.value) for e in events.Scalars("train/validation_loss")] == [(5, 2.5)]


@pytest.mark.parametrize(("track", "module"), [("tensorboard", "torch.utils.tensorboard"), ("trackio", "trackio")])
def test_a_tracker_that_is_not_there_says_how_to_get_it(track, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingError) as error, tracking.opened(_options(tmp_path, track)):
        pass
    assert error.value.hint == f"pip install {track}"


@pytest.mark.filterwarnings("ignore")
def test_steps_that_are_done_again_are_not_shown_twice(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = [Step(number, float(number), 1e-3) for number in range(1, 6)]
    with tracking.opened(_options(tmp_path, "tensorboard")) as track:
        for step in steps[:4]:
            track(step)
    # The checkpoint is of step 2.
    with tracking.opened(_options(tmp_path, "tensorboard"), steps[:2]) as track:
        for step in steps[2:]:
            track(step)
    events = EventAccumulator(str(tmp_path / "track"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]


def test_without_a_tracker_each_step_is_on_disk_at_once(tmp_path):
    steps = [Step(number, 1.0 / number, 1e-3) for number in range(1, 5)]
    file = tmp_path / "metrics.jsonl"

    def there() -> list[Step]:
        return [msgspec.json.decode(line, type=Step) for line in file.read_bytes().splitlines()]

    with tracking.opened(_options(tmp_path, "none")) as track:
        for number, step in enumerate(steps, 1):
            track(step)
            assert there() == steps[:number]
    with tracking.opened(_options(tmp_path, "none"), steps[:2]):
        assert there() == steps[:2]
    assert list(tmp_path.iterdir()) == [file]
