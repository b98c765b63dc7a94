"""Will a model fit on a board, and how fast will it answer? Predicted from published rows, or from the board's own runs.

`memory` says what llama-server takes, `speed` how fast it is and how that was fitted.

Runs that were measured on a board of the same family move the figures: each model that was run gives the ratio of
its measured to its predicted speed, the published rows count as one more model whose ratio is 1, and the prediction is
multiplied by their geometric mean. Prefill is moved by runs of the planned model alone: what a prompt's token
multiplies needs every tensor (which type the head has, how many heads share a key), and a run tells sums of another
model's. The interval shrinks from that of the published rows towards what the runs differ
by among themselves, and is never below 5 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

from pillm.devices.boards import Device
from pillm.devices.formats import KvType
from pillm.devices.memory import Memory, memory, rough_memory
from pillm.devices.model import Model, Work, rough_work
from pillm.devices.published import rows
from pillm.devices.repack import repacks
from pillm.devices.speed import (
    PROMPT,
    Fit,
    Speed,
    decode_seconds,
    fit,
    kv_bits,
    left_out,
    prefill_seconds,
    spreads,
    unfitted,
)

LABEL = "predicted, not measured"
UBATCH = 512
"""Tokens that llama.cpp computes at once, its default."""

_LEAST_SPREAD = 0.05
_Key = tuple[int, int]


class ModelNumbers(msgspec.Struct, frozen=True):
    """What of a model decides memory and speed, where its tensors are not at hand.

    `weight_bytes` is all tensors; `read_bytes` what one token reads of them (without an untied input
    embedding); `kv_bytes_per_token` what one token adds to the cache (f16 keys and values, all layers);
    `types` bytes of tensors by type, as far as known.
    """

    weight_bytes: int
    read_bytes: int
    kv_bytes_per_token: int
    vocabulary: int
    width: int
    types: dict[str, int] = {}


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A run on a board: the model's numbers, and tokens/s with the threads they were measured with."""

    numbers: ModelNumbers
    threads: int | None = None
    decode_tps: float | None = None
    decode_depth: int = 0
    threads_batch: int | None = None
    prefill_tps: float | None = None
    prefill_tokens: int = PROMPT
    """Length of the prompt: a short one has less attention to compute."""


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """For one board. Memory in bytes, speed in tokens/s; `label` must be shown with every figure."""

    device: str
    family: str
    title: str
    fits: bool
    memory_bytes: int
    """The server's peak resident memory."""
    needed_bytes: int
    """What of it the system cannot take back: pages of the file that were copied in another form are left out."""
    weight_bytes: int
    kv_bytes: int
    buffer_bytes: int
    free_bytes: int
    """What is left for other programs; negative where the model does not fit."""
    context: int
    threads: int
    threads_batch: int
    ubatch: int
    kv_type: str
    decode: float
    decode_low: float
    decode_high: float
    prefill: float
    prefill_low: float
    prefill_high: float
    extrapolated: bool
    """The model is smaller or larger than every published model on the processor, or none was published."""
    rows: int
    """Published decode rows of the processor that the figures rest on."""
    worst_error: float
    runs: int
    note: str
    label: str = LABEL
    memory: Memory


def predict(
    device: Device,
    model: Model | ModelNumbers,
    context: int = 2048,
    depth: int = 256,
    *,
    threads: int | None = None,
    threads_batch: int | None = None,
    ubatch: int = UBATCH,
    kv_type: KvType = "f16",
    slots: int = 1,
    measured: Sequence[Measured] = (),
) -> Prediction:
    """Memory of llama-server with `slots` of `context` tokens each, decode speed after `depth` tokens, prefill of 512.

    Threads are the processor's best for decoding where they are not given, and all cores for prefill. `measured` are runs on boards of the same family.
    """
    soc, known = device.soc, fit(device.soc_name) if device.soc_name else unfitted(device.soc)
    work = model.work if isinstance(model, Model) else _rough(model)
    threads = min(threads, soc.cores) if threads else soc.decode_threads
    batch_threads = min(threads_batch, soc.cores) if threads_batch else soc.cores
    if isinstance(model, Model):
        taken = memory(model, soc.features, context, kv_type=kv_type, ubatch=ubatch, slots=slots, threads=batch_threads)
    else:
        taken = rough_memory(
            model.weight_bytes, model.types, model.kv_bytes_per_token, model.vocabulary, model.width, soc.features,
            context, kv_type=kv_type, ubatch=ubatch, slots=slots,
        )  # fmt: skip
    decode_spread, prefill_spread = spreads(device.soc_name, soc)
    note, extrapolated = _beyond(device, work)
    decode_ratios = _decode_ratios(device, known, model, work, measured)
    prefill_ratios = _prefill_ratios(device, known, model, work, measured)
    decode = _speed(
        1 / decode_seconds(soc, known, work, threads, depth=depth, kv_bits=kv_bits(kv_type)),
        decode_spread,
        list(decode_ratios.values()),
        halved=note.startswith("smaller"),
    )
    prefill = _speed(
        1 / prefill_seconds(soc, known, work, batch_threads, prompt=min(PROMPT, context or PROMPT)),
        prefill_spread if _has_rows(device, work) else max(prefill_spread, soc.spread),
        list(prefill_ratios.values()),
        halved=False,
    )
    free = device.room_bytes - taken.needed_bytes
    errors = [e for e in left_out(device.soc_name) if not e.row.unexplained] if device.soc_name else []
    runs = len(decode_ratios.keys() | prefill_ratios.keys())
    return Prediction(
        device=device.name,
        family=device.family,
        title=device.title,
        fits=free >= 0,
        memory_bytes=taken.peak_bytes,
        needed_bytes=taken.needed_bytes,
        weight_bytes=taken.weight_bytes,
        kv_bytes=taken.kv_bytes,
        buffer_bytes=taken.compute_bytes,
        free_bytes=free,
        context=context,
        threads=threads,
        threads_batch=batch_threads,
        ubatch=ubatch,
        kv_type=kv_type,
        decode=decode.tps,
        decode_low=decode.low,
        decode_high=decode.high,
        prefill=prefill.tps,
        prefill_low=prefill.low,
        prefill_high=prefill.high,
        extrapolated=extrapolated,
        rows=known.decode_rows,
        worst_error=max((abs(error.decode_error) for error in errors), default=decode_spread),
        runs=runs,
        note=note,
        label=f"predicted, from {runs} {'model' if runs == 1 else 'models'} measured on this board" if runs else LABEL,
        memory=taken,
    )


