"""Options of `pillm bench history`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pillm.core.options import InputFile, Options, OutputFile, unit

_MOMENT = r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2})?Z?)?$"


class HistoryOptions(Options):
    """Show, export, import or prune the history of measurements."""

    import_: Annotated[tuple[Path, ...], InputFile()] = Field(
        (), description="Add the runs of these files: bench.json, JSON lines, CSV export, llama-bench's json, a history"
    )
    add: Annotated[Path | None, InputFile()] = Field(None, description="Add the run of one bench.json")
    board: str | None = Field(None, min_length=1, description="Only boards whose name holds this text")
    model: str | None = Field(None, min_length=1, description="Only models whose name holds this text")
    build: str | None = Field(None, min_length=1, description="Only builds whose name holds this text")
    since: str | None = Field(None, pattern=_MOMENT, description="Only runs from this day or moment (UTC) on")
    until: str | None = Field(None, pattern=_MOMENT, description="Only runs before this day or moment (UTC)")
    invalid: bool | None = Field(None, description="Only runs that do not count (--no-invalid: only those that do)")
    limit: int = Field(20, ge=0, description="List the newest so many; 0 lists all", json_schema_extra=unit("runs"))
    export: Literal["csv", "json", "jsonl"] | None = Field(None, description="Print whole runs in this form instead")
    output: Annotated[Path | None, OutputFile()] = Field(
        None, description="Write the export to this file (default: stdout)"
    )
    prune: bool = Field(False, description="Name the runs that the policy lets go; with --yes delete them")
    keep_days: int | None = Field(
        None, ge=0, le=36_500, description="Policy: keep runs that are younger", json_schema_extra=unit("days")
    )
    keep_per_series: int | None = Field(
        None, ge=1, description="Policy: keep the newest of each board, model and build", json_schema_extra=unit("runs")
    )
    thin: Literal["day", "week"] | None = Field(
        None, description="Policy: of all others keep one a day or week of each series"
    )
    yes: bool = Field(False, description="Delete what --prune names")
