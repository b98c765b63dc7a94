from __future__ import annotations

import tempfile
from pathlib import Path

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
