"""ggml's number formats: weights a block and bytes a block. What the sizes of tensors and caches are computed from.

The figures are those of ggml-common.h (`QK_K` is 256). A row must be a whole number of blocks.
"""

from __future__ import annotations

from typing import Literal

KvType = Literal["f16", "q8_0", "q4_0"]

BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "F64": (1, 8), "I8": (1, 1), "I16": (1, 2), "I32": (1, 4), "I64": (1, 8),
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q8_1": (32, 36),
    "IQ4_NL": (32, 18), "MXFP4": (32, 17),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "Q8_K": (256, 292),
    "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "IQ4_XS": (256, 136), "TQ1_0": (256, 54), "TQ2_0": (256, 66),
}  # fmt: skip
"""Weights and bytes of a block, by type."""

FLOATS = frozenset({"F32", "F16", "BF16", "F64"})


def tensor_bytes(kind: str, elements: int) -> int:
    """Bytes of so many weights in this type; rows are whole blocks. KeyError for a type that is not known."""
    block, size = BLOCKS[kind]
    return elements // block * size


def bits(kind: str) -> float:
    """Bits a weight."""
    block, size = BLOCKS[kind]
    return 8 * size / block
