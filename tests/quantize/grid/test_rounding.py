"""Rounding under correlated activations: random weights, random activations of low rank, gguf's own rounding as the rival."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from pillm.quantize.grid.codec import GRIDS, Packed, pack, unpack

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.train


def _inputs(columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 40, generator=generator) @ torch.randn(40, columns, generator=generator)
    x += torch.randn(2000, columns, generator=generator)
    return torch.randn(64, columns, generator=generator), x.T @ x / len(x)


def _start(kind: GGMLQuantizationType, weights: torch.Tensor) -> Packed:
    """gguf's rounding; it cannot write K types, so those start from plausible scales and no sensible codes."""
    grid = GRIDS[kind]
    if not grid.nested:
        if kind.name == "IQ4_NL":
            raw = quantize(weights.numpy(), GGMLQuantizationType.Q4_0)
            start = unpack(raw, GGMLQuantizationType.Q4_0)
            return Packed(grid, start.codes, (start.scale * np.float16(8 / 113)).astype(np.float16))
        return unpack(quantize(weights.numpy(), kind), kind)
    rows, columns = weights.shape
    blocks, groups = columns // grid.block, columns // grid.group
    sub = np.full((rows, groups), 20, np.int8) if kind.name != "Q2_K" else np.full((rows, groups), 8, np.int8)
    span = 6.0 / (float(grid.values[-1] - grid.values[0]) * float(sub[0, 0]))
    scale = np.full((rows, blocks), span, np.float16)
    if not grid.minimum:
        return Packed(grid, np.zeros((rows, columns), np.uint8), scale, None, sub)
    least = np.full((rows, blocks), 3.0 / float(sub[0, 0]), np.float16)
    return Packed(grid, np.zeros((rows, columns), np.uint8), scale, least, sub, sub.copy())


@pytest.mark.parametrize("kind", GRIDS, ids=lambda kind: kind.name)
def test_loses_far_less_than_rounding_one_by_one_in_every_grid(kind: GGMLQuantizationType):
    from pillm.quantize.grid.latents import _places
    from pillm.quantize.grid.rounding import losses, rounded

    weights, hessian = _inputs(512)
    start = _start(kind, weights)
    nearest = start.with_codes(np.clip(np.rint(_places(start, weights.numpy())), 0, start.grid.levels - 1))
    best = rounded(weights, hessian, nearest)
    assert (losses(weights, hessian, best) <= losses(weights, hessian, nearest)).all()
    assert losses(weights, hessian, best).sum() < 0.7 * losses(weights, hessian, nearest).sum()
    assert unpack(pack(best), kind).decode().tobytes() == best.decode().tobytes()


def test_inputs_that_are_always_nought_and_blocks_of_noughts_do_no_harm():
    from pillm.quantize.grid.rounding import losses, rounded

    weights, hessian = _inputs(256)
    weights[:, :32] = 0
    hessian[40:60] = 0
    hessian[:, 40:60] = 0
    start = _start(GGMLQuantizationType.Q4_1, weights)
    best = rounded(weights, hessian, start)
    assert np.isfinite(best.decode()).all()
    assert (losses(weights, hessian, best) <= losses(weights, hessian, start)).all()
