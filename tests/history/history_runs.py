"""Documents for tests: as `pi_bench` writes them, with made-up figures."""

from __future__ import annotations

import datetime
from typing import Any

from pillm.history.document import Board, Model, Run, Runtime, Speed, State

START = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)


def moment(hours: float) -> str:
    return (START + datetime.timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")


def made(
    number: int = 0, *, hours: float | None = None, decode: float = 20.0, prefill: float = 90.0, **fields: Any
) -> Run:
    """A run; `board`, `model`, `build` are names, every other field is that of a Run."""
    board = fields.pop("board", "Raspberry Pi 5 Model B Rev 1.0")
    file = fields.pop("model", "SmolLM2-135M-Instruct.Q4_K_M.gguf")
    build = fields.pop("build", "aaaaaaa")
    threads = fields.pop("threads", 4)
    values: dict[str, Any] = {
        "id": f"00000000-0000-4000-8000-{number:012d}",
        "started": moment(number if hours is None else hours),
        "seconds": 60.0,
        "tool": "pi_bench 1.0.0",
        "valid": True,
        "board": Board(
            model=board, cpu="Cortex-A76", cores=4, ram_bytes=8 * 2**30, architecture="aarch64", kernel="6.12",
            governor="ondemand", max_mhz=2400.0,
        ),
        "before": State(at_s=0.0, temperature_c=45.0, throttled=0, swap_used_bytes=0),
        "after": State(at_s=60.0, temperature_c=60.0, throttled=0, swap_used_bytes=0),
        "runtime": Runtime(kind="llama.cpp", version="0.3.36", commit=build),
        "model": Model(
            file=file, bytes=105_000_000, sha256="ab" * 32, name=file.partition(".")[0], architecture="llama",
            parameters=134_515_008, types={"Q4_K": 60_000_000, "Q6_K": 40_000_000, "F32": 100_000},
            weight_bytes=100_100_000, read_bytes=100_000_000,
        ),
        "speeds": (
            Speed(what="prefill", tokens=256, depth=0, threads=threads, mean_tps=prefill, stddev_tps=1.0, samples_tps=(prefill,)),
            Speed(what="decode", tokens=64, depth=0, threads=threads, mean_tps=decode, stddev_tps=0.2, samples_tps=(decode,)),
        ),
    }  # fmt: skip
    return Run(**{**values, **fields})
