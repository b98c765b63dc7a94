"""Runs of the history that say something of a board: valid, not emulated, on a board of the same family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pillm.devices import Device, Measured, ModelNumbers
from pillm.history.document import Run, busy


def measured(device: Device) -> tuple[Measured, ...]:
    """What was measured on boards like `device`, from this machine's history."""
    # SQLite and the store are not needed by who plans without a history.
    from pillm.history import store

    return tuple(figures(device, store.runs()))


def figures(device: Device, runs: Iterable[Run]) -> Iterator[Measured]:
    """The figures of the runs that count: throttled, swapped, disturbed, emulated and other boards' runs are left out."""
    for run in runs:
        model = run.model
        if not run.valid or run.emulated or busy(run) or not device.is_board(run.board.model or ""):
            continue
        if not model.weight_bytes or not model.read_bytes:
            continue
        numbers = ModelNumbers(
            weight_bytes=model.weight_bytes,
            read_bytes=model.read_bytes,
            kv_bytes_per_token=model.kv_bytes_per_token or 0,
            vocabulary=model.vocabulary or 0,
            width=model.width or 0,
            types=model.types,
        )
        for speed in run.speeds:
            if speed.what == "decode":
                # The cache is predicted as f16; a smaller one is read faster, and at depth 0 next to nothing is read.
                if speed.depth and (speed.type_k, speed.type_v) != ("f16", "f16"):
                    continue
                yield Measured(
                    numbers=numbers,
                    threads=speed.threads,
                    decode_tps=speed.mean_tps,
                    decode_depth=speed.depth + speed.tokens // 2,
                )
            elif speed.depth == 0:
                yield Measured(
                    numbers=numbers,
                    threads_batch=speed.threads,
                    prefill_tps=speed.mean_tps,
                    prefill_tokens=speed.tokens,
                )
