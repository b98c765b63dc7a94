"""Random weights in the shapes of several architectures, as transformers writes and llama.cpp's converter reads them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from random_models import CONFIGS

from pillm.llamacpp.convert import convert
from pillm.llamacpp.install import LlamaCpp


@pytest.fixture(scope="session")
def converted(
    tools: LlamaCpp, smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """The folder that transformers wrote and the f16 file of it, by the name in CONFIGS."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)

    @cache
    def make(name: str) -> tuple[Path, Path]:
        family, own = CONFIGS[name]
        common = {
            "vocab_size": 49152, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 10,
            "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        }  # fmt: skip
        kind = "Gemma3Text" if family == "Gemma3" else family
        config = getattr(transformers, f"{kind}Config")(**{**common, **own})
        folder = tmp_path_factory.mktemp(name) / "model"
        torch.manual_seed(0)
        getattr(transformers, f"{family}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        text = (folder / "config.json").read_text()
        if name == "phi3":
            # The converter takes SentencePiece for granted with this family, unless the tokenizer says otherwise.
            place = folder / "tokenizer_config.json"
            place.write_text(json.dumps({**json.loads(place.read_text()), "tokenizer_class": "GPT2Tokenizer"}))
        if name == "qwen2":
            # The converter's tokenizer class follows the model's type, and this tokenizer is a Llama's.
            (folder / "config.json").write_text(json.dumps({**json.loads(text), "model_type": "llama"}))
        target = folder.parent / f"{name}.gguf"
        convert(tools, folder, target, "f16")
        (folder / "config.json").write_text(text)
        return folder, target

    return make
