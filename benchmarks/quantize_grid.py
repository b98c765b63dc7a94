"""What scaled channels and error-compensated rounding are worth, matrix by matrix; no model is judged here.

    python benchmarks/quantize_grid.py REFERENCE.gguf TEXT [--tokens 4096] [--layers 4 15 28] [--type Q4_1]

TEXT is any UTF-8 file of some ten thousand words. Even tokens are fitted on, odd ones judged by. Prints, in parts of
10,000 of the output's energy: plain rounding, compensated in the file's order and in falling order of the second
moments, scales refitted, and what activations rounded to 8 bits in blocks of 32 add; for several powers of the scaling.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from pillm.core.events import silent
from pillm.llamacpp.install import ensure
from pillm.llamacpp.tokenize import tokenize
from pillm.quantize.grid.codec import unpack
from pillm.quantize.grid.rounding import _factor, compensated, losses, refitted
from pillm.quantize.grid.watch import watch
from pillm.quantize.weights import decoded, load, placed

PARTS = ("ffn_down", "attn_output", "ffn_gate", "attn_q")
POWERS = (0.0, 0.25, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 15, 28])
    parser.add_argument("--type", default="Q4_1")
    options = parser.parse_args()
    loaded = placed(load(options.reference))
    ids = tokenize(ensure(silent), options.reference, options.text.read_text(encoding="utf-8"))
    tokens = np.array(ids[: options.tokens // 512 * 512]).reshape(-1, 512)
    names = [f"blk.{layer}.{part}.weight" for layer in options.layers for part in PARTS]
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    watch(
        loaded,
        {name: loaded.tensors[name].module for name in names},
        tokens,
        lambda name, x: seen[name].append(x),
        silent,
        "",
    )
    tensors = {tensor.name: tensor for tensor in loaded.file.tensors}
    print(f"{'tensor':28}{'power':>6}{'plain':>9}{'in order':>10}{'falling':>9}{'refitted':>10}{'8 bits':>8}")
    for name in names:
        weights = torch.from_numpy(decoded(loaded.file, tensors[name]))
        for power in POWERS:
            figures = measure(weights, torch.cat(seen[name]), power, GGMLQuantizationType[options.type])
            print(f"{name:28}{power:6.2f}" + "".join(f"{figure:9.2f}" for figure in figures), flush=True)


def measure(weights: torch.Tensor, x: torch.Tensor, power: float, kind: GGMLQuantizationType) -> list[float]:
    """Losses of the steps, each on its own, in parts of 10,000 of the output's energy on the odd tokens."""
    rms = x[::2].square().mean(0).sqrt()
    scale = (rms / rms.median()).clamp(min=0.02) ** power
    weights, x = weights * scale, x / scale
    fit, judge = (half.T @ half / len(half) for half in (x[::2], x[1::2]))
    start = unpack(quantize(weights.numpy(), kind), kind)
    factor, order = _factor(fit)
    plain_order = torch.arange(len(order))
    back = torch.argsort(order)
    unsorted = compensated(weights, _unsorted(fit, factor, back), plain_order, start)
    falling = compensated(weights, factor, order, start)
    steps = [start, unsorted, falling, refitted(weights, fit, falling)]
    energy = float(torch.trace(weights @ judge @ weights.T)) / 1e4
    blocks = x[1::2].reshape(len(x[1::2]), -1, 32)
    unit = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-20) / 127
    error = ((blocks / unit).round() * unit - blocks).flatten(1) @ weights.T
    return [float(losses(weights, judge, step).sum()) / energy for step in steps] + [
        float(error.square().sum()) / len(error) / energy
    ]


def _unsorted(hessian: torch.Tensor, factor: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """The factor for the file's own order, with the damping that the sorted one has."""
    inverse = (factor.T @ factor)[back][:, back]
    return torch.linalg.cholesky(inverse + 1e-9 * inverse.diagonal().mean() * torch.eye(len(hessian)), upper=True)


if __name__ == "__main__":
    main()
