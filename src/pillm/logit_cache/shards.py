"""A shard: header, blocks (see pillm.logit_cache.rows), index. Little-endian; every byte is under a checksum.

The header has 112 bytes (`HEADER`), the index 40 a dialogue (`INDEX`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pillm.core.artifacts import atomic_file
from pillm.core.errors import UsageError
from pillm.logit_cache.rows import Rows, from_block, id_bytes, to_block

MAGIC, VERSION = b"PILLMLGT", 1
HEADER = struct.Struct("<8sIIIIQQQQ32sddII")
INDEX = np.dtype(
    [("key", "u1", 16), ("offset", "<u8"), ("bytes", "<u4"), ("positions", "<u4"), ("entries", "<u4"), ("crc", "<u4")]
)


class Header(NamedTuple):
    """The first 112 bytes."""

    magic: bytes
    version: int
    number: int
    """Which shard of the cache this is."""
    vocabulary_size: int
    id_bytes: int
    dialogues: int
    positions: int
    index_at: int
    """Where the index starts."""
    size: int
    """Bytes of the file."""
    run: bytes
    """sha256 of all that the bytes depend on; see Manifest.run."""
    entropy: float
    """Sum of the distributions' entropies, in nats."""
    mass: float
    """Sum of the tails' masses before coding."""
    index_crc: int
    """crc32 of the index."""
    crc: int
    """crc32 of the header before this field."""


class ShardFile(NamedTuple):
    """An open shard: its header, its index, and its bytes, which are read only where they are asked for."""

    path: Path
    header: Header
    entries: np.ndarray
    """The index: [dialogues] of `INDEX`."""
    data: np.ndarray


def file_name(number: int) -> str:
    """The name of a shard."""
    return f"shard-{number:05d}.bin"


def write(
    path: Path,
    number: int,
    run: bytes,
    vocabulary_size: int,
    dialogues: Iterable[tuple[bytes, Rows]],
    entropy: float,
    mass: float,
) -> None:
    """Publish a shard in one step. `dialogues` are keys and distributions."""
    width = id_bytes(vocabulary_size)
    entries: list[tuple[object, ...]] = []
    at, positions = HEADER.size, 0
    with atomic_file(path) as file:
        file.write(bytes(HEADER.size))
        for key, rows in dialogues:
            block = to_block(rows, width)
            count = len(rows.exact)
            size = len(rows.exact_ids) + len(rows.sample_ids)
            entries.append((np.frombuffer(key, np.uint8), at, len(block), count, size, zlib.crc32(block)))
            file.write(block)
            at, positions = at + len(block), positions + count
        index = np.array(entries, INDEX).tobytes()
        file.write(index)
        fields = (MAGIC, VERSION, number, vocabulary_size, width, len(entries), positions, at, at + len(index), run)
        head = HEADER.pack(*fields, entropy, mass, zlib.crc32(index), 0)
        file.seek(0)
        file.write(head[:-4] + struct.pack("<I", zlib.crc32(head[:-4])))


def open_shard(path: Path, remedy: str) -> ShardFile:
    """Map a shard and check its header and its index. Raises UsageError, with `remedy` as the hint, for bad ones."""
    try:
        size = path.stat().st_size
        data = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
    except FileNotFoundError:
        raise UsageError(f"{path}: this shard is not there", remedy) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error})", remedy) from error
    if size < HEADER.size:
        raise UsageError(f"{path}: cut off: {size:,} bytes are less than a shard's header", remedy)
    raw = data[: HEADER.size].tobytes()
    header = Header._make(HEADER.unpack(raw))
    if header.magic != MAGIC:
        raise UsageError(f"{path}: not a shard of a cache of logits", remedy)
    if zlib.crc32(raw[:-4]) != header.crc:
        newer = f" (or it has the newer format version {header.version})" if header.version > VERSION else ""
        message = f"{path}: bytes 0 to {HEADER.size} (header) are damaged: their checksum does not fit{newer}"
        raise UsageError(message, remedy)
    if header.version > VERSION:
        message = f"{path}: format version {header.version}, and this pillm knows version {VERSION}"
        raise UsageError(message, "use a newer pillm, or make the cache again with this one")
    if size != header.size:
        raise UsageError(f"{path}: {size:,} bytes long instead of {header.size:,}: cut off, or added to", remedy)
    part = data[header.index_at :]
    if len(part) != header.dialogues * INDEX.itemsize or zlib.crc32(part.tobytes()) != header.index_crc:
        where = f"bytes {header.index_at:,} to {size:,} (index)"
        raise UsageError(f"{path}: {where} are damaged: their checksum does not fit", remedy)
    return ShardFile(path, header, part.view(INDEX), data)


def block(shard: ShardFile, index: int, remedy: str) -> np.ndarray:
    """The checked bytes of one dialogue's block, u8. Raises UsageError if they are not what was written."""
    start = int(shard.entries["offset"][index])
    end = start + int(shard.entries["bytes"][index])
    found = shard.data[start:end]
    if zlib.crc32(found.tobytes()) != int(shard.entries["crc"][index]):
        where = f"bytes {start:,} to {end:,} (dialogue {index} of the shard)"
        raise UsageError(f"{shard.path}: {where} are damaged: their checksum does not fit", remedy)
    return np.asarray(found)


def rows(shard: ShardFile, index: int, remedy: str) -> Rows:
    """The distributions of one dialogue."""
    entry = shard.entries[index]
    found = block(shard, index, remedy)
    try:
        return from_block(found, int(entry["positions"]), int(entry["entries"]), shard.header.id_bytes)
    except ValueError as error:
        raise UsageError(f"{shard.path}: dialogue {index}: {error}", remedy) from error
