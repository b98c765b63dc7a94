"""The numbers of a model from the header of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pillm.core.errors import UsageError
from pillm.devices.model import Shape, Tensor


def shape_of(architecture: str, metadata: Mapping[str, object], tensors: Sequence[Tensor], where: str) -> Shape:
    """The numbers of the header; what stands there as a list for each layer is taken from the tensors' shapes.

    Raises UsageError if they are not those of a language model; `where` is what it calls the file.
    """

    def number(key: str, default: int = 0) -> int:
        value = metadata.get(f"{architecture}.{key}", default)
        return int(value) if isinstance(value, int | float) else default

    sizes = {tensor.name: tensor.shape for tensor in tensors}
    layers, width = number("block_count"), number("embedding_length")
    embedding = sizes.get("token_embd.weight")
    if not layers or not width or embedding is None:
        raise UsageError(
            f"{where}: the header does not say layers, width and embedding of a language model",
            "give the GGUF file of a language model",
        )
    queries = max((shape[1] for name, shape in sizes.items() if name.endswith(".attn_q.weight")), default=0)
    heads = number("attention.head_count") or max(1, queries // max(1, number("attention.key_length", 64)))
    length = number("attention.key_length") or width // heads
    value_length = number("attention.value_length") or length
    kv_heads = tuple(_kv_heads(sizes, layer, heads, length, value_length) for layer in range(layers))
    window = number("attention.sliding_window")
    pattern = {"gemma3": 6, "gemma2": 2}.get(architecture, 0)
    forward = max((shape[0] for name, shape in sizes.items() if ".ffn_down" in name), default=4 * width)
    kernel = number("shortconv.l_cache")
    return Shape(
        architecture=architecture,
        layers=layers,
        width=width,
        feed_forward=forward,
        heads=heads,
        kv_heads=kv_heads,
        key_length=length,
        value_length=value_length,
        vocabulary=embedding[1],
        context_length=number("context_length"),
        sliding_window=window if pattern else 0,
        sliding=tuple((layer + 1) % pattern != 0 for layer in range(layers)) if pattern and window else (),
        recurrent_bytes=4 * width * (kernel - 1) * kv_heads.count(0) if kernel else 0,
        experts=number("expert_count"),
        experts_used=number("expert_used_count"),
    )


def _kv_heads(sizes: dict[str, tuple[int, ...]], layer: int, heads: int, length: int, value_length: int) -> int:
    if keys := sizes.get(f"blk.{layer}.attn_k.weight"):
        return keys[1] // length
    if fused := sizes.get(f"blk.{layer}.attn_qkv.weight"):
        return max(1, (fused[1] - heads * length) // (length + value_length))
    return 0
