"""What a model needs of a board's memory, for every setting a board may choose: the file `memory.tsv` of a model package.

The figures are the predictor's (`pillm.devices.memory`), from every tensor of the file. A board picks the first row of
its class of processor that fits (`board.py` of the runtime package).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pillm.devices.formats import KvType
from pillm.devices.memory import memory
from pillm.devices.model import Model

CONTEXTS = (32768, 16384, 8192, 4096, 2048, 1024)
# What is given up for memory, in this order: a large batch, the cache's precision, then a long context.
_SETTINGS: tuple[tuple[KvType, int], ...] = (("f16", 512), ("f16", 128), ("q8_0", 512), ("q8_0", 128))
CLASSES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "dotprod": ("neon", "dotprod"),
    "avx2": ("avx2",),
    "avx512": ("avx2", "avx512"),
}
"""Classes of processors by what decides which tensors llama.cpp copies into another form."""


class Row(NamedTuple):
    """Bytes that must stay in memory, for one setting."""

    processor: str
    context: int
    cache: str
    ubatch: int
    bytes: int


def table(model: Model) -> tuple[Row, ...]:
    """All rows, the best settings first. Contexts end with what the model was trained for."""
    return tuple(_rows(model))


def _rows(model: Model) -> Iterator[Row]:
    trained = model.shape.context_length or CONTEXTS[0]
    contexts = [context for context in CONTEXTS if context <= trained] or [trained]
    for processor, features in CLASSES.items():
        for context in contexts:
            for cache, ubatch in _SETTINGS:
                taken = memory(model, features, context, kv_type=cache, ubatch=ubatch)
                yield Row(processor, context, cache, ubatch, taken.needed_bytes)


def text(rows: tuple[Row, ...]) -> str:
    """The file."""
    return "# processor\tcontext\tcache\tubatch\tbytes\n" + "".join("\t".join(map(str, row)) + "\n" for row in rows)


def least(rows: tuple[Row, ...]) -> int:
    """Bytes without which no board runs the model."""
    return min(row.bytes for row in rows)
