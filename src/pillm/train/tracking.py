"""A training's figures while it runs: to `metrics.jsonl`, TensorBoard, trackio. Files on this machine, nothing is sent."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pillm.core.artifacts import write_atomic
from pillm.core.errors import MissingError, writing
from pillm.train.options import TrainOptions

FOLDER = "track"
METRICS = "metrics.jsonl"
"""The steps so far, while a training runs; `training.jsonl` takes its place when the model is published."""


@contextlib.contextmanager
def opened(options: TrainOptions, log: Sequence[Any] = ()) -> Iterator[Callable[[Any], None]]:
    """A function that takes a `report.Step` and logs its numbers at its step.

    They go to `options.out`/metrics.jsonl, which begins anew with `log`, the steps of a checkpoint that training goes
    on from; and by a tracker to `options.out`/track. Raises MissingError, before any training, if the tracker's
    package is not there, and ResourceError on a full disk.
    """
    with contextlib.ExitStack() as stack:
        folder = options.out / FOLDER
        if options.track != "none":
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        takers = [stack.enter_context(_metrics(options.out / METRICS, log))]
        if options.track == "tensorboard":
            takers.append(stack.enter_context(_tensorboard(folder, len(log) + 1)))
        elif options.track == "trackio":
            takers.append(stack.enter_context(_trackio(folder, options)))

        def track(step: Any) -> None:
            for take in takers:
                take(step)

        yield track


@contextlib.contextmanager
def _metrics(path: Path, log: Sequence[Any]) -> Iterator[Callable[[Any], None]]:
    with writing(path):
        write_atomic(path, b"".join(map(_line, log)))
        # Without a buffer, so that a line is there as soon as its step is done.
        file = path.open("ab", buffering=0)

    def track(step: Any) -> None:
        with writing(path):
            file.write(_line(step))

    with file:
        yield track


def _line(step: Any) -> bytes:
    return msgspec.json.encode(step) + b"\n"


def _figures(step: Any) -> tuple[int, dict[str, float]]:
    """The number of a step and its figures; what is not known at this step is left out."""
    fields: dict[str, Any] = msgspec.to_builtins(step)
    number = int(fields.pop("step"))
    return number, {name: float(value) for name, value in fields.items() if isinstance(value, int | float)}


@contextlib.contextmanager
def _tensorboard(folder: Path, first: int) -> Iterator[Callable[[Any], None]]:
    try:
        with _quiet():
            from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingError("--track tensorboard: TensorBoard is not installed", "pip install tensorboard") from error
    with _quiet():
        # What a run that was killed wrote after its checkpoint is no longer shown.
        writer = SummaryWriter(str(folder), purge_step=first)

    def track(step: Any) -> None:
        number, figures = _figures(step)
        for name, value in figures.items():
            writer.add_scalar(f"train/{name}", value, number)

    with writing(folder):
        try:
            yield track
        finally:
            writer.close()


@contextlib.contextmanager
def _trackio(folder: Path, options: TrainOptions) -> Iterator[Callable[[Any], None]]:
    # These say where its database lies, and also which space, server or webhook on the net it sends to: none.
    kept = {name: value for name, value in os.environ.items() if name.startswith("TRACKIO_")}
    for name in kept:
        del os.environ[name]
    os.environ["TRACKIO_DIR"] = str(folder.resolve())
    try:
        try:
            with _quiet():
                import trackio  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingError("--track trackio: trackio is not installed", "pip install trackio") from error
        with _quiet(), contextlib.redirect_stdout(None):
            run = trackio.init(
                project="pillm", name=options.out.resolve().name, embed=False, auto_log_gpu=False, auto_log_cpu=False
            )

        def track(step: Any) -> None:
            number, figures = _figures(step)
            run.log(figures, step=number)

        with writing(folder):
            try:
                yield track
            finally:
                with _quiet(), contextlib.redirect_stdout(None):
                    run.finish()
    finally:
        del os.environ["TRACKIO_DIR"]
        os.environ.update(kept)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
