"""ggml's quantized tensors taken apart into codes and scales, and put together again, byte for byte.

Every type here is one formula: `step x level(code) + offset`, with `step` and `offset` shared by a group of columns.
The layouts are those of ggml's `block_*` structures (ggml-common.h); the decode does the float32 operations of
`gguf.quants.dequantize` in the same order, so that it gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from gguf import GGMLQuantizationType

from pillm.core.errors import UsageError

Bytes = np.ndarray
"""uint8, blocks x bytes."""

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The sixteen levels of IQ4_NL and IQ4_XS (`kvalues_iq4nl` of ggml)."""


class Grid(NamedTuple):
    """One type: `block` columns share a float16 scale, `group` columns a step; code 0 means level `lowest`."""

    name: str
    block: int
    group: int
    size: int
    """Bytes a block."""
    levels: int
    lowest: int
    minimum: bool
    """Whether groups have an offset."""
    table: tuple[int, ...] = ()
    """Levels that are not evenly spaced."""

    @property
    def values(self) -> np.ndarray:
        """Float32, the level of every code, rising."""
        if self.table:
            return np.array(self.table, np.float32)
        return np.arange(self.lowest, self.lowest + self.levels, dtype=np.float32)

    @property
    def nested(self) -> bool:
        """Whether groups have whole-numbered scales of their own under the block's."""
        return self.group < self.block


@dataclass(frozen=True)
class Packed:
    """A tensor of `rows x columns` in a grid.

    `codes` uint8 (rows, columns), counted from the lowest level; `scale` and `minimum` float16 (rows, columns /
    block); `sub_scale` and `sub_minimum` int8 (rows, columns / group), None where the type has none.
    """

    grid: Grid
    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None = None
    sub_scale: np.ndarray | None = None
    sub_minimum: np.ndarray | None = None

    def steps(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Step and offset of every group as float32 (rows, columns / group), exactly as a decoder computes them."""
        grid = self.grid
        repeat = grid.block // grid.group
        step = np.repeat(self.scale.astype(np.float32), repeat, axis=1)
        if self.sub_scale is not None:
            step = step * self.sub_scale.astype(np.float32)
        if self.minimum is None:
            return step, None
        offset = np.repeat(self.minimum.astype(np.float32), repeat, axis=1)
        # K types subtract their minimum; adding its negative gives the same bits.
        return step, offset if self.sub_minimum is None else -(offset * self.sub_minimum.astype(np.float32))

    def decode(self) -> np.ndarray:
        """Float32 (rows, columns), the bits that `gguf.quants.dequantize` gives for `encode(self)`."""
        step, offset = self.steps()
        rows, columns = self.codes.shape
        levels = self.grid.values[self.codes].reshape(rows, -1, self.grid.group)
        values = step[:, :, None] * levels
        if offset is not None:
            values = values + offset[:, :, None]
        return values.reshape(rows, columns)

    def fields(self) -> tuple[np.ndarray | None, ...]:
        """Codes, scale, minimum, sub-scales, sub-minima."""
        return self.codes, self.scale, self.minimum, self.sub_scale, self.sub_minimum

    def rows(self, some: slice) -> Packed:
        """Some rows of the tensor."""
        return Packed(self.grid, *(None if part is None else part[some] for part in self.fields()))  # pyright: ignore[reportArgumentType]

    def with_codes(self, codes: np.ndarray) -> Packed:
        """The same scales with other codes."""
        return replace(self, codes=codes.astype(np.uint8))


class _Parts(NamedTuple):
    """A block's fields: codes (n, block), scale and minimum (n,) float16, sub-scales (n, block / group)."""

    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None = None
    sub_scale: np.ndarray | None = None
    sub_minimum: np.ndarray | None = None


def _given(part: np.ndarray | None) -> np.ndarray:
    if part is None:
        raise ValueError("a field of this type is missing")
    return part


def _half(raw: Bytes, at: int) -> np.ndarray:
    return np.ascontiguousarray(raw[:, at : at + 2]).view(np.float16)[:, 0]


def _put_half(raw: Bytes, at: int, value: np.ndarray) -> None:
    raw[:, at : at + 2] = np.ascontiguousarray(value.astype(np.float16)).view(np.uint8).reshape(-1, 2)


def _spread(raw: Bytes, width: int, bits: int) -> np.ndarray:
    """Codes that lie in planes: `width` bytes hold, from the lowest `bits` up, columns 0.., width.., 2 width.. ."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    runs = raw.reshape(len(raw), -1, 1, width) >> shifts[:, None] & np.uint8((1 << bits) - 1)
    return runs.reshape(len(raw), -1)


def _gather(codes: np.ndarray, width: int, bits: int) -> Bytes:
    """What `_spread` undoes."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    runs = codes.astype(np.uint8).reshape(len(codes), -1, len(shifts), width) << shifts[:, None]
    return np.bitwise_or.reduce(runs, axis=2).reshape(len(codes), -1)


def _fifth_bits(raw: Bytes) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(raw), axis=1, bitorder="little")


