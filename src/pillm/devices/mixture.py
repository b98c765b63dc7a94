"""Which tensor gets which type: llama-quantize's mixtures, and its silent fallbacks.

Facts of llama.cpp's `llama-quant.cpp` (0.5.0, commit in `llamacpp.pin`) for files made without an importance
matrix; a test holds these against what the real llama-quantize writes. "Rows" are a tensor's first dimension.

- The head (`output.weight`, or the embedding of a model that ties the two) is Q6_K, or Q8_0 in a Q8_0 file and
  where its rows are no whole number of the file type's blocks.
- Rows that are no multiple of 256 cannot be in a K- or I-type: Q4_K becomes Q5_0, Q5_K becomes Q5_1, Q6_K becomes
  Q8_0, the types below become Q4_0 or IQ4_NL; rows that are no multiple of 32 become F16.
- Vectors, norms and routers stay as the converter wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from pillm.devices.formats import BLOCKS, FLOATS
from pillm.devices.model import Shape, Tensor

QUANTS = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
          "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K")  # fmt: skip
"""Mixtures that need no importance matrix, from large to small."""

_BASE = {
    "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K",
    "Q3_K_L": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_S": "Q3_K",
}  # fmt: skip
_FALLBACK = {
    "IQ4_XS": "IQ4_NL", "IQ3_S": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
# Parts of names that llama-quantize leaves alone although they are matrices.
_KEPT = ("_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d", "shortconv.conv.weight", "altup", "laurel",
         "per_layer_model_proj", "position_embd", "token_types", "attn_rel_b.weight")  # fmt: skip
_LAYER = re.compile(r"blk\.(\d+)\.")


def mixed(tensors: Sequence[Tensor], shape: Shape, quant: str) -> tuple[Tensor, ...]:
    """The tensors of a float model, each in the type that a file of mixture `quant` has it in.

    `F16`, `BF16` and `F32` give what the converter writes: matrices in that type, the rest in F32.
    KeyError for a mixture that is not known.
    """
    if quant in FLOATS:
        return tuple(_retyped(tensor, quant) if _quantizes(tensor) else tensor for tensor in tensors)
    base = _BASE.get(quant, quant)
    if quant not in QUANTS:
        raise KeyError(quant)
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    state = _State(quant, base, shape, tied, sum(_is_value(tensor.name) for tensor in tensors))
    chosen = {}
    # llama.cpp goes through layers in order, so that the n-th value projection is that of the n-th layer with one.
    for tensor in sorted(tensors, key=lambda tensor: _layer(tensor.name)):
        if _quantizes(tensor):
            chosen[tensor.name] = _fallback(state.wanted(tensor), tensor.shape[0])
    return tuple(_retyped(tensor, chosen.get(tensor.name, tensor.type)) for tensor in tensors)


class _State:
    """The counters of a pass over all tensors."""

    def __init__(self, quant: str, base: str, shape: Shape, tied: bool, values: int) -> None:
        self.quant, self.base, self.shape, self.tied, self.n_values = quant, base, shape, tied, values
        self.value = self.down = 0
        first = shape.kv_heads[0] if shape.kv_heads else 0
        self.shared = shape.heads // first if first else 0

    def wanted(self, tensor: Tensor) -> str:
        """The type that the mixture wants, whatever the rows are."""
        name, rows = tensor.name, tensor.shape[0]
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            if rows % BLOCKS[self.base][0]:
                return "Q8_0"
            return "Q8_0" if self.base == "Q8_0" else "Q6_K"
        if name in ("token_embd.weight", "per_layer_token_embd.weight"):
            return self.base
        if _is_value(name):
            return self._value()
        if "ffn_down" in name:
            return self._down(name)
        if "attn_k.weight" in name and self.shape.experts == 8:
            return "Q8_0"
        if "attn_output.weight" in name:
            return self._output()
        return self.base

    def _value(self) -> str:
        """Value projections, fused ones included: more bits in some layers, more where many heads share them."""
        index, total = self.value, self.n_values
        self.value += 1
        if self.shape.experts == 8:
            return "Q8_0"
        match self.quant:
            case "Q2_K":
                return "Q4_K" if self.shared >= 4 else "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if index < 2 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if self.shared >= 4:
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _more_bits(index, total):
                return "Q6_K"
            case "Q4_K_S" if index < 4:
                return "Q5_K"
        return self.base

    def _down(self, name: str) -> str:
        layers = self.shape.layers
        index = _layer(name) if self.shape.experts > 1 else self.down
        self.down += 1
        match self.quant:
            case "Q2_K":
                return "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if index < layers // 16 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _more_bits(index, layers):
                return "Q6_K"
            case "IQ4_NL" | "IQ4_XS" | "Q4_K_S" if index < layers // 8:
                return "Q5_K"
        return self.base

    def _output(self) -> str:
        if self.shape.experts == 8:
            eased = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS")
            return "Q5_K" if self.quant in eased else self.base
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self.quant, self.base)


def _more_bits(index: int, total: int) -> bool:
    """The first and last eighth, and every third layer between."""
    return index < total // 8 or index >= 7 * total // 8 or (index - total // 8) % 3 == 2


def _is_value(name: str) -> bool:
    return any(part in name for part in ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"))


def _quantizes(tensor: Tensor) -> bool:
    matrix = len([size for size in tensor.shape if size > 1]) > 1
    return matrix and tensor.name.endswith("weight") and not any(part in tensor.name for part in _KEPT)


def _fallback(kind: str, rows: int) -> str:
    if rows % BLOCKS[kind][0] == 0:
        return kind
    kind = _FALLBACK.get(kind, kind)
    return kind if rows % BLOCKS[kind][0] == 0 else "F16"


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def _retyped(tensor: Tensor, kind: str) -> Tensor:
    return tensor if tensor.type == kind else msgspec.structs.replace(tensor, type=kind)