def _speed(tps: float, spread: float, ratios: Sequence[float], *, halved: bool) -> Speed:
    """Published rows alone, or moved towards the ratios that were measured."""
    if not ratios:
        return Speed(tps, tps / (1 + spread) * (0.5 if halved else 1.0), tps * (1 + spread))
    logs = [math.log(ratio) for ratio in ratios]
    tps *= math.exp(sum(logs) / (len(logs) + 1)) if len(logs) < 3 else math.exp(statistics.mean(logs))
    among = statistics.pstdev(logs) if len(logs) > 1 else spread / 2
    spread = max(_LEAST_SPREAD, (spread + len(logs) * among) / (len(logs) + 1))
    return Speed(tps, tps / (1 + spread), tps * (1 + spread))


def _decode_ratios(
    device: Device, known: Fit, model: Model | ModelNumbers, work: Work, measured: Sequence[Measured]
) -> dict[_Key, float]:
    """Measured over predicted speed by model (the geometric mean of its runs)."""
    logs: dict[_Key, list[float]] = {}
    for run in measured:
        if run.decode_tps and run.threads:
            its = work if _same(run.numbers, model, work) else _rough(run.numbers)
            threads = min(run.threads, device.cores)
            seconds = decode_seconds(device.soc, known, its, threads, depth=run.decode_depth)
            logs.setdefault(_key(run), []).append(math.log(run.decode_tps * seconds))
    return {key: math.exp(statistics.mean(found)) for key, found in logs.items()}


def _prefill_ratios(
    device: Device, known: Fit, model: Model | ModelNumbers, work: Work, measured: Sequence[Measured]
) -> dict[_Key, float]:
    """The same for prefill. Other models' runs are left out: their sums are up to 40 % off what their tensors give."""
    logs: dict[_Key, list[float]] = {}
    for run in measured:
        count = run.threads_batch or run.threads
        if run.prefill_tps and count and _same(run.numbers, model, work):
            threads = min(count, device.cores)
            seconds = prefill_seconds(device.soc, known, work, threads, prompt=run.prefill_tokens)
            logs.setdefault(_key(run), []).append(math.log(run.prefill_tps * seconds))
    return {key: math.exp(statistics.mean(found)) for key, found in logs.items()}


def _key(run: Measured) -> _Key:
    """What a model reads and what it weighs tell models apart."""
    return run.numbers.read_bytes, run.numbers.weight_bytes


def _same(numbers: ModelNumbers, model: Model | ModelNumbers, work: Work) -> bool:
    """Whether a run was of the planned model. A share of experts may be rounded either way."""
    return numbers.weight_bytes == model.weight_bytes and abs(numbers.read_bytes - work.read_bytes) <= 1


def _rough(numbers: ModelNumbers) -> Work:
    return rough_work(numbers.read_bytes, numbers.kv_bytes_per_token, numbers.types, numbers.vocabulary, numbers.width)


def _has_rows(device: Device, work: Work) -> bool:
    """Whether a published row tells of the kind of kernels that most of the weights are prefilled with."""
    if not work.prefill_weights:
        return False
    kind = max(work.prefill_weights.items(), key=lambda item: item[1])[0]
    known = fit(device.soc_name).prefill if device.soc_name else {}
    if repacks(kind, device.soc.features):
        return f"repacked {kind}" in known
    return fit(device.soc_name).prefill_rows > 0 if device.soc_name else False


def _beyond(device: Device, work: Work) -> tuple[str, bool]:
    """Whether a model's size is outside the published ones, in words."""
    sizes = [row.work.read_bytes for row in rows() if row.soc == device.soc_name]
    if not sizes:
        return "no model's speed was ever published for this processor, so the interval is wide", True
    if work.read_bytes < min(sizes):
        least = min(sizes) / 1e9
        return f"smaller than every published model ({least:.2f} GB read a token), so the low end is halved", True
    if work.read_bytes > max(sizes):
        return f"larger than every published model ({max(sizes) / 1e9:.2f} GB read a token)", True
    return "", False