def _simple(fifth: bool, minimum: bool) -> tuple[Callable[[Bytes], _Parts], Callable[[_Parts, Bytes], None]]:
    """Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL: scale, minimum, fifth bits, nibbles (columns j and j + 16 share a byte)."""
    bits_at = 4 if minimum else 2
    at = bits_at + 4 * fifth

    def split(raw: Bytes) -> _Parts:
        codes = _spread(raw[:, at:], 16, 4)
        if fifth:
            codes = codes | _fifth_bits(raw[:, bits_at:at]) << np.uint8(4)
        return _Parts(codes, _half(raw, 0), _half(raw, 2) if minimum else None)

    def join(parts: _Parts, raw: Bytes) -> None:
        _put_half(raw, 0, parts.scale)
        if parts.minimum is not None:
            _put_half(raw, 2, parts.minimum)
        if fifth:
            raw[:, bits_at:at] = np.packbits(parts.codes >> 4, axis=1, bitorder="little")
        raw[:, at:] = _gather(parts.codes & 15, 16, 4)

    return split, join


def _split_q8_0(raw: Bytes) -> _Parts:
    return _Parts(raw[:, 2:] ^ np.uint8(128), _half(raw, 0))


def _join_q8_0(parts: _Parts, raw: Bytes) -> None:
    _put_half(raw, 0, parts.scale)
    raw[:, 2:] = parts.codes ^ np.uint8(128)


def _six_bit_pairs(raw: Bytes) -> tuple[np.ndarray, np.ndarray]:
    """The eight 6-bit scales and minima in the twelve bytes of Q4_K and Q5_K."""
    low, middle, high = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    scale = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=1)
    minimum = np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=1)
    return scale.astype(np.int8), minimum.astype(np.int8)


def _put_six_bit_pairs(raw: Bytes, scale: np.ndarray, minimum: np.ndarray) -> None:
    scale, minimum = scale.astype(np.uint8), minimum.astype(np.uint8)
    raw[:, 0:4] = scale[:, :4] | scale[:, 4:] >> 4 << 6
    raw[:, 4:8] = minimum[:, :4] | minimum[:, 4:] >> 4 << 6
    raw[:, 8:12] = scale[:, 4:] & 15 | (minimum[:, 4:] & 15) << 4


def _wide(fifth: bool) -> tuple[Callable[[Bytes], _Parts], Callable[[_Parts, Bytes], None]]:
    """Q4_K, Q5_K: scale, minimum, pairs, a plane of fifth bits, nibbles in runs of 64 columns."""
    at = 48 if fifth else 16

    def split(raw: Bytes) -> _Parts:
        codes = _spread(raw[:, at:], 32, 4)
        if fifth:
            codes = codes | _spread(raw[:, 16:48], 32, 1) << np.uint8(4)
        return _Parts(codes, _half(raw, 0), _half(raw, 2), *_six_bit_pairs(raw[:, 4:16]))

    def join(parts: _Parts, raw: Bytes) -> None:
        _put_half(raw, 0, parts.scale)
        _put_half(raw, 2, _given(parts.minimum))
        _put_six_bit_pairs(raw[:, 4:16], _given(parts.sub_scale), _given(parts.sub_minimum))
        if fifth:
            raw[:, 16:48] = _gather(parts.codes >> 4, 32, 1)
        raw[:, at:] = _gather(parts.codes & 15, 32, 4)

    return split, join


