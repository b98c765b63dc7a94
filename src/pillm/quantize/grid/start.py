"""Where the search begins: the model with its channels scaled, and its matrices as llama-quantize rounds those."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from pillm.core.errors import GateError, UsageError
from pillm.core.events import Emit
from pillm.llamacpp.gguf_file import GgufFile, Tensor, describe
from pillm.llamacpp.install import ensure
from pillm.llamacpp.quantize import quantize
from pillm.quantize.fitting.costs import write_imatrix
from pillm.quantize.grid.equalize import equalize, written
from pillm.quantize.weights import Loaded, fill, load, placed

_TOKENS = 8192
"""Loudness of channels needs few."""


class Start(msgspec.Struct, frozen=True):
    """The scaled model in torch, and for each tensor the file that has its bytes: in the mix's types, scaled."""

    loaded: Loaded
    sources: dict[str, tuple[GgufFile, Tensor]]

    def raw(self, name: str) -> np.ndarray:
        """A tensor's bytes, uint8, read when they are used."""
        file, tensor = self.sources[name]
        return np.memmap(file.path, np.uint8, "r", tensor.offset, (tensor.bytes,))


def begin(reference: Path, mix: GgufFile, tokens: np.ndarray, folder: Path, emit: Emit) -> Start:
    """Scale the channels of `reference` and round it to the types of `mix`; both files are kept in `folder`.

    Raises UsageError if the two are not of one model, GateError if llama-quantize gave another type than the mix has.
    """
    equal, rounded = folder / "equal.gguf", folder / "rounded.gguf"
    if rounded.is_file():
        loaded = placed(load(equal))
    else:
        loaded = load(reference)
        _same_model(loaded, mix)
        loaded = placed(loaded)
        some = tokens[: max(1, _TOKENS // tokens.shape[1])]
        loudness = equalize(loaded, equal, some, emit)
        matrix = folder / "imatrix.gguf"
        write_imatrix(matrix, loudness, loaded.file, int(some.size), embedding=False)
        own = {tensor.name: tensor.type for tensor in loaded.file.tensors}
        # What is not scaled is taken from the mix, and need not be rounded again.
        types = {
            tensor.name: tensor.type if tensor.name in loudness else own[tensor.name]
            for tensor in mix.tensors
            if len(tensor.shape) > 1
        }
        quantize(ensure(emit), equal, rounded, "Q8_0", imatrix=matrix, types=types, emit=emit)
        fill(loaded, equal)
        loaded = msgspec.structs.replace(loaded, file=describe(equal))
    return Start(loaded, _sources(mix, describe(rounded), written(loaded)))


def _sources(mix: GgufFile, rounded: GgufFile, scaled: set[str]) -> dict[str, tuple[GgufFile, Tensor]]:
    found = {tensor.name: tensor for tensor in rounded.tensors}
    sources = {}
    for tensor in mix.tensors:
        other = found[tensor.name]
        if tensor.name not in scaled:
            sources[tensor.name] = (mix, tensor)
        elif other.type == tensor.type:
            sources[tensor.name] = (rounded, other)
        else:
            raise GateError(
                f"{tensor.name}: llama-quantize gave {other.type} where the mix has {tensor.type}",
                "report this with the plan: it is a fault of pillm",
            )
    return sources


def _same_model(loaded: Loaded, mix: GgufFile) -> None:
    shapes = {tensor.name: tensor.shape for tensor in mix.tensors}
    for tensor in loaded.file.tensors:
        if shapes.get(tensor.name) != tensor.shape:
            raise UsageError(
                f"{mix.path}: tensor {tensor.name} is not that of {loaded.file.path.name}",
                "give a quantized file and the float file that it was made from",
            )
