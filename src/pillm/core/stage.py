"""What a stage gives back."""

from __future__ import annotations

from pathlib import Path

import msgspec

MetricValue = float | int | str | bool | None


class Result(msgspec.Struct, frozen=True):
    """Published outputs by the names of the stage table, and figures for people and for the report."""

    outputs: dict[str, Path]
    metrics: dict[str, MetricValue] = {}