def _split_q6_k(raw: Bytes) -> _Parts:
    codes = _spread(raw[:, :128], 64, 4) | _spread(raw[:, 128:192], 32, 2) << np.uint8(4)
    return _Parts(codes, _half(raw, 208), None, raw[:, 192:208].view(np.int8))


def _join_q6_k(parts: _Parts, raw: Bytes) -> None:
    raw[:, :128] = _gather(parts.codes & 15, 64, 4)
    raw[:, 128:192] = _gather(parts.codes >> 4, 32, 2)
    raw[:, 192:208] = _given(parts.sub_scale).view(np.uint8)
    _put_half(raw, 208, parts.scale)


def _split_q3_k(raw: Bytes) -> _Parts:
    codes = _spread(raw[:, 32:96], 32, 2) | _spread(raw[:, :32], 32, 1) << np.uint8(2)
    scale = _spread(raw[:, 96:104], 8, 4) | _spread(raw[:, 104:108], 4, 2) << np.uint8(4)
    return _Parts(codes, _half(raw, 108), None, scale.astype(np.int8) - np.int8(32))


def _join_q3_k(parts: _Parts, raw: Bytes) -> None:
    scale = (_given(parts.sub_scale) + np.int8(32)).astype(np.uint8)
    raw[:, :32] = _gather(parts.codes >> 2, 32, 1)
    raw[:, 32:96] = _gather(parts.codes & 3, 32, 2)
    raw[:, 96:104] = _gather(scale & 15, 8, 4)
    raw[:, 104:108] = _gather(scale >> 4, 4, 2)
    _put_half(raw, 108, parts.scale)


def _split_q2_k(raw: Bytes) -> _Parts:
    pairs = raw[:, :16]
    return _Parts(
        _spread(raw[:, 16:80], 32, 2),
        _half(raw, 80),
        _half(raw, 82),
        (pairs & 15).astype(np.int8),
        (pairs >> 4).astype(np.int8),
    )


def _join_q2_k(parts: _Parts, raw: Bytes) -> None:
    raw[:, :16] = _given(parts.sub_scale).astype(np.uint8) | _given(parts.sub_minimum).astype(np.uint8) << 4
    raw[:, 16:80] = _gather(parts.codes, 32, 2)
    _put_half(raw, 80, parts.scale)
    _put_half(raw, 82, _given(parts.minimum))


def _split_iq4_xs(raw: Bytes) -> _Parts:
    # 2-bit and 4-bit scales lie one after the other, not in planes: planes of width 1.
    scale = _spread(raw[:, 4:8], 1, 4) | _spread(raw[:, 2:4], 1, 2) << np.uint8(4)
    return _Parts(_spread(raw[:, 8:], 16, 4), _half(raw, 0), None, scale.astype(np.int8) - np.int8(32))


def _join_iq4_xs(parts: _Parts, raw: Bytes) -> None:
    scale = (_given(parts.sub_scale) + np.int8(32)).astype(np.uint8)
    _put_half(raw, 0, parts.scale)
    raw[:, 2:4] = _gather(scale >> 4, 1, 2)
    raw[:, 4:8] = _gather(scale & 15, 1, 4)
    raw[:, 8:] = _gather(parts.codes, 16, 4)


