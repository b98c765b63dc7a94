"""A model's tensors from `config.json` alone: what llama.cpp's converter would write, without a weight at hand.

Names and shapes are facts of llama.cpp's `src/models/*.cpp` and of its converter; a test holds them against
files that the converter wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from pillm.core.errors import UsageError
from pillm.devices.model import Model, Shape, Tensor


class _Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What sets a family apart from a plain Llama. `defaults` stand in for keys that its config may leave out."""

    name: str
    """llama.cpp's name."""
    tied: bool = False
    """Whether embedding and head are one where the config does not say."""
    qkv_bias: bool = False
    head_norms: bool = False
    """Norms of queries and keys, one for all heads."""
    after_norms: bool = False
    """Norms after attention and after the feed-forward layer."""
    bias_norms: bool = False
    fused: bool = False
    """One matrix for queries, keys and values, and one for gate and up."""
    defaults: Mapping[str, Any] = {}


_GEMMA3 = _Kind(
    name="gemma3", tied=True, head_norms=True, after_norms=True,
    defaults={
        "head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262_208,
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "sliding_window": 4096, "max_position_embeddings": 131_072,
    },
)  # fmt: skip

_KINDS: dict[str, _Kind] = {
    "llama": _Kind(name="llama"),
    "mistral": _Kind(name="llama"),
    "mixtral": _Kind(name="llama"),
    "granite": _Kind(name="granite"),
    "qwen2": _Kind(name="qwen2", qkv_bias=True),
    "qwen3": _Kind(name="qwen3", head_norms=True),
    "qwen3_moe": _Kind(name="qwen3moe", head_norms=True),
    "gemma": _Kind(name="gemma", tied=True, defaults={"head_dim": 256}),
    "gemma2": _Kind(name="gemma2", tied=True, after_norms=True, defaults={"head_dim": 256, "sliding_window": 4096}),
    "gemma3_text": _GEMMA3,
    "gemma3": _GEMMA3,
    "phi3": _Kind(name="phi3", fused=True),
    "smollm3": _Kind(name="smollm3", tied=True),
    "lfm2": _Kind(name="lfm2", tied=True, head_norms=True),
    "stablelm": _Kind(name="stablelm", bias_norms=True),
}

KNOWN = tuple(_KINDS)
"""`model_type` of the configs that can be read."""

# llama.cpp's converter cuts the rows that have no token.
_GEMMA3_TOKENS = 262_144
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


def from_config(text: str, where: str, name: str) -> Model:
    """The model of a `config.json`, with matrices in F16; `where` is what errors call the file.

    Raises UsageError with file and line: not JSON, keys that are missing or make no sense, an architecture that is
    not known here.
    """
    config = _Config(text, where)
    kind = _KINDS[config.kind]
    shape = _shape(config, kind)
    tensors = tuple(_tensors(config, kind, shape))
    return Model(name, "F16", shape, tensors)


