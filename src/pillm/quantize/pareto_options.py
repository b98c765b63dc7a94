"""Options of `pillm quantize pareto`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pillm.core.options import InputFile, NoEffect, Options, OutputFile, unit


class ParetoOptions(Options):
    """Draw what each size of file is predicted to cost: fitted mixes and llama.cpp's recipes, on one page."""

    model: Annotated[Path, InputFile()] = Field(description="GGUF file in f32, f16 or bf16")
    out: Annotated[Path, OutputFile()] = Field(
        Path("pareto.html"), description="The page; its steps are kept beside it"
    )
    imatrix_data: Annotated[Path | None, InputFile()] = Field(None, description="Dataset of the model's domain")
    imatrix_context: int = Field(512, ge=32, description="Length of a chunk", json_schema_extra=unit("tokens"))
    general_data: Annotated[Path | None, InputFile()] = Field(
        None, description="Plain text for the general part (default: the language reference of Python)"
    )
    fit_tokens: int = Field(16384, ge=1024, description="Tokens to fit on", json_schema_extra=unit("tokens"))
    steps: int = Field(16, ge=4, le=100, description="Sizes of mixes to draw", json_schema_extra=unit("mixes"))
    seed: int = Field(0, ge=0, description="Seed of what is drawn while fitting")
    threads: Annotated[int | None, NoEffect()] = Field(None, ge=1, description="Threads (default: the machine's cores)")
