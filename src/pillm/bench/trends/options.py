"""Options of `pillm bench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pillm.core.options import Options, OutputFile, unit


class ReportOptions(Options):
    """Make one page of the history: trends, changes between builds, and how near each model comes to the board's limits."""

    out: Annotated[Path, OutputFile()] = Field(Path("bench.html"), description="The page")
    board: str | None = Field(None, min_length=1, description="Only boards whose name holds this text")
    model: str | None = Field(None, min_length=1, description="Only models whose name holds this text")
    since: str | None = Field(None, pattern=r"^\d{4}-\d{2}-\d{2}$", description="Only runs from this day on (UTC)")
    series: int = Field(
        40,
        ge=1,
        le=1000,
        description="Draw the latest so many series; the table has all",
        json_schema_extra=unit("series"),
    )
    min_effect: float = Field(
        3.0, gt=0, le=100, description="The smallest change of time that matters", json_schema_extra=unit("%")
    )
    false_alarms: float = Field(
        1.0,
        ge=0.01,
        le=20,
        description="Chance of a false better or worse on the whole page",
        json_schema_extra=unit("%"),
    )
