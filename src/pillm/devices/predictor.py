"""Will a model fit on a board, and how fast will it answer? Predicted from published rows, never measured by us.

Decoding one token reads every weight of the layers and of the output head once, and the keys and
values of the tokens before it. On both boards memory is what limits it, so

    tokens/s = effective bandwidth / (bytes of weights + bytes of keys and values)

The effective bandwidth of a board is the geometric mean of `decode_tps · read_gb` over the rows of
`published.csv` that ran with the board's thread count. `read_gb` is our own column: parameters less
an untied input embedding, times the bits of the format (Q8_0 8.5, Q5_K 5.5, Q4_0 4.5; a Q4_K_M is its
file's size; a tied embedding of a Q4_0 file is Q8_0 where rows are no multiple of 256).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from functools import cache
from importlib import resources

import msgspec

from pillm.devices.boards import Device

LABEL = "predicted, not measured"
_UBATCH = 512  # tokens that llama.cpp computes at once, its default
_F16, _F32 = 2, 4


class ModelNumbers(msgspec.Struct, frozen=True):
    """What of a GGUF file decides memory and speed.

    `weight_bytes` is all tensors; `read_bytes` what one token reads of them (without an untied input
    embedding); `kv_bytes_per_token` what one token adds to the cache (f16 keys and values, all layers).
    """

    weight_bytes: int
    read_bytes: int
    kv_bytes_per_token: int
    vocabulary: int
    width: int


class Row(msgspec.Struct, frozen=True):
    """A published measurement. `read_gb` is 10⁹ bytes a token."""

    board: str
    model: str
    quant: str
    runtime: str
    threads: int
    decode_tps: float
    read_gb: float
    source: str


class Fit(msgspec.Struct, frozen=True):
    """A board's effective bandwidth in GB/s, from `rows`.

    `errors` are leave-one-model-out: predicted / published - 1 for each row, fitted without its model.
    `spread` is the relative half-width shown with a prediction: the worst of these errors, at least
    10 %, and at least 25 % where fewer than five rows are known.
    """

    bandwidth: float
    errors: tuple[float, ...]
    spread: float
    rows: tuple[Row, ...]


class Prediction(msgspec.Struct, frozen=True):
    """For one board. Memory in bytes, speed in tokens/s; `label` must be shown with every figure."""

    device: str
    title: str
    fits: bool
    memory_bytes: int
    kv_bytes: int
    buffer_bytes: int
    free_bytes: int
    """What is left for other programs; negative where the model does not fit."""
    context: int
    decode: float
    decode_low: float
    decode_high: float
    extrapolated: bool
    """The model is smaller or larger than every published row of the board."""
    rows: int
    worst_error: float
    note: str
    label: str = LABEL


@cache
def published() -> tuple[Row, ...]:
    """All rows, with their sources."""
    text = resources.files("pillm.devices").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(
        msgspec.convert({name: line[name] for name in Row.__struct_fields__}, Row, strict=False)
        for line in csv.DictReader(text.splitlines())
    )


@cache
def fit(family: str, threads: int) -> Fit:
    """The effective bandwidth of a board family with this many threads."""
    rows = tuple(row for row in published() if row.board == family and row.threads == threads)
    errors = []
    for row in rows:
        others = [other for other in rows if other.model != row.model]
        errors.append(_bandwidth(others) / (row.decode_tps * row.read_gb) - 1)
    worst = max(abs(error) for error in errors)
    return Fit(_bandwidth(rows), tuple(errors), max(worst, 0.10 if len(rows) >= 5 else 0.25), rows)


def _bandwidth(rows: Sequence[Row]) -> float:
    return math.exp(sum(math.log(row.decode_tps * row.read_gb) for row in rows) / len(rows))


def predict(device: Device, model: ModelNumbers, context: int = 2048, depth: int = 256) -> Prediction:
    """Memory of llama-server with one slot of `context` tokens, and decode speed after `depth` tokens.

    Buffers: llama.cpp reserves 512 rows of logits and two of hidden states in f32,
    512 · 4 · (vocabulary + 2 · width) bytes (checked against its own figure for SmolLM2-135M: 98.25 MiB).
    Below the smallest published model, work that does not shrink with the weights (threads waiting
    for each other in every layer) takes a share that no row tells of: the low end is halved there.
    """
    known = fit(device.family, device.decode_threads)
    kv, buffers = model.kv_bytes_per_token * context, _UBATCH * _F32 * (model.vocabulary + 2 * model.width)
    memory = model.weight_bytes + kv + buffers
    free = device.ram_bytes - device.reserved_bytes - memory
    read = model.read_bytes + model.kv_bytes_per_token * depth
    decode = known.bandwidth * 1e9 / read
    sizes = [row.read_gb * 1e9 for row in known.rows]
    smaller, larger = read < min(sizes), read > max(sizes)
    note = ""
    if smaller:
        note = f"smaller than every published model ({min(sizes) / 1e9:.2f} GB read a token), so the low end is halved"
    elif larger:
        note = f"larger than every published model ({max(sizes) / 1e9:.2f} GB read a token)"
    return Prediction(
        device=device.name,
        title=device.title,
        fits=free >= 0,
        memory_bytes=memory,
        kv_bytes=kv,
        buffer_bytes=buffers,
        free_bytes=free,
        context=context,
        decode=decode,
        decode_low=decode * (1 - known.spread) * (0.5 if smaller else 1.0),
        decode_high=decode * (1 + known.spread),
        extrapolated=smaller or larger,
        rows=len(known.rows),
        worst_error=max(abs(error) for error in known.errors),
        note=note,
    )


def kv_bytes_per_token(layers: int, kv_heads: int, key_length: int, value_length: int) -> int:
    """Bytes that a token adds to llama.cpp's f16 cache. For a model whose layers differ, the sum of kv heads over them is layers · kv_heads."""
    return layers * kv_heads * (key_length + value_length) * _F16
