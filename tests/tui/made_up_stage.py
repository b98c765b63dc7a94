"""A stage that no table has: what a new row looks like to the faces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, create_model

from pillm.core.options import InputFile, ModelReference, NoEffect, StageOptions, unit
from pillm.pipeline.stages import Stage


class KneadOptions(StageOptions):
    """Knead dough until it is smooth."""

    flour: Annotated[Path, InputFile()] = Field(description="Flour to begin with")


GROWN = create_model(
    "KneadOptions",
    __base__=KneadOptions,
    minutes=(
        float,
        Field(8.0, gt=0, le=60, description="How long to knead", json_schema_extra=unit("min")),
    ),
    by=(Literal["hand", "machine"], Field("hand", description="Who kneads; machine: twice as fast")),
)
GROWN.__doc__ = KneadOptions.__doc__

BEFORE = Stage("knead", "Knead dough", "made_up_stage:KneadOptions", "made_up_stage:run", {"dough": "dough.txt"})
AFTER = Stage("knead", "Knead dough", "made_up_stage:GROWN", "made_up_stage:run", {"dough": "dough.txt"})


class BakeOptions(StageOptions):
    """Bake bread: a form with every kind of field, for pictures that no change to a real stage changes."""

    dough: Annotated[Path, InputFile()] = Field(description="Dough (or dataset:NAME/SPLIT)")
    oven: Annotated[str, ModelReference()] = Field(description="Oven: hf:, pkg:, folder or .gguf")
    seeds: Annotated[tuple[Path, ...], InputFile()] = Field((), description="Files with seeds to put on top")
    degrees: int = Field(220, ge=50, le=300, description="Heat", json_schema_extra=unit("degrees"))
    minutes: float | None = Field(
        None, gt=0, description="How long (default: until it is brown)", json_schema_extra=unit("min")
    )
    crust: Literal["thin", "thick"] = Field("thin", description="thin: soft bread; thick: bread that keeps for a week")
    steam: bool = Field(True, description="Put a bowl of water into the oven")
    shape: str = Field("loaf", description="What it shall look like")
    cuts: tuple[int, ...] = Field((3,), description="Cuts into the top, one number for each row")
    helpers: Annotated[int | None, NoEffect()] = Field(None, ge=1, description="How many help")


BAKE = Stage("bake", "Bake bread", "made_up_stage:BakeOptions", "made_up_stage:run", {"bread": "bread.txt"})
