"""The whole method on a small random model: a mix of types by llama-quantize, better codes and scales in the same file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pillm.core.errors import UsageError
from pillm.core.events import Log, silent
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.tool import call

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.llamacpp, pytest.mark.train]

_TYPES = {"attn_q": "q4_0", "attn_k": "q4_1", "attn_v": "q8_0", "attn_output": "iq4_nl", "ffn_gate": "q4_K",
          "ffn_up": "q5_0", "ffn_down": "q6_K"}  # fmt: skip


def _mix(tools: LlamaCpp, source: Path, target: Path) -> Path:
    types = [argument for part, kind in _TYPES.items() for argument in ("--tensor-type", f"{part}={kind}")]
    more = ["--token-embedding-type", "q5_1", "--output-tensor-type", "q5_K"]
    call(tools, "llama-quantize", [*types, *more, str(source), str(target), "Q4_0"])
    return target


def _tokens(sequences: int, seed: int) -> np.ndarray:
    """Random, but with few different tokens, so that training has something in common with what it is judged by."""
    return np.random.default_rng(seed).integers(300, 340, (sequences, 64))


def _divergence(reference: Path, other: Path, tokens: np.ndarray) -> float:
    from pillm.quantize.weights import fill, load

    loaded = load(reference)
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        base = loaded.model(ids).logits.log_softmax(-1)
        fill(loaded, other)
        got = loaded.model(ids).logits.log_softmax(-1)
    return float((base.exp() * (base - got)).sum(-1).mean())


@pytest.mark.parametrize("name", ["llama", "llama3"])
def test_rounding_makes_the_file_better_at_the_same_bytes_and_types(
    name: str, random_gguf: Callable[[str], Path], tools: LlamaCpp, tmp_path: Path
):
    from pillm.quantize.grid import improve

    reference = random_gguf(name)
    mix = _mix(tools, reference, tmp_path / "mix.gguf")
    out, again = tmp_path / "better.gguf", tmp_path / "again.gguf"
    improve(reference, mix, out, _tokens(64, 0), "gptq", None, silent)
    before, after = describe(mix), describe(out)
    assert before.bytes == after.bytes
    assert [(t.name, t.type, t.offset) for t in before.tensors] == [(t.name, t.type, t.offset) for t in after.tensors]
    assert _divergence(reference, out, _tokens(8, 1)) < 0.8 * _divergence(reference, mix, _tokens(8, 1))
    assert not list(tmp_path.glob("*.work"))
    if name == "llama":
        improve(reference, mix, again, _tokens(64, 0), "gptq", None, silent)
        assert again.read_bytes() == out.read_bytes()


class _Killed(BaseException):
    pass


def test_training_lowers_held_out_kl_and_a_killed_run_goes_on_to_the_same_bytes(
    random_gguf: Callable[[str], Path], tools: LlamaCpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from pillm.quantize.grid import distill, improve

    monkeypatch.setattr(distill, "_STEP_TOKENS", 512)
    monkeypatch.setattr(distill, "_CHECK_EVERY", 4)
    monkeypatch.setattr(distill, "_SAVE_SECONDS", 0.0)
    reference = random_gguf("llama3")
    mix = _mix(tools, reference, tmp_path / "mix.gguf")
    straight, broken = tmp_path / "straight.gguf", tmp_path / "broken.gguf"
    tokens = _tokens(80, 0)
    improve(reference, mix, straight, tokens, "gptq+distill", None, silent)
    assert straight.stat().st_size == mix.stat().st_size

    def die(event: object) -> None:
        if getattr(event, "label", "") == "distillation" and getattr(event, "done", 0) == 5:
            raise _Killed

    with pytest.raises(_Killed):
        improve(reference, mix, broken, tokens, "gptq+distill", None, die)
    assert not broken.exists()
    said: list[str] = []
    improve(
        reference, mix, broken, tokens, "gptq+distill", None,
        lambda event: said.append(event.message) if isinstance(event, Log) else None,
    )  # fmt: skip
    assert not any("before training" in line for line in said)
    assert broken.read_bytes() == straight.read_bytes()
    rounded = tmp_path / "rounded.gguf"
    improve(reference, mix, rounded, tokens, "gptq", None, silent)
    held = tokens[-10:]
    assert _divergence(reference, straight, held) < _divergence(reference, rounded, held)


def test_a_file_of_another_model_is_refused(random_gguf: Callable[[str], Path], tools: LlamaCpp, tmp_path: Path):
    from pillm.quantize.grid import improve

    with pytest.raises(UsageError, match="is not that of"):
        improve(random_gguf("llama3"), random_gguf("qwen2"), tmp_path / "out.gguf", _tokens(2, 0), "gptq", None, silent)
    assert not (tmp_path / "out.gguf").exists()