_T = GGMLQuantizationType
_Codec = tuple[Grid, tuple[Callable[[Bytes], _Parts], Callable[[_Parts, Bytes], None]]]
_CODECS: dict[GGMLQuantizationType, _Codec] = {
    _T.Q4_0: (Grid("Q4_0", 32, 32, 18, 16, -8, False), _simple(False, False)),
    _T.Q4_1: (Grid("Q4_1", 32, 32, 20, 16, 0, True), _simple(False, True)),
    _T.Q5_0: (Grid("Q5_0", 32, 32, 22, 32, -16, False), _simple(True, False)),
    _T.Q5_1: (Grid("Q5_1", 32, 32, 24, 32, 0, True), _simple(True, True)),
    _T.Q8_0: (Grid("Q8_0", 32, 32, 34, 256, -128, False), (_split_q8_0, _join_q8_0)),
    _T.IQ4_NL: (Grid("IQ4_NL", 32, 32, 18, 16, 0, False, IQ4_LEVELS), _simple(False, False)),
    _T.IQ4_XS: (Grid("IQ4_XS", 256, 32, 136, 16, 0, False, IQ4_LEVELS), (_split_iq4_xs, _join_iq4_xs)),
    _T.Q2_K: (Grid("Q2_K", 256, 16, 84, 4, 0, True), (_split_q2_k, _join_q2_k)),
    _T.Q3_K: (Grid("Q3_K", 256, 16, 110, 8, -4, False), (_split_q3_k, _join_q3_k)),
    _T.Q4_K: (Grid("Q4_K", 256, 32, 144, 16, 0, True), _wide(False)),
    _T.Q5_K: (Grid("Q5_K", 256, 32, 176, 32, 0, True), _wide(True)),
    _T.Q6_K: (Grid("Q6_K", 256, 16, 210, 64, -32, False), (_split_q6_k, _join_q6_k)),
}

GRIDS = {kind: grid for kind, (grid, _) in _CODECS.items()}
"""The types that can be taken apart; others (floats, IQ2, IQ3) stay as llama-quantize wrote them."""


def unpack(raw: np.ndarray, kind: GGMLQuantizationType) -> Packed:
    """Take a tensor's bytes apart: `raw` uint8 (rows, bytes a row), as `gguf.GGUFReader` gives them.

    Raises UsageError if the type has no codec or a row is no whole number of blocks.
    """
    if kind not in _CODECS:
        raise UsageError(f"{kind.name}: this type cannot be taken apart", f"types that can: {_names()}")
    grid, (split, _) = _CODECS[kind]
    raw = np.ascontiguousarray(raw, np.uint8)
    rows = len(raw)
    if raw.ndim != 2 or raw.shape[1] % grid.size:
        raise UsageError(f"{grid.name}: rows of {raw.shape[-1]} bytes are no whole blocks of {grid.size}")
    parts = split(raw.reshape(-1, grid.size))
    return Packed(grid, *(None if part is None else part.reshape(rows, -1) for part in parts))  # pyright: ignore[reportArgumentType]


def pack(packed: Packed) -> np.ndarray:
    """Put a tensor together: uint8 (rows, bytes a row), what `unpack` undoes."""
    grid = packed.grid
    _, join = _CODECS[GGMLQuantizationType[grid.name]][1]
    rows, columns = packed.codes.shape
    blocks = rows * columns // grid.block
    raw = np.zeros((blocks, grid.size), np.uint8)

    codes, scale, minimum, *subs = (
        None if part is None else np.ascontiguousarray(part).reshape(blocks, -1) for part in packed.fields()
    )
    join(_Parts(_given(codes), _given(scale)[:, 0], None if minimum is None else minimum[:, 0], *subs), raw)
    return raw.reshape(rows, -1)


def joined(parts: Sequence[Packed]) -> Packed:
    """Rows of one tensor put together."""
    fields = zip(*(part.fields() for part in parts), strict=True)
    return Packed(parts[0].grid, *(None if field[0] is None else np.concatenate(field) for field in fields))  # pyright: ignore[reportArgumentType, reportCallIssue]


def _names() -> str:
    return ", ".join(grid.name for grid in GRIDS.values())
