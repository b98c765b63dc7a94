"""What `pi_bench` says of a run, as typed data: the one form of every measurement.

`pi_bench.py` writes this document, on a board or here; the store keeps it, the detector and the predictor
read it. Its JSON Schema is `pillm/bench/pi_bench.schema.json`. A figure that could not be had is null, and `absent`
tells why under its path (`"board.revision": "/proc/device-tree does not exist"`). Version 1 only grows: a
reader takes fields that it does not know for nothing.

Units are in the names: `_bytes`, `_ms`, `_s`, `_mhz`, `_c` (degrees Celsius), `_w`, `_tps` (tokens/s).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from pillm.core.stage import read_report

VERSION = 1
_BUSY = "other programs used"
"""How pi_bench's warnings about a busy machine begin."""


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """The machine: what does not change while it runs."""

    model: str | None = None
    """The device tree's name, as `Raspberry Pi 5 Model B Rev 1.0`; null on a PC."""
    revision: str | None = None
    """The revision code of a Pi, as in `c04170`."""
    cpu: str | None = None
    """The core's name, as `Cortex-A76` or a PC's model name."""
    cores: int | None = None
    """Cores that a process may use."""
    features: tuple[str, ...] = ()
    """What the core can do that llama.cpp asks for: `asimddp`, `fphp`, `avx2`, ..."""
    ram_bytes: int | None = None
    architecture: str
    kernel: str
    os: str | None = None
    """`PRETTY_NAME` of /etc/os-release."""
    governor: str | None = None
    max_mhz: float | None = None


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The machine at one moment."""

    at_s: float
    """Seconds since the run began."""
    temperature_c: float | None = None
    clock_mhz: float | None = None
    load: float | None = None
    """Load average of the last minute."""
    free_bytes: int | None = None
    """Memory that can be had without swapping (MemAvailable)."""
    swap_used_bytes: int | None = None
    swapped_pages: int | None = None
    """Pages swapped in and out since boot (pswpin + pswpout of /proc/vmstat)."""
    zram_bytes: int | None = None
    throttled: int | None = None
    """The number that `vcgencmd get_throttled` gives."""
    power_w: float | None = None
    """What the board takes, where its PMIC tells (Pi 5)."""


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """What answered: llama.cpp's tools, or an ollama endpoint."""

    kind: Literal["llama.cpp", "ollama"]
    version: str | None = None
    commit: str | None = None
    build: int | None = None
    cpu_variant: str | None = None
    """The backend that was loaded, as `armv8.2_2`; null where it is built in."""
    path: str | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The measured file. `types` are bytes of tensors by their type."""

    file: str
    bytes: int | None = None
    sha256: str | None = None
    name: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    types: dict[str, int] = {}
    weight_bytes: int | None = None
    read_bytes: int | None = None
    """Bytes that decoding a token reads (without an input embedding that is not the output head, and unused experts)."""
    kv_bytes_per_token: int | None = None
    """Bytes that a token adds to a cache of f16 keys and values."""
    vocabulary: int | None = None
    width: int | None = None


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """One test of llama-bench: prefill of `tokens`, or decoding of `tokens` one by one, after `depth` tokens."""

    what: Literal["prefill", "decode"]
    tokens: int
    depth: int
    threads: int
    mean_tps: float
    stddev_tps: float
    samples_tps: tuple[float, ...]
    type_k: str = "f16"
    """Type of the cached keys."""
    type_v: str = "f16"


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Quantiles over `count` samples, in milliseconds."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """What a client of the server sees for one split of threads (`-t` decode, `-tb` prefill)."""

    threads: int
    threads_batch: int
    prompt_tokens: int
    answer_tokens: int
    first_token: Quantiles
    """From the request to the first token."""
    inter_token: Quantiles
    prefill_tps: float | None = None
    decode_tps: float | None = None


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from the server's start to its first good health check."""

    cold_s: float | None = None
    """With the file dropped from the page cache before."""
    warm_s: float | None = None


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Peak resident memory of the server over the run, with a context of `context` tokens."""

    peak_bytes: int | None = None
    context: int
    type_k: str = "f16"
    type_v: str = "f16"


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """Texts of `tokens` tokens embedded a second."""

    per_second: float
    tokens: int
    count: int


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that the user set, and what was measured; `passed` is null where the figure could not be had."""

    name: Literal["min-tps", "max-rss", "max-ttft-ms"]
    limit: float
    measured: float | None = None
    passed: bool | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """The whole document."""

    version: int = VERSION
    id: str
    """A UUID: a document that is imported twice is kept once."""
    started: str
    """RFC 3339 in UTC, as `2026-11-22T19:05:00Z`."""
    seconds: float
    tool: str
    """What measured, as `pi_bench 1.0.0`."""
    valid: bool
    invalid: tuple[str, ...] = ()
    """Why the figures do not count: throttled, swapped, under-voltage, ..."""
    warnings: tuple[str, ...] = ()
    board: Board
    before: State
    during: tuple[State, ...] = ()
    after: State | None = None
    throttling: tuple[str, ...] = ()
    """The bits of `get_throttled` in words, as seen at any moment of the run."""
    runtime: Runtime
    model: Model
    speeds: tuple[Speed, ...] = ()
    latency: tuple[Latency, ...] = ()
    load: Load | None = None
    memory: Memory | None = None
    embeddings: Embeddings | None = None
    gates: tuple[Gate, ...] = ()
    absent: dict[str, str] = {}
    emulated: str | None = None
    """What emulates the processor, where that could be told: no figure of time says anything then."""


def best(run: Run, what: Literal["prefill", "decode"]) -> Speed | None:
    """The fastest test of its kind at the smallest depth."""
    tests = [speed for speed in run.speeds if speed.what == what]
    return max(tests, key=lambda speed: (-speed.depth, speed.mean_tps), default=None)


def busy(run: Run) -> str:
    """What the run says of other programs at work, before or during it; empty where it had the machine to itself."""
    return next((warning for warning in run.warnings if warning.startswith(_BUSY)), "")


def load(path: Path) -> Run:
    """Read a document. Raises UsageError if it is not one."""
    return read_report(path, Run, "bench")
