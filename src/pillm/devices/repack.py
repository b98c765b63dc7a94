"""Which weights llama.cpp keeps in a repacked form, from what the processor can do.

Facts of `ggml_repack_get_optimal_repack_type` in llama.cpp's ggml-cpu/repack.cpp (0.5.0). A tensor whose rows come in
groups of 4 or 8 is copied into memory of its own when the file is loaded; the file's pages are not needed after that.
"""

from __future__ import annotations

from collections.abc import Iterable

from pillm.devices.model import Tensor

# Format -> [(features that must all be there, rows of a group)], the first that fits counts.
_ARM, _ARM_I8MM = frozenset({"neon", "dotprod"}), frozenset({"neon", "i8mm"})
_AVX2, _AVX512 = frozenset({"avx2"}), frozenset({"avx512"})
_KERNELS: dict[str, tuple[tuple[frozenset[str], int], ...]] = {
    "Q4_0": ((_AVX2, 8), (_ARM_I8MM, 4), (_ARM, 4)),
    "Q4_K": ((_AVX2, 8), (_ARM_I8MM, 8), (_ARM, 8)),
    "Q2_K": ((_AVX512, 8),),
    "Q5_K": ((_ARM_I8MM, 8), (_ARM, 8)),
    "Q6_K": ((_ARM_I8MM, 8), (_ARM, 8)),
    "IQ4_NL": ((_AVX2, 8), (_ARM, 4)),
    "MXFP4": ((_AVX2, 8), (_ARM, 4)),
    "Q8_0": ((_ARM_I8MM, 4), (_ARM, 4)),
}


def repacks(kind: str, features: Iterable[str]) -> bool:
    """Whether there is a repacked kernel for a format on such a processor."""
    there = frozenset(features)
    return any(needed <= there for needed, _ in _KERNELS.get(kind, ()))


def is_repacked(tensor: Tensor, features: Iterable[str]) -> bool:
    """Whether this tensor is copied: a matrix that is only multiplied with, and whose rows fill groups."""
    there = frozenset(features)
    if not tensor.is_matrix or tensor.name == "token_embd.weight":
        return False
    rows = tensor.shape[1]
    return any(needed <= there and rows % group == 0 for needed, group in _KERNELS.get(tensor.type, ()))
