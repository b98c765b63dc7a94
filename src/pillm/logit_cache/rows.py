"""The sparse distributions of one dialogue: in memory, and as the bytes of a block.

A block of T learned tokens is, little-endian and without gaps:

    u8  exact[T]     how many exact probabilities the token has
    u8  samples[T]   how many samples of its tail
    u16 mass[T]      the tail's mass, coded
    u16 values[E]    exact probabilities, coded; E = sum of exact
    ids[E + S]       u16, or 3 bytes for larger vocabularies: ids of the exact ones, then of all samples
    0 to 3 zeros     to a multiple of 4 bytes

A coded probability c is (c / 65535) squared: the step is 3e-5 at 1 and 3e-7 at 0.0001, so the rounding of a
probability has a variance proportional to it, as sampling has, and is far below it. Samples have no values: each of a
token's n samples weighs mass / n.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_SCALE = 65535.0
MOST = 255
"""Entries of either kind that a token can have."""
SMALLEST = (0.5 / _SCALE) ** 2
"""A mass below this is coded as 0."""


class Rows(NamedTuple):
    """T sparse distributions as a teacher's pass makes them."""

    exact: np.ndarray
    """int [T]: how many exact probabilities"""
    samples: np.ndarray
    """int [T]: how many samples of the tail"""
    mass: np.ndarray
    """float [T]: the tail's mass, all that is not exact"""
    values: np.ndarray
    """float [sum of exact]: probabilities, token after token"""
    exact_ids: np.ndarray
    """int [sum of exact]"""
    sample_ids: np.ndarray
    """int [sum of samples]"""


class Targets(NamedTuple):
    """The learned tokens of one dialogue, in order (T of them). Ids in a row differ from each other."""

    ids: np.ndarray
    """int32 [T, W]; W differs between dialogues"""
    weights: np.ndarray
    """float32 [T, W]; a row sums to 1 (to less in a biased cache); unused places are id 0, weight 0"""
    exact: np.ndarray
    """int32 [T]: the first `exact` of a row are exact probabilities, the following are samples of the tail"""


def dialogue_key(ids: Sequence[int], learned: Sequence[bool]) -> bytes:
    """16 bytes that name a dialogue by its content: of sha256 over (count as u32, ids as u32, mask as u8).

    The first token is predicted from nothing, so whether it counts as learned makes no difference.
    """
    mask = np.asarray(learned, np.uint8)
    mask[:1] = 0
    digest = hashlib.sha256(len(ids).to_bytes(4, "little"))
    digest.update(np.asarray(ids, "<u4").tobytes())
    digest.update(mask.tobytes())
    return digest.digest()[:16]


def id_bytes(vocabulary_size: int) -> int:
    """Bytes of a token id: 2 up to a vocabulary of 65,536, else 3."""
    return 2 if vocabulary_size <= 1 << 16 else 3


def code(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities as u16."""
    return np.rint(np.sqrt(np.clip(probabilities, 0, 1)) * _SCALE).astype("<u2")


def decode(codes: np.ndarray) -> np.ndarray:
    """What `code` made, as float32."""
    return np.square(codes.astype(np.float64) / _SCALE).astype(np.float32)


def to_block(rows: Rows, width: int) -> bytes:
    """The bytes of a block; `width` is that of an id."""
    ids = np.concatenate((rows.exact_ids, rows.sample_ids)).astype("<u4")
    packed = ids.view(np.uint8).reshape(-1, 4)[:, :width]
    parts = (rows.exact.astype(np.uint8), rows.samples.astype(np.uint8), code(rows.mass), code(rows.values), packed)
    block = b"".join(part.tobytes() for part in parts)
    return block + bytes(-len(block) % 4)


def block_bytes(positions: int, exact: int, entries: int, width: int) -> int:
    """Length of a block of so many learned tokens, exact probabilities, and entries of both kinds."""
    size = 4 * positions + 2 * exact + width * entries
    return size + -size % 4


def from_block(block: np.ndarray, positions: int, entries: int, width: int) -> Rows:
    """The distributions of a block (u8 [bytes]). Raises ValueError if the numbers in it do not fit its length."""
    if len(block) < 4 * positions:
        raise ValueError("the block is too short")
    exact, samples = block[:positions].astype(np.int64), block[positions : 2 * positions].astype(np.int64)
    total = int(exact.sum())
    if total + int(samples.sum()) != entries or block_bytes(positions, total, entries, width) != len(block):
        raise ValueError("the counts of the block do not fit its length")
    at = 4 * positions
    mass, values = decode(block[2 * positions : at].view("<u2")), decode(block[at : at + 2 * total].view("<u2"))
    at += 2 * total
    wide = np.zeros((entries, 4), np.uint8)
    wide[:, :width] = block[at : at + width * entries].reshape(entries, width)
    ids = wide.view("<u4").reshape(-1).astype(np.int32)
    return Rows(exact, samples, mass, values, ids[:total], ids[total:])


def targets(rows: Rows) -> Targets:
    """Rows side by side. Where a tail was hit twice at the same token, its samples are merged."""
    count = len(rows.exact)
    entries = rows.exact + rows.samples
    width = max(1, int(entries.max(initial=0)))
    place = np.arange(width)[None]
    is_exact, is_any = place < rows.exact[:, None], place < entries[:, None]
    ids, weights = np.zeros((count, width), np.int32), np.zeros((count, width), np.float32)
    ids[is_exact], weights[is_exact] = rows.exact_ids, rows.values
    sampled = is_any & ~is_exact
    ids[sampled] = rows.sample_ids
    each = rows.mass / np.maximum(rows.samples, 1)
    weights[sampled] = np.broadcast_to(each[:, None], sampled.shape)[sampled]
    # A row's samples are in ascending order, so that equal ones are neighbours.
    again = sampled[:, 1:] & sampled[:, :-1] & (ids[:, 1:] == ids[:, :-1])
    for row in np.flatnonzero(again.any(1)):
        _merge(ids[row], weights[row], int(rows.exact[row]), int(entries[row]))
    return Targets(ids, weights, rows.exact.astype(np.int32))


def _merge(ids: np.ndarray, weights: np.ndarray, start: int, end: int) -> None:
    unique, inverse = np.unique(ids[start:end], return_inverse=True)
    merged = np.bincount(inverse, weights[start:end])
    ids[start:end], weights[start:end] = 0, 0
    ids[start : start + len(unique)], weights[start : start + len(unique)] = unique, merged
