from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.tool import call


@pytest.fixture(scope="session")
def f16(tools: LlamaCpp, smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's weights in 16 bits (from the grid of its quantized file)."""
    path = tmp_path_factory.mktemp("f16") / "smollm2-f16.gguf"
    call(tools, "llama-quantize", ["--allow-requantize", str(smollm2_gguf), str(path), "F16"])
    return path


@pytest.fixture(autouse=True)
def logs_stay_with_the_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that fails leaves its log in the temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("logs")))


# Rows of 256 and of 288 (no multiple of 256); tied and untied; shared and own heads; fused matrices; experts.
_ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama3": ("Llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024}, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"hidden_size": 288, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 64, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3", {"head_dim": 64, "hidden_size": 320, "sliding_window": 512}),
    "phi3": ("Phi3", {"num_key_value_heads": 8, "tie_word_embeddings": False}),
    "qwen3moe": ("Qwen3Moe", {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "head_dim": 32, "norm_topk_prob": True}),
}  # fmt: skip


@pytest.fixture(scope="session")
def random_gguf(tools: LlamaCpp, smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """An f16 file of random weights in the shape of an architecture, as llama.cpp's converter writes it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from pillm.llamacpp.convert import convert

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)

    @cache
    def make(name: str) -> Path:
        family, own = _ARCHITECTURES[name]
        common = {
            "vocab_size": 49152, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
            "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            # Weights large enough for predictions that are not flat.
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.1,
        }  # fmt: skip
        kind = "Gemma3Text" if family == "Gemma3" else family
        config = getattr(transformers, f"{kind}Config")(**{**common, **own})
        folder = tmp_path_factory.mktemp(name) / "model"
        torch.manual_seed(0)
        getattr(transformers, f"{family}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if name == "phi3":
            # The converter takes SentencePiece for granted with this family, unless the tokenizer says otherwise.
            place = folder / "tokenizer_config.json"
            place.write_text(json.dumps({**json.loads(place.read_text()), "tokenizer_class": "GPT2Tokenizer"}))
        if name == "qwen2":
            # The converter's tokenizer class follows the model's type, and this tokenizer is a Llama's.
            place = folder / "config.json"
            place.write_text(json.dumps({**json.loads(place.read_text()), "model_type": "llama"}))
        target = folder.parent / f"{name}.gguf"
        convert(tools, folder, target, "f16")
        return target

    return make
