"""Options of `pillm bench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pillm.bench.verdict_options import VerdictOptions
from pillm.core.options import OutputFile, unit


class ReportOptions(VerdictOptions):
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
