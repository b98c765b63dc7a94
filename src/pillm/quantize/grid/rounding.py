"""Codes of one matrix chosen so that later ones make up for what earlier ones lost.

`compensated` is GPTQ (Frantar et al. 2022; LDLQ of QuIP, Chee et al. 2023, is the same) inside a grid whose scales
stand: columns in falling order of their second moment, each rounded, its error spread over those to come by the
inverse second moments' Cholesky factor. `refitted` then moves the scales to the least squares of the same measure,
`tr((W - Q) H (W - Q)')` with `H = X'X`, the codes standing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pillm.quantize.grid.codec import Packed, joined

DAMPING = 0.05
"""Part of the mean second moment that is added to each; GPTQ takes 0.01, which fits short calibration texts too well."""
_RIDGE = 1e-3
"""How much the scales' least squares is held to the scales before."""
_COLUMNS = 64
_ROWS = 8192
"""Rows at a time: an embedding has very many, and its normal equations would fill the memory."""


def rounded(weights: torch.Tensor, hessian: torch.Tensor, start: Packed) -> Packed:
    """Codes and scales for `weights` float32 (rows, columns) under `hessian` float32 (columns, columns).

    Scales start from `start`'s. Never worse than `start` under the measure: a row that would be keeps what it had.
    """
    factor, order = _factor(hessian)
    parts = []
    for first in range(0, len(weights), _ROWS):
        rows = slice(first, first + _ROWS)
        some, before = weights[rows], start.rows(rows)
        now = compensated(some, factor, order, before)
        for new in (now, refitted(some, hessian, now)):
            before = _better(some, hessian, before, new)
        parts.append(before)
    return joined(parts)


def losses(weights: torch.Tensor, hessian: torch.Tensor, packed: Packed) -> torch.Tensor:
    """`(w - q) H (w - q)'` of every row."""
    error = torch.from_numpy(packed.decode()).to(weights.device) - weights
    return ((error @ hessian) * error).sum(1)


def compensated(weights: torch.Tensor, factor: torch.Tensor, order: torch.Tensor, packed: Packed) -> Packed:
    """Codes for `packed`'s scales; `factor` and `order` are `_factor(hessian)`."""
    device = weights.device
    grid = packed.grid
    values = torch.from_numpy(grid.values).to(device)
    middles = (values[1:] + values[:-1]) / 2
    left = weights[:, order].T.contiguous()
    groups = order // grid.group
    steps, offsets = packed.steps()
    step = torch.from_numpy(steps).to(device).T[groups]
    offset = None if offsets is None else torch.from_numpy(offsets).to(device).T[groups]
    inverse = torch.where(step == 0, torch.zeros_like(step), 1 / step)
    columns, rows = left.shape
    codes = torch.empty((columns, rows), dtype=torch.uint8, device=device)
    for first in range(0, columns, _COLUMNS):
        last = min(columns, first + _COLUMNS)
        errors = torch.empty((last - first, rows), device=device)
        for at in range(first, last):
            wanted = left[at] if offset is None else left[at] - offset[at]
            level = wanted * inverse[at]
            if grid.table:
                code = torch.bucketize(level, middles)
                level = values[code]
            else:
                level = level.round_().clamp_(grid.lowest, grid.lowest + grid.levels - 1)
                code = level - grid.lowest
            codes[at] = code.to(torch.uint8)
            error = errors[at - first] = (wanted - level * step[at]) / factor[at, at]
            if at + 1 < last:
                left[at + 1 : last].addr_(factor[at, at + 1 : last], error, alpha=-1)
        if last < columns:
            left[last:].addmm_(factor[first:last, last:].T, errors, alpha=-1)
    back = torch.empty_like(codes)
    back[order] = codes
    return packed.with_codes(back.T.contiguous().cpu().numpy())


def refitted(weights: torch.Tensor, hessian: torch.Tensor, packed: Packed) -> Packed:
    """Scales and minima of the blocks by least squares for the codes as they are, rounded to float16.

    Whole-numbered scales of groups stand. Every row has `blocks x (1 or 2)` unknowns, solved together.
    """
    grid = packed.grid
    rows, columns = packed.codes.shape
    blocks = columns // grid.block
    basis = [torch.from_numpy(part).to(weights.device) for part in _basis(packed)]
    known = [packed.scale, *([] if packed.minimum is None else [packed.minimum])]
    now = torch.from_numpy(np.stack([part.astype(np.float32) for part in known], 1)).to(weights.device)
    error = weights - torch.from_numpy(packed.decode()).to(weights.device)
    pull = error @ hessian
    count = len(basis)
    right = torch.stack([(pull * part).reshape(rows, blocks, -1).sum(2) for part in basis], 1).reshape(rows, -1)
    normal = weights.new_empty((rows, count, blocks, count, blocks))
    for block in range(blocks):
        these = slice(block * grid.block, (block + 1) * grid.block)
        for one, part in enumerate(basis):
            reached = part[:, these] @ hessian[these]
            for two, other in enumerate(basis):
                normal[:, one, block, two] = (reached * other).reshape(rows, blocks, -1).sum(2)
    normal = normal.reshape(rows, count * blocks, count * blocks)
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal += _RIDGE * diagonal + diagonal.mean(1, keepdim=True) * 1e-6 + 1e-30
    solved, info = torch.linalg.solve_ex(normal, right)
    solved[(info != 0) | ~torch.isfinite(solved).all(1)] = 0
    new = (now + solved.reshape(rows, count, blocks)).cpu().numpy().astype(np.float16)
    return replace(packed, scale=new[:, 0], minimum=None if packed.minimum is None else new[:, 1])


def _basis(packed: Packed) -> list[np.ndarray]:
    """What a block's scale, and its minimum, are multiplied by at each column; float32 (rows, columns) each."""
    grid = packed.grid
    levels = grid.values[packed.codes]
    if packed.sub_scale is not None:
        levels = levels * np.repeat(packed.sub_scale.astype(np.float32), grid.group, axis=1)
    if packed.minimum is None:
        return [levels]
    if packed.sub_minimum is None:
        return [levels, np.ones_like(levels)]
    return [levels, -np.repeat(packed.sub_minimum.astype(np.float32), grid.group, axis=1)]


def _factor(hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The upper Cholesky factor of the damped inverse, and the order of columns that it is for."""
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    damped = hessian[order][:, order].clone()
    mean = damped.diagonal().mean().clamp(min=1e-20)
    damping = DAMPING
    while True:
        trial = damped.clone()
        trial.diagonal().add_(damping * mean)
        lower, info = torch.linalg.cholesky_ex(trial)
        if int(info) == 0:
            inverse = torch.cholesky_inverse(lower)
            upper, info = torch.linalg.cholesky_ex(inverse, upper=True)
            if int(info) == 0:
                return upper, order
        # Float32 moments of few tokens may not be positive definite; more damping always is.
        damping *= 10


def _better(weights: torch.Tensor, hessian: torch.Tensor, old: Packed, new: Packed) -> Packed:
    """Row by row the one that loses less."""
    wins = (losses(weights, hessian, new) < losses(weights, hessian, old)).cpu().numpy()[:, None]
    return old if not wins.any() else Packed(old.grid, *(
        None if mine is None or other is None else np.where(wins, other, mine)
        for mine, other in zip(old.fields(), new.fields(), strict=True)
    ))  # pyright: ignore[reportArgumentType]  # fmt: skip
