"""How fast a processor decodes and prefills: a physical model with few constants, and their fit to published rows.

Decoding a token reads every weight once and multiplies it once:

    reading     = (weights + keys and values at the depth) / bandwidth(threads)
    multiplying = sum over formats of weights / (threads * weights that one core multiplies a second)
    time        = (longer + (1 - overlap) * shorter) / decode factor

Bandwidth and multiplications are constants of the processor (`socs.yaml`). The decode factor is fitted, and overlap
is 0 or 1, whichever comes closer to the rows.

A prompt's tokens share the reading, so only multiplying counts, and the head is needed once:

    time = (sum over formats of weights / (rate(format) * core's share * threads)
            + attention / (rate of floats * core's share * threads))
    core's share = 1 - thread loss * (threads - 1)

The rate of a format is the core's own (without repacking) times a fitted factor: one for everything that is not
repacked, one for each repacked format that somebody published, else that of its kin (blocks of 32 or 256), else
the processor's `repack_factor`. Thread loss is fitted to series that differ in threads alone.

A factor is published over computed: the median over boards of the geometric mean of a board's rows, since boards
differ by their memory's settings and firmware more than rows of one board do. For decoding the constants themselves
count as one more board that says 1. Rows of runtimes with other kernels are left out. Where a processor has prefill
rows, the scale of its `dot_gweights` is fitted away: only their proportions count.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache

import msgspec

from pillm.devices.boards import Soc, socs
from pillm.devices.formats import BLOCKS, bits
from pillm.devices.model import Work
from pillm.devices.published import Row, rows
from pillm.devices.repack import repacks

PROMPT = 512
"""Tokens of the prompt that prefill figures are for, as in llama-bench's pp512."""

_LOSSES = [step / 400 for step in range(0, 80)]


class Fit(msgspec.Struct, frozen=True):
    """What published rows say of a processor; without rows, its own constants."""

    decode: float
    prefill: dict[str, float]
    """Factors by class: `plain`, `repacked Q4_0`, ..."""
    thread_loss: float
    overlap: float
    decode_rows: int = 0
    prefill_rows: int = 0


class Speed(msgspec.Struct, frozen=True):
    """Tokens/s with its interval. `errors` are how far leave-one-out predictions were off, relative."""

    tps: float
    low: float
    high: float


def decode_seconds(
    soc: Soc, fit: Fit, work: Work, threads: int, *, depth: int = 0, kv_bits: float = 16.0, repack: bool = True
) -> float:
    """Seconds to decode a token after `depth` tokens."""
    context = work.kv_elements * depth + work.sliding_elements * min(depth, work.sliding_window or depth)
    reading = (work.read_bytes + context * kv_bits / 8) / soc.bandwidth(threads)
    plain = fit.prefill.get("plain", 1.0)
    multiplying = sum(
        weights / (soc.dot(kind) * plain * (soc.repack_factor if repack and repacks(kind, soc.features) else 1.0))
        for kind, weights in work.decode_weights.items()
    )
    multiplying = (multiplying + context / (soc.dot("F16") * plain)) / threads
    longer, shorter = max(reading, multiplying), min(reading, multiplying)
    return (longer + (1 - fit.overlap) * shorter) / fit.decode


def prefill_seconds(
    soc: Soc, fit: Fit, work: Work, threads: int, *, prompt: int = PROMPT, depth: int = 0, repack: bool = True
) -> float:
    """Seconds for a token of a prompt of `prompt` tokens that follows `depth` others, on the mean."""
    multiplying = sum(
        weights / (soc.dot(kind) * prefill_factor(soc, fit, kind, repack))
        for kind, weights in work.prefill_weights.items()
    )
    return (multiplying + _attention(soc, fit, work, prompt, depth)) / (threads * _share(fit, threads))


def _attention(soc: Soc, fit: Fit, work: Work, prompt: int, depth: int) -> float:
    """Seconds of one core for a prompt's token to look at those before it, on the mean."""
    before = depth + prompt / 2
    products = work.attention * before + work.sliding_attention * min(before, work.sliding_window or before)
    return products / (soc.dot("F16") * fit.prefill.get("plain", 1.0))


def _share(fit: Fit, threads: int) -> float:
    return max(0.1, 1 - fit.thread_loss * (threads - 1))


def prefill_factor(soc: Soc, fit: Fit, kind: str, repack: bool) -> float:
    """How many times faster than the core's plain rate a format is prefilled with."""
    plain = fit.prefill.get("plain", 1.0)
    if not (repack and repacks(kind, soc.features)):
        return plain
    return fit.prefill.get(f"repacked {kind}") or fit.prefill.get(_kin(kind)) or soc.repack_factor * plain


def _kin(kind: str) -> str:
    return f"repacked blocks of {BLOCKS[kind][0]}"


def unfitted(soc: Soc) -> Fit:
    """A processor's own constants, where no row is known."""
    return Fit(1.0, {}, soc.thread_loss, soc.overlap)


@cache
def fit(soc: str, left_out: tuple[Row, ...] = ()) -> Fit:
    """The fit to a processor's published rows without those in `left_out`; its constants alone if none is left."""
    constants = socs()[soc]
    known = [row for row in rows() if row.soc == soc and not row.unexplained and row not in left_out]
    filled = [row for row in known if row.prefill_tps]
    bare = msgspec.structs.replace(unfitted(constants), thread_loss=_thread_loss(constants, filled))
    # Plain formats first: how fast attention is computed follows from them.
    factors: dict[str, float] = {}
    for plain in (True, False):
        ratios: dict[str, list[tuple[str, float]]] = {}
        for row in filled:
            for name in _classes(constants, row):
                if (name == "plain") == plain:
                    ratios.setdefault(name, []).append((row.setup, _prefill_ratio(constants, bare, row)))
        factors |= {name: _factor(found) for name, found in ratios.items()}
        bare = msgspec.structs.replace(bare, prefill=factors)
    decode, overlap = _decode_fit(constants, bare, known)
    return Fit(decode, factors, bare.thread_loss, overlap, len(known), len(filled))


