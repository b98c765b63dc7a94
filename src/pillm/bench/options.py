"""Options of `pillm bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pillm.core.options import InputFile, StageOptions, unit


class BenchOptions(StageOptions):
    """Measure prefill and decode speed of a GGUF file with llama-bench on this machine."""

    model: Annotated[Path, InputFile()] = Field(description="GGUF file")
    threads: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Thread counts to measure (default: the machine's cores)"
    )
    prompt_tokens: int = Field(
        256, ge=0, description="Length of the prompt for prefill; 0 skips it", json_schema_extra=unit("tokens")
    )
    gen_tokens: int = Field(
        64, ge=0, description="Length of the answer for decode; 0 skips it", json_schema_extra=unit("tokens")
    )
    depth: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="Context depths to measure at", json_schema_extra=unit("tokens")
    )
    repetitions: int = Field(3, ge=1, description="Runs of each test")
