"""What is trained of one tensor, Adam's state of it, and the way from there to the file's codes and scales."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from pillm.quantize.grid.codec import Packed
from pillm.quantize.weights import Slot

LATENT_RATE = 1e-3
"""Of a step of the grid."""
SCALE_RATE = 1.5e-4
"""Of a block's scale; a minimum's is the same part of half the block's range."""
NORM_RATE = 1e-4
"""Of a norm's weight."""

_FREE = 0.45
_BETAS = (0.9, 0.98)
_TINY = 1e-20
_ROWS = 4_000_000
"""Weights at a time, so that a large embedding's temporaries stay small."""


@dataclass
class Trained:
    """A tensor in training. `values` are its numbers by name, each with a rate of the same or a broadcastable shape."""

    slot: Slot
    packed: Packed | None
    values: dict[str, torch.Tensor]
    rates: dict[str, torch.Tensor]
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.moments = {name: (torch.zeros_like(v), torch.zeros_like(v)) for name, v in self.values.items()}

    def show(self) -> None:
        """Put what the file would decode to into the model."""
        if self.packed is None:
            self.slot.write(self.values["norm"])
        else:
            self.slot.write(torch.from_numpy(_packed(self.packed, self.values).decode()))

    def learn(self, step: int, rate: float) -> None:
        """One step of Adam from the parameter's gradient, which is dropped; then `show`."""
        gradient = self.slot.gradient()
        if gradient is None:
            return
        if self.packed is None:
            self._move("norm", slice(None), gradient.float().cpu(), step, rate)
        else:
            rows, columns = self.packed.codes.shape
            for first in range(0, rows, max(1, _ROWS // columns)):
                some = slice(first, first + max(1, _ROWS // columns))
                for name, pull in _pulls(
                    self.packed.rows(some), self.values, some, gradient[some].float().cpu()
                ).items():
                    self._move(name, some, pull, step, rate)
            self.values["codes"].clamp_(-0.49, self.packed.grid.levels - 0.51)
        self.slot.parameter.grad = None
        self.show()

    def _move(self, name: str, some: slice, pull: torch.Tensor, step: int, rate: float) -> None:
        mean, square = (moment[some] for moment in self.moments[name])
        mean.lerp_(pull, 1 - _BETAS[0])
        square.lerp_(pull.square_(), 1 - _BETAS[1])
        size = (square / (1 - _BETAS[1] ** step)).sqrt_().add_(_TINY)
        rates = self.rates[name]
        rates = rates if rates.numel() == 1 else rates[some]
        self.values[name][some] -= (mean / size).mul_(rates * (rate / (1 - _BETAS[0] ** step)))

    def remember(self) -> None:
        """Keep the values as the best so far; of latents their codes."""
        self.best = {name: _codes(value) if name == "codes" else value.clone() for name, value in self.values.items()}

    def best_packed(self) -> Packed:
        """The best so far as codes and scales."""
        if self.packed is None:
            raise ValueError(f"{self.slot.name} is not quantized")
        return _packed(self.packed, {name: value.float() for name, value in self.best.items()})

    def best_values(self) -> np.ndarray:
        """The best norm so far, float32."""
        return self.best["norm"].numpy()

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Everything that training changes, for a checkpoint."""
        means = {name: moment[0] for name, moment in self.moments.items()}
        squares = {name: moment[1] for name, moment in self.moments.items()}
        return {"values": self.values, "means": means, "squares": squares, "best": self.best}

    def restore(self, state: dict[str, dict[str, torch.Tensor]]) -> None:
        """What `state` gave."""
        self.values, self.best = state["values"], state["best"]
        self.moments = {name: (state["means"][name], state["squares"][name]) for name in self.values}


def made_of(slot: Slot, packed: Packed, reference: np.ndarray) -> Trained:
    """A quantized tensor ready to train; `reference` are the unquantized weights float32 (rows, columns)."""
    codes = packed.codes.astype(np.float32)
    latent = np.clip(_places(packed, reference), codes - _FREE, codes + _FREE)
    scale = torch.from_numpy(packed.scale.astype(np.float32))
    values = {"codes": torch.from_numpy(latent), "scale": scale}
    rates = {"codes": torch.tensor(LATENT_RATE), "scale": scale.abs() * SCALE_RATE}
    if packed.minimum is not None:
        values["minimum"] = torch.from_numpy(packed.minimum.astype(np.float32))
        # Of a nested type both stand before whole numbers of like size.
        span = packed.grid.levels / 2
        rates["minimum"] = rates["scale"] * span
    return Trained(slot, packed, values, rates)


def norm_of(slot: Slot, values: np.ndarray) -> Trained:
    """A norm's weights ready to train."""
    start = torch.from_numpy(values.copy())
    return Trained(slot, None, {"norm": start}, {"norm": start.abs() * NORM_RATE})


def _codes(latents: torch.Tensor) -> torch.Tensor:
    return latents.round().clamp_(min=0).to(torch.uint8)


def _packed(packed: Packed, values: dict[str, torch.Tensor]) -> Packed:
    minimum = values.get("minimum")
    return replace(
        packed, codes=_codes(values["codes"]).numpy(), scale=values["scale"].numpy().astype(np.float16),
        minimum=None if minimum is None else minimum.numpy().astype(np.float16),
    )  # fmt: skip


def _places(packed: Packed, weights: np.ndarray) -> np.ndarray:
    """Where weights lie between the codes, as broken codes."""
    grid = packed.grid
    steps, offsets = packed.steps()
    step = np.repeat(steps, grid.group, axis=1)
    wanted = weights if offsets is None else weights - np.repeat(offsets, grid.group, axis=1)
    levels = np.divide(wanted, step, out=np.zeros_like(wanted), where=step != 0)
    if grid.table:
        return np.interp(levels, grid.values, np.arange(grid.levels)).astype(np.float32)
    return (levels - grid.lowest).astype(np.float32)


def _pulls(
    packed: Packed, values: dict[str, torch.Tensor], some: slice, gradient: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Gradients of latents, scales and minima from the weights' gradient, for some rows."""
    grid = packed.grid
    now = _packed(packed, {name: value[some] for name, value in values.items()})
    rows, blocks = now.scale.shape
    step, _ = now.steps()
    slopes = torch.from_numpy(np.gradient(grid.values).astype(np.float32))
    codes = torch.from_numpy(now.codes).long()
    levels = torch.from_numpy(grid.values)[codes]
    by_group = gradient.reshape(rows, -1, grid.group)
    latents = (by_group * torch.from_numpy(step)[:, :, None]).reshape(rows, -1)
    if grid.table:
        latents = latents * slopes[codes]
    steps = (by_group * levels.reshape(by_group.shape)).sum(2)
    if now.sub_scale is not None:
        steps = steps * torch.from_numpy(now.sub_scale.astype(np.float32))
    pulls = {"codes": latents, "scale": steps.reshape(rows, blocks, -1).sum(2)}
    if now.minimum is not None:
        offsets = by_group.sum(2)
        if now.sub_minimum is not None:
            offsets = -offsets * torch.from_numpy(now.sub_minimum.astype(np.float32))
        pulls["minimum"] = offsets.reshape(rows, blocks, -1).sum(2)
    return pulls
