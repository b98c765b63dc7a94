from __future__ import annotations

from pathlib import Path

import pytest

from pillm.core.errors import UsageError
from pillm.llamacpp.gguf_file import describe

pytestmark = pytest.mark.model


def test_says_what_the_file_is(smollm2_gguf: Path) -> None:
    found = describe(smollm2_gguf)
    assert (found.architecture, found.file_type, found.vocabulary) == ("llama", "Q4_1", 49152)
    assert (found.parameters, found.context_length) == (134515008, 8192)
    assert (found.bos, found.eos, found.adds_bos) == (1, 2, False)
    assert (found.token_text(found.bos), found.token_text(found.eos)) == ("<|im_start|>", "<|im_end|>")
    assert found.token_text(None) == ""
    assert "<|im_start|>" in found.chat_template
    assert found.is_quantized
    assert 5 < found.bits_per_weight < 6


def test_agrees_with_the_gguf_package_on_every_tensor(smollm2_gguf: Path) -> None:
    import gguf

    theirs = {
        tensor.name: (
            tensor.tensor_type.name,
            tuple(map(int, tensor.shape)),
            int(tensor.n_bytes),
            int(tensor.data_offset),
        )
        for tensor in gguf.GGUFReader(smollm2_gguf).tensors
    }
    ours = {t.name: (t.type, t.shape, t.bytes, t.offset) for t in describe(smollm2_gguf).tensors}
    assert ours == theirs


@pytest.mark.parametrize("size", [5, 23, 24, 100, 3_000, 1_000_000, 1_780_000, 1_800_000, 50_000_000, 98_362_431])
def test_a_file_cut_anywhere_is_told(smollm2_gguf: Path, tmp_path: Path, size: int) -> None:
    cut = tmp_path / "cut.gguf"
    with smollm2_gguf.open("rb") as source:
        cut.write_bytes(source.read(size))
    with pytest.raises(UsageError, match=r"cut\.gguf: the file is cut off or damaged"):
        describe(cut)


@pytest.mark.parametrize("content", [b"", b"GG", b"not a model, but text", b"PK\x03\x04" + bytes(100)])
def test_something_else_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a GGUF file"):
        describe(path)


@pytest.mark.parametrize("version", [1, 4, 0x03000000])
def test_an_unknown_version_is_told(tmp_path: Path, version: int) -> None:
    path = tmp_path / "old.gguf"
    path.write_bytes(b"GGUF" + version.to_bytes(4, "little") + bytes(64))
    with pytest.raises(UsageError, match=f"GGUF version {version}"):
        describe(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        describe(tmp_path / "none.gguf")
