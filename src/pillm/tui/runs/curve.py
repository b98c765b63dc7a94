"""A figure over steps, thinned so that it never has more points than a screen has columns."""

from __future__ import annotations

import math

MOST = 512
"""Points of a curve at most; neighbours are joined when there are more. Even, and twice a wide screen's dots."""


class Curve:
    """Points (step, value), where each stands for `stride` neighbours: the mean of them."""

    def __init__(self, name: str, unit: str = "") -> None:
        self.name, self.unit = name, unit
        self.steps: list[float] = []
        self.values: list[float] = []
        self.stride = 1
        self.seen = 0
        self.last = math.nan
        self._sum_step = self._sum_value = 0.0
        self._held = 0

    def add(self, step: float | None, value: float) -> None:
        """One more value; without a step it is counted. A step that was there before begins the curve again there."""
        if not math.isfinite(value):
            return
        at = float(self.seen if step is None else step)
        while self.steps and at <= self.steps[-1]:
            # A run that was cut off goes on from its last checkpoint: steps after that are made again.
            self.steps.pop()
            self.values.pop()
            self._held, self._sum_step, self._sum_value = 0, 0.0, 0.0
        self.seen += 1
        self.last = value
        self._held += 1
        self._sum_step += at
        self._sum_value += value
        if self._held >= self.stride:
            self.steps.append(self._sum_step / self._held)
            self.values.append(self._sum_value / self._held)
            self._held, self._sum_step, self._sum_value = 0, 0.0, 0.0
            if len(self.steps) >= MOST:
                self._thin()

    @property
    def is_rate(self) -> bool:
        """Whether it is so much a second."""
        return self.unit.endswith("/s")

    @property
    def title(self) -> str:
        """For people: `tokens per second, tokens/s`."""
        name = self.name.replace("_", " ")
        return f"{name}, {self.unit}" if self.unit else name

    def _thin(self) -> None:
        self.steps = [(a + b) / 2 for a, b in zip(self.steps[::2], self.steps[1::2], strict=True)]
        self.values = [(a + b) / 2 for a, b in zip(self.values[::2], self.values[1::2], strict=True)]
        self.stride *= 2
