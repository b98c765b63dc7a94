"""Equivalence scaling on random models in the shapes of real architectures, with channels made loud on purpose."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pillm.core.events import silent

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.llamacpp, pytest.mark.train]


def _loud(source: Path, target: Path) -> Path:
    """A copy whose norms let a few channels through much louder than the others."""
    from pillm.llamacpp.gguf_file import describe
    from pillm.quantize.weights import decoded

    shutil.copy(source, target)
    file = describe(target)
    for tensor in file.tensors:
        if tensor.name.endswith(("attn_norm.weight", "ffn_norm.weight")):
            values = decoded(file, tensor)
            values[::40] *= 8
            with target.open("r+b") as opened:
                opened.seek(tensor.offset)
                opened.write(values.tobytes())
    return target


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "phi3", "qwen3moe"])
def test_scaled_channels_compute_the_same_and_are_of_more_like_size(
    name: str, random_gguf: Callable[[str], Path], tmp_path: Path
):
    from pillm.quantize.grid.equalize import _loudness, equalize, sites
    from pillm.quantize.weights import fill, load

    path = _loud(random_gguf(name), tmp_path / "loud.gguf")
    loaded = load(path)
    tokens = np.random.default_rng(0).integers(100, 4000, (4, 32))
    ids = torch.from_numpy(tokens)
    readers = [site.reader for site in sites(loaded)]
    assert len(readers) == (6 if name == "qwen3moe" else 8)
    with torch.no_grad():
        before = loaded.model(ids).logits
    spread = _spread(_loudness(loaded, readers, tokens, silent))
    out = tmp_path / "equal.gguf"
    equalize(loaded, out, tokens, silent)
    fill(loaded, out)
    with torch.no_grad():
        after = loaded.model(ids).logits
    # What is left is the rounding of the scaled weights to 16 bits.
    assert float((after - before).norm() / before.norm()) < 0.01
    assert _spread(_loudness(loaded, readers, tokens, silent)) < 0.85 * spread
    assert out.stat().st_size == path.stat().st_size


def _spread(loudness: dict[str, np.ndarray]) -> float:
    """Mean over sites of the logarithm's deviation between channels."""
    return float(np.mean([np.log(power[power > 0]).std() for power in loudness.values()]))