class _Config:
    """The keys of a text model, with the line of what is wrong."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where = text, where
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"{where}:{error.lineno}: not JSON: {error.msg}", "download the file again") from error
        if not isinstance(values, dict):
            raise UsageError(f"{where}:1: not the config of a model", "give the folder of a model")
        kind = values.get("model_type")
        inner = values.get("text_config")
        self.kind = kind if isinstance(kind, str) else ""
        if self.kind not in _KINDS:
            shown = f"the architecture {kind!r} is not known here" if kind else "it does not say its model_type"
            raise UsageError(
                f"{where}:{self.line('model_type')}: {shown}",
                f"known are: {', '.join(KNOWN)}; a GGUF file of any architecture can be planned with, too",
            )
        if isinstance(inner, dict):
            values = {**values, **inner}
        self.values = {**_KINDS[self.kind].defaults, **{key: v for key, v in values.items() if v is not None}}
        if missing := [key for key in _NEEDED if key not in self.values]:
            raise UsageError(
                f"{where}:1: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
                "a config.json says the sizes of its model; download the file again",
            )

    def line(self, key: str) -> int:
        """The line that a key stands in, or the first."""
        at = self.text.find(f'"{key}"')
        return self.text.count("\n", 0, at) + 1 if at >= 0 else 1

    def number(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 10**9:
            raise UsageError(
                f"{self.where}:{self.line(key)}: {key} must be a whole number from {least} on, not {value!r}",
                "download the file again",
            )
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """A switch."""
        return bool(self.values.get(key, default))

    def layer_types(self) -> list[str] | None:
        """The kind of each layer, if the config lists them."""
        value = self.values.get("layer_types")
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != self.number("num_hidden_layers"):
            raise UsageError(
                f"{self.where}:{self.line('layer_types')}: layer_types must name the kind of every layer",
                "download the file again",
            )
        return [str(item) for item in value]


def _shape(config: _Config, kind: _Kind) -> Shape:
    width, layers, heads = (config.number(key) for key in _NEEDED[:3])
    # Some configs name a head's length, some leave it to be width / heads.
    length = config.number("head_dim", width // heads or 1)
    kv_heads = config.number("num_key_value_heads", heads)
    vocabulary = config.number("vocab_size")
    feed_forward = config.number("intermediate_size")
    per_layer = [kv_heads] * layers
    types = config.layer_types()
    sliding: list[bool] = []
    window = 0
    recurrent = 0
    experts = used = 0
    if kind.name in ("gemma2", "gemma3"):
        window = config.number("sliding_window")
        every = config.number("sliding_window_pattern", config.values.get("_sliding_window_pattern", 6))
        every = 2 if kind.name == "gemma2" else every
        sliding = [t == "sliding_attention" for t in types] if types else [(i + 1) % every != 0 for i in range(layers)]
    if kind.name == "gemma3":
        vocabulary = min(vocabulary, _GEMMA3_TOKENS)
    if kind.name == "lfm2":
        feed_forward = _lfm2_feed_forward(config)
        attends = _lfm2_attends(config, layers, types)
        per_layer = [kv_heads if attends[i] else 0 for i in range(layers)]
        # One f32 row of state a token of the kernel, but for the newest, in each convolution layer.
        recurrent = 4 * width * (config.number("conv_L_cache", 3) - 1) * (layers - sum(attends))
    if config.kind in ("mixtral", "qwen3_moe"):
        experts = config.number("num_local_experts" if "num_local_experts" in config.values else "num_experts")
        used = config.number("num_experts_per_tok")
        if used > experts:
            raise UsageError(
                f"{config.where}:{config.line('num_experts_per_tok')}: {used} of {experts} experts cannot be used",
                "download the file again",
            )
        feed_forward = config.number("moe_intermediate_size", feed_forward)
    return Shape(
        architecture=kind.name,
        layers=layers,
        width=width,
        feed_forward=feed_forward,
        heads=heads,
        kv_heads=tuple(per_layer),
        key_length=length,
        value_length=length,
        vocabulary=vocabulary,
        context_length=config.number("max_position_embeddings", 2048),
        sliding_window=window if any(sliding) else 0,
        sliding=tuple(sliding),
        recurrent_bytes=recurrent,
        experts=experts,
        experts_used=used,
    )


def _lfm2_feed_forward(config: _Config) -> int:
    """LFM2's configs give a width that is still to be cut to two thirds and rounded up."""
    wide = config.number("block_ff_dim", config.number("intermediate_size"))
    if not config.flag("block_auto_adjust_ff_dim", True):
        return wide
    wide = int(float(config.values.get("block_ffn_dim_multiplier", 1.0)) * int(2 * wide / 3))
    multiple = config.number("block_multiple_of", 256)
    return -(-wide // multiple) * multiple


def _lfm2_attends(config: _Config, layers: int, types: list[str] | None) -> list[bool]:
    if types:
        return [item == "full_attention" for item in types]
    indexes = config.values.get("full_attn_idxs")
    if not isinstance(indexes, list):
        raise UsageError(
            f"{config.where}:1: neither layer_types nor full_attn_idxs say which layers have attention",
            "download the file again",
        )
    return [layer in indexes for layer in range(layers)]


def _tensors(config: _Config, kind: _Kind, shape: Shape) -> Iterator[Tensor]:
    width = shape.width
    yield _matrix("token_embd", width, shape.vocabulary)
    yield from _norm("token_embd_norm" if kind.name == "lfm2" else "output_norm", width, kind)
    tied = config.values.get("tie_word_embeddings", config.values.get("tie_embedding", kind.tied))
    if not tied or kind.name == "stablelm":
        yield _matrix("output", width, shape.vocabulary)
    yield from _rope(config, shape)
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        yield from _norm(prefix + "attn_norm", width, kind)
        if shape.kv_heads[layer]:
            yield from _attention(prefix, config, kind, shape)
        else:
            yield _matrix(prefix + "shortconv.in_proj", width, 3 * width)
            yield _matrix(prefix + "shortconv.out_proj", width, width)
            yield Tensor(prefix + "shortconv.conv.weight", "F32", (config.number("conv_L_cache", 3), width))
        if not (kind.name == "stablelm" and config.flag("use_parallel_residual")):
            yield from _norm(prefix + "ffn_norm", width, kind)
        yield from _feed_forward(prefix, config, kind, shape)
        if kind.after_norms:
            yield _vector(prefix + "post_attention_norm.weight", width)
            yield _vector(prefix + "post_ffw_norm.weight", width)


def _attention(prefix: str, config: _Config, kind: _Kind, shape: Shape) -> Iterator[Tensor]:
    queries, keys = shape.heads * shape.key_length, max(shape.kv_heads) * shape.key_length
    bias = kind.qkv_bias or config.flag("attention_bias") or config.flag("use_qkv_bias")
    parts = (
        [("attn_qkv", queries + 2 * keys)] if kind.fused else [("attn_q", queries), ("attn_k", keys), ("attn_v", keys)]
    )
    for name, rows in parts:
        yield _matrix(prefix + name, shape.width, rows)
        if bias:
            yield _vector(f"{prefix}{name}.bias", rows)
    yield _matrix(prefix + "attn_output", queries, shape.width)
    if config.flag("attention_bias") and not kind.qkv_bias:
        yield _vector(prefix + "attn_output.bias", shape.width)
    if kind.head_norms:
        yield _vector(prefix + "attn_q_norm.weight", shape.key_length)
        yield _vector(prefix + "attn_k_norm.weight", shape.key_length)
    if kind.name == "stablelm" and config.flag("qk_layernorm"):
        yield Tensor(prefix + "attn_q_norm.weight", "F32", (shape.key_length, shape.heads))
        yield Tensor(prefix + "attn_k_norm.weight", "F32", (shape.key_length, max(shape.kv_heads)))


def _feed_forward(prefix: str, config: _Config, kind: _Kind, shape: Shape) -> Iterator[Tensor]:
    width, wide = shape.width, shape.feed_forward
    if shape.experts:
        yield Tensor(prefix + "ffn_gate_inp.weight", "F32", (width, shape.experts))
        for name, size in (("ffn_gate", (width, wide)), ("ffn_up", (width, wide)), ("ffn_down", (wide, width))):
            yield Tensor(f"{prefix}{name}_exps.weight", "F16", (*size, shape.experts))
        return
    up = [("ffn_up", 2 * wide)] if kind.fused else [("ffn_gate", wide), ("ffn_up", wide)]
    for name, rows in up:
        yield _matrix(prefix + name, width, rows)
    yield _matrix(prefix + "ffn_down", wide, width)
    if config.flag("mlp_bias"):
        for name, rows in (*up, ("ffn_down", width)):
            yield _vector(f"{prefix}{name}.bias", rows)


def _rope(config: _Config, shape: Shape) -> Iterator[Tensor]:
    """Factors of the frequencies, where the config scales them by parts."""
    scaling = config.values.get("rope_scaling") or config.values.get("rope_parameters")
    if not isinstance(scaling, dict):
        return
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "llama3":
        yield _vector("rope_freqs.weight", shape.key_length // 2)
    elif kind in ("longrope", "su") and isinstance(factors := scaling.get("long_factor"), list):
        yield _vector("rope_factors_long.weight", len(factors))
        yield _vector("rope_factors_short.weight", len(factors))


def _matrix(name: str, columns: int, rows: int) -> Tensor:
    return Tensor(f"{name}.weight", "F16", (columns, rows))


def _vector(name: str, size: int) -> Tensor:
    return Tensor(name, "F32", (size,))


def _norm(name: str, width: int, kind: _Kind) -> Iterator[Tensor]:
    yield _vector(f"{name}.weight", width)
    if kind.bias_norms:
        yield _vector(f"{name}.bias", width)
