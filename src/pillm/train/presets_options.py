"""Options of `pillm presets`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pillm.core.options import Options


class PresetsOptions(Options):
    """List the presets of `pillm train`: values by kind of hardware, why, and what was tested where."""

    preset: Literal["", "qlora-ampere", "qlora-turing", "qlora-ada", "qlora-hopper", "qlora-cpu"] = Field(
        "", description="Show this one alone, with the reason of each value"
    )
