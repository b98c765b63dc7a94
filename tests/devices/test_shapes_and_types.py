"""Shapes out of config.json, and llama-quantize's mixtures, against what llama.cpp's own programs write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from random_models import CONFIGS

from pillm.core.errors import UsageError
from pillm.core.events import silent
from pillm.devices.architecture import KNOWN, from_config
from pillm.devices.mixture import QUANTS, mixed
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.tool import call
from pillm.plan.run import USUAL
from pillm.plan.source import source

FEW = ("Q4_K_M", "Q3_K_M", "IQ4_NL")
Converted = Callable[[str], tuple[Path, Path]]


def config(**changes: object) -> str:
    whole = {
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000,
    }  # fmt: skip
    return json.dumps({key: value for key, value in {**whole, **changes}.items() if value != "gone"}, indent=1)


@pytest.mark.train
@pytest.mark.llamacpp
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_gives_the_tensors_that_the_converter_writes(name: str, converted: Converted):
    folder, path = converted(name)
    made = from_config((folder / "config.json").read_text(), "config.json", name)
    real = describe(path)
    assert made.shape.architecture == real.architecture
    assert {t.name: (t.type, t.shape, t.bytes) for t in made.tensors} == {
        t.name: (t.type, t.shape, t.bytes) for t in real.tensors
    }


@pytest.mark.train
@pytest.mark.llamacpp
@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_s_header_gives_the_same_shape_as_its_config(name: str, converted: Converted):
    folder, path = converted(name)
    from_header = source(str(path), silent).model
    made = from_config((folder / "config.json").read_text(), "config.json", name)
    assert from_header.shape == made.shape
    assert from_header.work == made.work


@pytest.mark.train
@pytest.mark.llamacpp
@pytest.mark.parametrize(
    ("name", "quants"),
    # Quantizing takes long: fused, convolution and expert layers are tried with the types that treat them differently.
    [("llama", QUANTS), ("qwen2", QUANTS), ("gemma3_text", QUANTS), ("lfm2", FEW), ("phi3", FEW), ("mixtral", FEW)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_tensor_of_every_mixture_is_as_llama_quantize_writes_it(
    name: str, quants: tuple[str, ...], converted: Converted, tools: LlamaCpp, tmp_path: Path
):
    folder, path = converted(name)
    plain = from_config((folder / "config.json").read_text(), "config.json", name)
    for quant in quants:
        same_as_written(tools, path, plain.tensors, plain.shape, quant, tmp_path)


@pytest.mark.model
@pytest.mark.llamacpp
def test_smollm2_has_the_bytes_that_llama_quantize_writes(tools: LlamaCpp, smollm2_gguf: Path, tmp_path: Path):
    half = tmp_path / "half.gguf"
    call(tools, "llama-quantize", ["--allow-requantize", str(smollm2_gguf), str(half), "F16"])
    plain = source(str(half), silent).model
    for quant in USUAL:
        same_as_written(tools, half, plain.tensors, plain.shape, quant, tmp_path)


def same_as_written(tools, path, tensors, shape, quant, folder):
    target = folder / "written.gguf"
    call(tools, "llama-quantize", [str(path), str(target), quant, "2"])
    real, mine = describe(target), mixed(tensors, shape, quant)
    assert {t.name: t.type for t in mine} == {t.name: t.type for t in real.tensors}, quant
    assert sum(tensor.bytes for tensor in mine) == real.tensor_bytes, quant
    target.unlink()


def test_published_models_have_the_number_of_weights_they_are_known_for():
    from pillm.devices.published import model, rows

    for row in rows():
        assert model(row.model, row.quant).parameters == pytest.approx(row.params_b * 1e9, rel=0.03), row.model


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "file:1: not JSON"),
        ("[]", "not the config of a model"),
        (config(hidden_size="gone", vocab_size="gone"), "hidden_size, vocab_size are missing"),
        (config(num_hidden_layers="gone"), "num_hidden_layers is missing"),
        (config(num_attention_heads="eight"), "file:6: num_attention_heads must be a whole number"),
        (config(num_hidden_layers=-1), "file:5: num_hidden_layers"),
        (config(vocab_size=True), "vocab_size must be a whole number"),
        (config(model_type="gone"), "does not say its model_type"),
        (config(model_type="mamba"), "the architecture 'mamba' is not known here"),
        (config(model_type="gemma3_text", layer_types=["full_attention"], sliding_window=512), "every layer"),
        (config(model_type="mixtral", num_local_experts=4, num_experts_per_tok=8), "8 of 4 experts"),
        (config(model_type="lfm2"), "which layers have attention"),
    ],
)
def test_a_config_that_makes_no_sense_is_told_with_its_line(text: str, told: str):
    with pytest.raises(UsageError) as error:
        from_config(text, "file", "x")
    assert told in error.value.message
    assert error.value.hint


def test_an_unknown_architecture_names_those_that_are_known():
    with pytest.raises(UsageError) as error:
        from_config(config(model_type="mamba"), "file", "x")
    assert all(name in error.value.hint for name in KNOWN)


def test_a_mixture_of_experts_reads_only_the_experts_it_uses():
    moe = from_config(
        config(model_type="qwen3_moe", num_experts=16, num_experts_per_tok=4, moe_intermediate_size=128, head_dim=32),
        "file",
        "x",
    )
    experts = sum(t.bytes for t in moe.tensors if "_exps." in t.name)
    embedding = next(t.bytes for t in moe.tensors if t.name == "token_embd.weight")
    assert moe.work.read_bytes == moe.weight_bytes - experts * 12 // 16 - embedding


def test_a_multimodal_config_is_read_by_its_text_part():
    inner = {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "sliding_window": 512}
    model = from_config(json.dumps({"model_type": "gemma3", "text_config": inner}), "file", "x")
    assert (model.shape.width, model.shape.vocabulary, model.shape.key_length) == (640, 262_144, 256)
    assert sum(model.shape.sliding) == 15


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_an_unknown_mixture_is_refused(name: str):
    plain = from_config(config(model_type=name), "file", "x")
    with pytest.raises(KeyError):
        mixed(plain.tensors, plain.shape, "Q9_K")
