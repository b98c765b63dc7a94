"""Every stock type with the real llama-quantize, on a file of a few small tensors."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from pillm.core.errors import PillmError, ResourceError
from pillm.core.events import Event
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.quantize import NEEDS_IMATRIX, quantize
from pillm.llamacpp.tool import call
from pillm.quantize.options import QuantType

pytestmark = pytest.mark.llamacpp


def small_model(path: Path, width: int) -> Path:
    """The tensors of a llama of two layers, with rows of `width`; no tokenizer, which quantizing needs none of."""
    import gguf
    import numpy as np

    rng = np.random.default_rng(0)
    layers, heads, inner, words = 2, 4, 2 * width, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(1)
    shapes = {"token_embd": (words, width), "output": (words, width)}
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}"] = (width, width)
        shapes |= {f"blk.{layer}.{name}": (inner, width) for name in ("ffn_gate", "ffn_up")}
        shapes[f"blk.{layer}.ffn_down"] = (width, inner)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("even") / "even.gguf", 256)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("odd") / "odd.gguf", 288)


@pytest.mark.parametrize("kind", get_args(QuantType))
def test_every_type_without_an_importance_matrix_works_or_is_known_to_need_one(
    tools: LlamaCpp, even: Path, tmp_path: Path, kind: str
) -> None:
    if kind in NEEDS_IMATRIX:
        with pytest.raises(PillmError, match="requires an i"):
            call(tools, "llama-quantize", [str(even), str(tmp_path / "small.gguf"), kind])
        return
    made = quantize(tools, even, tmp_path / "small.gguf", kind)
    assert made.fallbacks == ()
    assert made.file.file_type == kind
    assert made.file.bits_per_weight < 9


@pytest.mark.parametrize(
    ("kind", "wanted", "got"), [("Q4_K_M", "Q4_K", "Q5_0"), ("IQ4_XS", "IQ4_XS", "IQ4_NL"), ("TQ2_0", "TQ2_0", "Q4_0")]
)
def test_fallbacks_are_those_in_the_file(
    tools: LlamaCpp, odd: Path, tmp_path: Path, kind: str, wanted: str, got: str
) -> None:
    made = quantize(tools, odd, tmp_path / "small.gguf", kind)
    types = {tensor.name: tensor.type for tensor in describe(tmp_path / "small.gguf").tensors}
    assert (wanted, got) in {(each.wanted, each.got) for each in made.fallbacks}
    for each in made.fallbacks:
        assert (types[each.tensor], each.block) == (each.got, 256)
        assert each.columns % 256


def test_a_disk_that_fills_is_told_and_nothing_is_left(tools: LlamaCpp, even: Path, small_disk: Path) -> None:
    with pytest.raises(ResourceError, match="disk is full"):
        quantize(tools, even, small_disk / "small.gguf", "Q8_0")
    assert list(small_disk.iterdir()) == []


def test_an_interrupt_ends_the_tool_and_leaves_nothing(tools: LlamaCpp, even: Path, tmp_path: Path) -> None:
    import psutil

    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    before = psutil.Process().children()
    with pytest.raises(KeyboardInterrupt):
        quantize(tools, even, tmp_path / "small.gguf", "IQ4_XS", emit=interrupt)
    assert list(tmp_path.iterdir()) == []
    assert psutil.Process().children() == before
