"""What every verdict of better or worse is asked with."""

from __future__ import annotations

from pydantic import Field

from pillm.core.options import Options, unit


class VerdictOptions(Options):
    """The least change that matters, and how often a verdict may be false."""

    min_effect: float = Field(
        3.0, gt=0, le=100, description="The smallest change of time that matters", json_schema_extra=unit("%")
    )
    false_alarms: float = Field(
        1.0,
        ge=0.01,
        le=20,
        description="Chance of any false better or worse, over all that is judged",
        json_schema_extra=unit("%"),
    )
