"""A model as the predictor sees it: every tensor with its shape and type, and what the graph does with them.

It comes from a GGUF file's header or from `config.json` (see `architecture`), never from weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pillm.devices.formats import BLOCKS, FLOATS, tensor_bytes


class Tensor(msgspec.Struct, frozen=True):
    """`shape` has the row's width first, as ggml has it."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of weights."""
        result = 1
        for size in self.shape:
            result *= size
        return result

    @property
    def bytes(self) -> int:
        """Size in the file and in memory."""
        return tensor_bytes(self.type, self.elements)

    @property
    def is_matrix(self) -> bool:
        """Whether a matrix product reads it: a weight of two or three dimensions that is no table of rows."""
        return len(self.shape) > 1 and self.shape[1] > 1 and self.name.endswith(".weight") and "_norm" not in self.name


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a transformer. `kv_heads`, `sliding` and `recurrent` are one a layer."""

    architecture: str
    """llama.cpp's name of it."""
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    vocabulary: int
    context_length: int
    sliding_window: int = 0
    """Tokens that a sliding layer looks back; 0: no layer slides."""
    sliding: tuple[bool, ...] = ()
    recurrent_bytes: int = 0
    """State of recurrent and convolution layers for one sequence, which does not grow with the context."""
    experts: int = 0
    experts_used: int = 0

    def is_sliding(self, layer: int) -> bool:
        """Whether the layer keeps only the window."""
        return bool(self.sliding_window and self.sliding and self.sliding[layer])


class Model(msgspec.Struct, frozen=True):
    """Shape and tensors; `quant` is what the mixture is called (`Q4_K_M`)."""

    name: str
    quant: str
    shape: Shape
    tensors: tuple[Tensor, ...]
    merges: int | None = None
    """Merge rules of the tokenizer, where a file says."""

    @property
    def weight_bytes(self) -> int:
        """All tensors."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def tied(self) -> bool:
        """Whether the input embedding is the output head as well."""
        return all(tensor.name != "output.weight" for tensor in self.tensors)

    @property
    def work(self) -> Work:
        """What a token costs."""
        return work(self.tensors, self.shape)


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a token costs: weights that are multiplied and bytes that are read, by type.

    Decoding a token reads all of it; a prompt's tokens share the reading, and only the last of them needs the head.
    """

    decode_weights: dict[str, float]
    """Weights that decoding a token multiplies, by type."""
    prefill_weights: dict[str, float]
    """The same for a token of a prompt: without the output head."""
    read_bytes: int
    kv_elements: float
    """Numbers that a token of context adds to what decoding reads, in the layers that see the whole context."""
    sliding_elements: float = 0
    """The same in the layers that see only the window."""
    sliding_window: int = 0
    attention: float = 0
    """Multiplications that a prompt's token makes for each token before it."""
    sliding_attention: float = 0


def work(tensors: Iterable[Tensor], shape: Shape) -> Work:
    """Sum up tensors. An untied input embedding and unused experts are neither read nor multiplied."""
    tensors = tuple(tensors)
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    decode: dict[str, float] = {}
    prefill: dict[str, float] = {}
    read = 0.0
    for tensor in tensors:
        embedding = tensor.name in ("token_embd.weight", "per_layer_token_embd.weight")
        if embedding and not (tied and tensor.name == "token_embd.weight"):
            continue
        share = shape.experts_used / shape.experts if "_exps." in tensor.name and shape.experts else 1.0
        read += tensor.bytes * share
        if not tensor.is_matrix:
            continue
        decode[tensor.type] = decode.get(tensor.type, 0.0) + tensor.elements * share
        if not (embedding or tensor.name == "output.weight"):
            prefill[tensor.type] = prefill.get(tensor.type, 0.0) + tensor.elements * share
    both = shape.key_length + shape.value_length
    wide = [heads * both for heads in shape.kv_heads]
    attended = [shape.heads * both if heads else 0 for heads in shape.kv_heads]
    slides = [shape.is_sliding(layer) for layer in range(shape.layers)]
    return Work(
        decode_weights=decode,
        prefill_weights=prefill,
        read_bytes=round(read),
        kv_elements=sum(n for n, slide in zip(wide, slides, strict=True) if not slide),
        sliding_elements=sum(n for n, slide in zip(wide, slides, strict=True) if slide),
        sliding_window=shape.sliding_window,
        attention=sum(n for n, slide in zip(attended, slides, strict=True) if not slide),
        sliding_attention=sum(n for n, slide in zip(attended, slides, strict=True) if slide),
    )


def rough_work(
    read_bytes: int, kv_bytes_per_token: int, types: dict[str, int], vocabulary: int = 0, width: int = 0
) -> Work:
    """Work where only sums are known: `types` are bytes of tensors by type, scaled to what a token reads.

    Which type the output head has is not known, so its share of the weights is taken from every type alike.
    """
    known = {kind: size for kind, size in types.items() if kind in BLOCKS}
    total = sum(known.values())
    if total:
        weights = {
            kind: size * read_bytes / total / BLOCKS[kind][1] * BLOCKS[kind][0]
            for kind, size in known.items()
            if kind not in FLOATS or size > 0.05 * total
        }
    else:
        weights = {"Q8_0": read_bytes / 1.0625}
    count = sum(weights.values())
    body = max(0.1, 1 - vocabulary * width / count) if count else 1.0
    elements = kv_bytes_per_token / 2
    return Work(
        decode_weights=weights,
        prefill_weights={kind: number * body for kind, number in weights.items()},
        read_bytes=read_bytes,
        kv_elements=elements,
        # Grouped heads share keys; how many do is not known, so each is counted once.
        attention=elements,
    )
