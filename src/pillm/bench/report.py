"""What `bench.json` holds. Light: the report and the faces read it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from pillm.core.stage import read_report
from pillm.devices import ModelNumbers


class Host(msgspec.Struct, frozen=True):
    """The machine, as it was when the measurement began."""

    cpu: str
    cores: int
    """Cores that this process may use."""
    memory_bytes: int
    os: str
    architecture: str
    load_before: float
    """Load average of the last minute before the measurement: other work makes it slower."""
    governor: str = ""
    """CPU frequency governor; empty where the kernel tells none."""
    board: str = ""
    """The board's name from the device tree; empty on a PC."""


class Model(msgspec.Struct, frozen=True):
    """The measured file. `types` counts tensors by their type."""

    file: str
    bytes: int
    sha256: str
    name: str
    architecture: str
    parameters: int
    types: dict[str, int]
    numbers: ModelNumbers


class Speed(msgspec.Struct, frozen=True):
    """One test of llama-bench: mean and standard deviation over the repetitions, in tokens/s."""

    what: Literal["prefill", "decode"]
    tokens: int
    depth: int
    """Tokens in the context before the test begins."""
    threads: int
    mean: float
    stddev: float
    repetitions: int


class Bench(msgspec.Struct, frozen=True):
    """`bench.json`."""

    host: Host
    model: Model
    speeds: tuple[Speed, ...]
    llamacpp: str
    version: int = 1


def best(bench: Bench, what: Literal["prefill", "decode"]) -> Speed | None:
    """The fastest test of its kind at the smallest depth."""
    tests = [speed for speed in bench.speeds if speed.what == what]
    return max(tests, key=lambda speed: (-speed.depth, speed.mean), default=None)


def load(path: Path) -> Bench:
    """Read a `bench.json`. Raises UsageError if it is not one."""
    return read_report(path, Bench, "bench")
