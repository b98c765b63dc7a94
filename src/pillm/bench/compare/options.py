"""Options of `pillm bench compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pillm.bench.verdict_options import VerdictOptions
from pillm.core.options import InputFile, unit


class CompareOptions(VerdictOptions):
    """Compare two models, two builds of llama.cpp, or a run with its history: better, same, worse or cannot tell."""

    models: Annotated[tuple[Path, ...], InputFile()] = Field(
        min_length=1,
        max_length=20,
        description="GGUF files A and B; one file with --tools-b; with --baseline one GGUF file, or new runs (bench.json)",
    )
    pairs: int = Field(
        20, ge=6, le=500, description="At most so many pairs that count", json_schema_extra=unit("pairs")
    )
    tools_b: Path | None = Field(
        None, description="Folder of another llama.cpp's tools for B (default: that of A), to compare builds"
    )
    prompt_tokens: int | None = Field(
        None,
        ge=0,
        description="Length of the prompt; 0 skips prefill (default: 64, with --baseline that of pillm bench)",
        json_schema_extra=unit("tokens"),
    )
    gen_tokens: int | None = Field(
        None,
        ge=0,
        description="Length of the answer; 0 skips decode (default: 16, with --baseline that of pillm bench)",
        json_schema_extra=unit("tokens"),
    )
    depth: int = Field(0, ge=0, description="Context depth to measure at", json_schema_extra=unit("tokens"))
    repetitions: int = Field(
        2,
        ge=1,
        le=100,
        description="Repetitions in each process; the fastest is the sample",
        json_schema_extra=unit("runs"),
    )
    threads: int | None = Field(None, ge=1, description="Threads (default: all cores but one)")
    wait: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="Wait so long, in all, for other programs to end",
        json_schema_extra=unit("s"),
    )
    seed: int = Field(0, ge=0, description="Seed of the coin that orders each pair")
    baseline: bool = Field(False, description="Compare new runs with the earlier runs of their series in the history")
    baseline_runs: int = Field(
        8,
        ge=4,
        le=1000,
        description="Earlier runs that are needed to know their spread",
        json_schema_extra=unit("runs"),
    )
    baseline_build: str | None = Field(
        None,
        min_length=1,
        description="Earlier runs of this build only (default: the run's own, else the newest with enough)",
    )
    fail_on_worse: bool = Field(False, description="Exit code 1 if the verdict is worse")
