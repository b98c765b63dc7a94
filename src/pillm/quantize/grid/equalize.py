"""Scale channels so that blocks hold weights and activations of like size, without changing what the model computes.

A norm's output channel divided by `s`, and the columns that read it multiplied by `s`, give the same product. So do
rows of `ffn_up` against columns of `ffn_down` (the gate multiplies channel by channel), and rows of `attn_v` against
columns of `attn_output` (attention mixes positions, not channels). Weights that meet large activations grow, and are
rounded relatively finer; the activations lose their outliers, which helps where llama.cpp rounds them to 8 bits.

The idea is SmoothQuant's (Xiao et al. 2022) and AWQ's (Lin et al. 2023); `s = rms(activation) ** POWER` is AWQ's form.
docs/quantization-grid.md has the figures for other powers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pillm.core.artifacts import atomic_file
from pillm.core.errors import writing
from pillm.core.events import Emit
from pillm.llamacpp.gguf_file import Tensor
from pillm.quantize.grid.watch import watch
from pillm.quantize.weights import Loaded, decoded

POWER = 0.25
"""Larger ones smooth activations more, but leave error-compensated rounding less to compensate with."""

_QUIET = 0.02
"""Channels below this part of the median count as if they were so loud: a dead channel must not vanish."""


class Site(NamedTuple):
    """A vector of channels: what writes it (a norm, or rows of a matrix and its bias), and what reads it."""

    reader: str
    """The tensor at whose module the channels are watched."""
    readers: tuple[str, ...]
    norm: str = ""
    writer: str = ""
    first_row: int = 0
    repeat: int = 1
    """How many heads read one head of `writer`."""
    width: int = 1
    """Rows of a head."""


def sites(loaded: Loaded) -> Iterator[Site]:
    """All places of a model where channels can be scaled."""
    known = loaded.tensors

    def there(*names: str) -> tuple[str, ...]:
        return tuple(name for name in names if name in known)

    layer = 0
    while f"blk.{layer}.attn_output.weight" in known:
        at = f"blk.{layer}."
        layer += 1
        fused = f"{at}attn_qkv.weight" in known
        inputs = there(*(f"{at}{part}.weight" for part in ("attn_qkv", "attn_q", "attn_k", "attn_v")))
        yield Site(inputs[0], inputs, norm=f"{at}attn_norm.weight")
        yield _heads(loaded, at, fused)
        parts = ("ffn_gate_inp", "ffn_gate", "ffn_up", "ffn_gate_exps", "ffn_up_exps")
        inputs = there(*(f"{at}{part}.weight" for part in parts))
        if f"{at}ffn_norm.weight" in known:
            yield Site(inputs[0], inputs, norm=f"{at}ffn_norm.weight")
        down = f"{at}ffn_down.weight"
        if down in known:
            # Phi's gate and up are one matrix, gates first.
            rows = known[f"{at}ffn_up.weight"].shape[0] - known[down].shape[1]
            yield Site(down, (down,), writer=f"{at}ffn_up.weight", first_row=rows)


def _heads(loaded: Loaded, at: str, fused: bool) -> Site:
    file, known = loaded.file, loaded.tensors
    out = f"{at}attn_output.weight"
    columns = known[out].shape[1]
    heads = int(file.metadata[f"{file.architecture}.attention.head_count"])
    repeat = heads // int(file.metadata.get(f"{file.architecture}.attention.head_count_kv", heads))
    writer = f"{at}{'attn_qkv' if fused else 'attn_v'}.weight"
    first = known[writer].shape[0] - columns // repeat
    return Site(out, (out,), writer=writer, first_row=first, repeat=repeat, width=columns // heads)


def equalize(loaded: Loaded, out: Path, tokens: np.ndarray, emit: Emit) -> dict[str, np.ndarray]:
    """Write `out`: the file that `loaded` was read from, with its channels scaled; types, shapes, metadata stay.

    `tokens` int (sequences, context) is calibration text. Scaled weights are rounded to the file's float type, which
    is all that the two models differ by. Returns what the columns of each scaled matrix were multiplied with, float32
    (columns,): its inputs are divided by that. Raises ResourceError (disk).
    """
    every = list(sites(loaded))
    loudness = _loudness(loaded, [site.reader for site in every], tokens, emit)
    tensors = {tensor.name: tensor for tensor in loaded.file.tensors}
    changed: dict[str, np.ndarray] = {}
    scales: dict[str, np.ndarray] = {}

    def weights(name: str) -> np.ndarray:
        if name not in changed:
            changed[name] = decoded(loaded.file, tensors[name]).copy()
        return changed[name]

    for site in every:
        # Heads that read the same values share their scales.
        power = loudness[site.reader].reshape(-1, site.repeat, site.width).mean(1).reshape(-1)
        scale = _scale(power)
        columns = np.repeat(scale.reshape(-1, 1, site.width), site.repeat, axis=1).reshape(-1)
        for name in site.readers:
            weights(name)[...] *= columns
            scales[name] = columns
        if site.norm:
            weights(site.norm)[...] /= scale
        else:
            weights(site.writer)[site.first_row :] /= scale[:, None]
            bias = site.writer.removesuffix("weight") + "bias"
            if bias in tensors:
                weights(bias)[site.first_row :] /= scale
    with writing(out), atomic_file(out) as file:
        with loaded.file.path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 24)
        for name, values in changed.items():
            file.seek(tensors[name].offset)
            file.write(encoded(values, tensors[name]))
    return scales


def _scale(power: np.ndarray) -> np.ndarray:
    rms = np.sqrt(power)
    middle = float(np.median(rms)) or 1.0
    return np.maximum(rms / middle, _QUIET).astype(np.float32) ** np.float32(POWER)


def encoded(values: np.ndarray, tensor: Tensor) -> bytes:
    """Weights as the bytes of a float tensor."""
    values = np.ascontiguousarray(values, np.float32)
    if tensor.type == "F16":
        return values.astype(np.float16).tobytes()
    if tensor.type == "BF16":
        return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    return values.tobytes()


def _loudness(loaded: Loaded, readers: list[str], tokens: np.ndarray, emit: Emit) -> dict[str, np.ndarray]:
    """Mean square of every channel that the named tensors read, float32 (columns,)."""
    sums: dict[str, torch.Tensor] = {}

    def see(name: str, x: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0) + x.square().sum(0)

    watch(loaded, {name: loaded.tensors[name].module for name in readers}, tokens, see, emit, "loudness of channels")
    return {name: (total / tokens.size).cpu().numpy() for name, total in sums.items()}
