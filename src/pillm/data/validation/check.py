"""The faults of a block of lines: what a worker does. It imports little, since every worker waits for that."""

from __future__ import annotations

import hashlib
from codecs import BOM_UTF8
from collections import Counter
from typing import NamedTuple

from pillm.core.jsonl import MAX_LINE_BYTES
from pillm.data.inputs import Block
from pillm.data.validation import judge
from pillm.data.validation.codes import Fault
from pillm.data.validation.rules import Rules, faults


class Judged(NamedTuple):
    """What a worker found in a block; lines count from 1 within the block."""

    lines: int
    records: int
    blank: int
    faults: list[tuple[int, int, Fault]]
    """Line, offset of its first byte in the file, fault; no more than the limit."""
    counts: Counter[str]
    ids: bytes
    """Of every record: 16 bytes hash, then 8 bytes each of line and offset (little endian)."""


def check_block(block: Block, rules: Rules) -> Judged:
    """All faults of a block's lines."""
    told: list[tuple[int, int, Fault]] = []
    counts: Counter[str] = Counter()
    ids = bytearray()
    number = good = blank = 0
    for number, byte, data, size in block.lines():
        key = judge.sound(data, rules.formats) if size <= MAX_LINE_BYTES and not data.endswith(b"\r") else None
        if key is not None and rules.template is None and rules.context is None:
            good += 1
            ids += id_entry(key, number, byte)
            continue
        if not data.removeprefix(BOM_UTF8 if byte == 0 else b"").strip():
            blank += 1
        found, value = faults(data, size, byte, rules)
        if isinstance(value, dict):
            good += 1
            if isinstance(value.get("id"), str):
                ids += id_entry(value["id"], number, byte)
        for fault in found:
            # That lines end like this is true of a file, and told once.
            if fault.code == "windows-line-end" and counts[fault.code]:
                continue
            counts[fault.code] += 1
            if len(told) < rules.limit:
                told.append((number, byte, fault))
    if block.broken and "broken-archive" not in rules.ignore:
        counts["broken-archive"] += 1
        told.append((number or 1, block.end, Fault("broken-archive", "$", block.broken)))
    return Judged(number, good, blank, told, counts, bytes(ids))


def id_entry(key: str, line: int, byte: int) -> bytes:
    """An id as `ids` takes it: 16 bytes of hash, line and offset in 8 bytes each, little endian."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return digest + line.to_bytes(8, "little") + byte.to_bytes(8, "little")
