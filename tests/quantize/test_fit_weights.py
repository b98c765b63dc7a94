"""A GGUF file as a torch model, for random models of each architecture and for the real SmolLM2."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pillm.core.errors import UsageError
from pillm.core.events import silent
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp

torch = pytest.importorskip("torch")

from pillm.llamacpp.perplexity import kl_divergence  # noqa: E402
from pillm.quantize.fitting.judging import save_logits  # noqa: E402
from pillm.quantize.weights import decoded, fill, load  # noqa: E402

pytestmark = [pytest.mark.llamacpp, pytest.mark.model, pytest.mark.train]

ARCHITECTURES = ["llama", "llama3", "qwen2", "qwen3", "gemma3", "phi3", "qwen3moe"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torch_predicts_what_llama_cpp_predicts_and_every_matrix_has_its_place(
    tools: LlamaCpp, random_gguf: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    path = random_gguf(name)
    loaded = load(path)
    file = describe(path)
    assert set(loaded.tensors) == {t.name for t in file.tensors if t.name != "rope_freqs.weight"}
    tokens = np.random.default_rng(0).integers(100, 40_000, (2, 128)).astype(np.int32)
    base = tmp_path / "base.logits"
    save_logits(loaded, tokens, base, silent, "reference")
    found = kl_divergence(tools, path, base)
    # Two implementations in 32 bit floats and f16: far below what any quantization does.
    assert found.kl_mean < 2e-3
    assert found.same_top > 0.97
    assert len(found.kl_chunks) == 2
    assert np.mean(found.kl_chunks) == pytest.approx(found.kl_mean, abs=2e-5)


@pytest.mark.parametrize("name", ["llama3", "gemma3", "qwen3moe"])
def test_a_weight_written_in_the_files_layout_is_read_back_and_its_gradient_lies_in_the_same_place(
    random_gguf: Callable[[str], Path], name: str
) -> None:
    loaded = load(random_gguf(name))
    for slot in loaded.tensors.values():
        before = slot.read()
        mark = before.clone()
        place = tuple(size // 3 for size in slot.shape)
        mark[place] += 1
        slot.write(mark)
        assert torch.allclose(slot.read(), mark, atol=1e-6)
        slot.parameter.grad = slot.parameter.detach().clone()
        gradient = slot.gradient()
        assert gradient is not None
        assert float(gradient[place]) == pytest.approx(float(mark[place]) - slot.plus, abs=1e-5)
        slot.parameter.grad = None
        slot.write(before)
        assert torch.equal(slot.read(), before) or slot.plus
        with pytest.raises(ValueError, match=r"instead of"):
            slot.write(mark.reshape(-1)[:-1])


def test_a_quantized_file_of_the_model_can_be_put_in_its_place(
    tools: LlamaCpp, random_gguf: Callable[[str], Path], tmp_path: Path
) -> None:
    from pillm.llamacpp.quantize import quantize

    path = random_gguf("llama3")
    loaded = load(path)
    small = quantize(tools, path, tmp_path / "small.gguf", "Q4_K_S").file
    fill(loaded, small.path)
    for tensor in small.tensors:
        if tensor.name in loaded.tensors:
            assert np.array_equal(loaded.tensors[tensor.name].read().numpy(), decoded(small, tensor))
    with pytest.raises(UsageError, match="of this shape"):
        fill(loaded, random_gguf("qwen3"))


def test_weights_that_are_no_numbers_are_told_with_the_tensors_name(
    random_gguf: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "broken.gguf"
    shutil.copyfile(random_gguf("llama3"), path)
    tensor = next(t for t in describe(path).tensors if t.name == "blk.1.ffn_up.weight")
    data = np.memmap(path, np.uint8, "r+")
    data[tensor.offset : tensor.offset + 4].view(np.float16)[:] = np.nan
    data.flush()
    with pytest.raises(UsageError, match=r"blk\.1\.ffn_up\.weight has 2 weights that are no numbers"):
        load(path)


def test_an_architecture_that_has_no_place_here_is_told(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UsageError, match="does not know the architecture mamba"):
        load(path)