def _decode_fit(soc: Soc, bare: Fit, known: Sequence[Row]) -> tuple[float, float]:
    """Decode factor and overlap with which rows and constants are closest to what is computed."""
    tried = []
    for overlap in (0.0, 1.0) if known else (soc.overlap,):
        taken = msgspec.structs.replace(bare, overlap=overlap)
        ratios = [("constants", 1.0)]
        for row in known:
            seconds = decode_seconds(soc, taken, row.work, row.threads, repack=row.repack)
            ratios.append((row.setup, row.decode_tps * seconds))
        factor = _factor(ratios)
        tried.append((sum(math.log(ratio / factor) ** 2 for _, ratio in ratios), factor, overlap))
    _, factor, overlap = min(tried)
    return factor, overlap


def _prefill_ratio(soc: Soc, bare: Fit, row: Row) -> float:
    """How many times faster than the core's plain rate the row's matrices were multiplied, attention taken off."""
    matrices = sum(weights / soc.dot(kind) for kind, weights in row.work.prefill_weights.items())
    taken = row.threads * _share(bare, row.threads) / (row.prefill_tps or 1)
    if "plain" in bare.prefill:
        return matrices / max(taken / 4, taken - _attention(soc, bare, row.work, PROMPT, 0))
    # Attention runs at the plain rate as well, so it grows and shrinks with what is looked for.
    return (matrices + _attention(soc, bare, row.work, PROMPT, 0)) / taken


def _classes(soc: Soc, row: Row) -> list[str]:
    """The classes that a row tells of: that of the format which most of its weights have."""
    kind = max(row.work.prefill_weights.items(), key=lambda item: item[1])[0]
    return [f"repacked {kind}", _kin(kind)] if row.repack and repacks(kind, soc.features) else ["plain"]


def _factor(ratios: Sequence[tuple[str, float]]) -> float:
    """The median over setups of the geometric means of their ratios."""
    setups: dict[str, list[float]] = {}
    for setup, ratio in ratios:
        setups.setdefault(setup, []).append(math.log(ratio))
    return math.exp(statistics.median(statistics.mean(found) for found in setups.values()))


def _thread_loss(soc: Soc, filled: Sequence[Row]) -> float:
    """The loss with which the rows of a series come closest to one rate a core; the constant where there is none."""
    series: dict[tuple[object, ...], list[Row]] = {}
    for row in filled:
        series.setdefault(row.series, []).append(row)
    several = [group for group in series.values() if len({row.threads for row in group}) > 1]
    if not several:
        return soc.thread_loss

    def off(loss: float) -> float:
        total = 0.0
        for group in several:
            logs = [math.log((r.prefill_tps or 1) / (r.threads * (1 - loss * (r.threads - 1)))) for r in group]
            mean = sum(logs) / len(logs)
            total += sum((value - mean) ** 2 for value in logs)
        return total

    return min(_LOSSES, key=off)


class Error(msgspec.Struct, frozen=True):
    """A row predicted from the others: tokens/s, and predicted / published - 1."""

    row: Row
    decode: float
    decode_error: float
    prefill: float | None
    prefill_error: float | None


@cache
def left_out(soc: str, by_model: bool = False, further: bool = True) -> tuple[Error, ...]:
    """Every row of a processor, predicted without it.

    `by_model`: without all rows of its model, too. Not `further`: from the rows of `published.csv` alone.
    """
    found = []
    constants = socs()[soc]
    for row in rows():
        if row.soc != soc:
            continue
        out = [other for other in rows() if other is row or (other.further and not further)]
        out += [other for other in rows() if by_model and other.model == row.model]
        without = fit(soc, tuple(out))
        decode = 1 / decode_seconds(constants, without, row.work, row.threads, repack=row.repack)
        prefill = 1 / prefill_seconds(constants, without, row.work, row.threads, repack=row.repack)
        error = prefill / row.prefill_tps - 1 if row.prefill_tps else None
        found.append(Error(row, decode, decode / row.decode_tps - 1, prefill if error is not None else None, error))
    return tuple(found)


def spreads(soc_name: str, soc: Soc) -> tuple[float, float]:
    """How far off decode and prefill may be: a figure's interval is from figure / (1 + spread) to figure * (1 + spread).

    The worst leave-one-out error of the rows that the model should explain, at least 10 %, and at least 20 % where
    fewer than five rows are known; the processor's own `spread` where none is.
    """
    errors = [error for error in left_out(soc_name) if not error.row.unexplained] if soc_name in socs() else []
    decode = [error.decode_error for error in errors]
    prefill = [error.prefill_error for error in errors if error.prefill_error is not None]
    return _spread(decode, soc.spread), _spread(prefill, soc.spread)


def _spread(errors: Sequence[float], without: float) -> float:
    if not errors:
        return without
    worst = max(max(1 + error, 1 / (1 + error)) - 1 for error in errors)
    return max(worst, 0.10 if len(errors) >= 5 else 0.20)


def kv_bits(kind: str) -> float:
    """Bits of a number in the cache of keys and values, by llama.cpp's name of its type."""
    return bits(kind.upper())
