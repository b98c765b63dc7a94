"""A training's figures to TensorBoard or trackio, beside `training.jsonl`. Files on this machine, nothing is sent."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from pillm.core.errors import MissingError, writing
from pillm.train.options import TrainOptions

FOLDER = "track"


@contextlib.contextmanager
def opened(options: TrainOptions) -> Iterator[Callable[[Any], None]]:
    """A function that takes a `loop.Step` and logs its numbers at its step, to `options.out`/track.

    Raises MissingError, before any training, if the package is not there.
    """
    if options.track == "none":
        yield _nothing
        return
    folder = options.out / FOLDER
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if options.track == "tensorboard":
        with _tensorboard(folder) as track:
            yield track
    else:
        with _trackio(folder, options) as track:
            yield track


def _nothing(step: Any) -> None:
    """No tracker."""


def _figures(step: Any) -> tuple[int, dict[str, float]]:
    """The number of a step and its figures; what is not known at this step is left out."""
    fields: dict[str, Any] = msgspec.to_builtins(step)
    number = int(fields.pop("step"))
    return number, {name: float(value) for name, value in fields.items() if isinstance(value, int | float)}


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[Callable[[Any], None]]:
    try:
        with _quiet():
            from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingError("--track tensorboard: TensorBoard is not installed", "pip install tensorboard") from error
    with _quiet():
        writer = SummaryWriter(str(folder))

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
