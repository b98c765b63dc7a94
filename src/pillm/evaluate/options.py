"""Options of `pillm evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pillm.core.options import InputFile, ModelReference, NameOrFile, NoEffect, StageOptions, unit


class EvaluateOptions(StageOptions):
    """Measure a GGUF file on held-out dialogues through llama-server, and against its unquantized file."""

    model: Annotated[str, ModelReference()] = Field(description="GGUF file (or a reference to one) to measure")
    data: Annotated[Path, InputFile()] = Field(description="Held-out dataset (JSONL, or dataset:NAME/SPLIT)")
    reference: Annotated[Path | None, InputFile()] = Field(
        None, description="Unquantized GGUF file for KL divergence and same-top-token"
    )
    also: Annotated[Path | None, InputFile()] = Field(
        None, description="Folder of further GGUF files for KL divergence only"
    )
    chat_template: Annotated[str, NameOrFile()] = Field(
        "model", description="model: the file's own; or the name of a shipped template, or a Jinja file"
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="Answer at most this many dialogues, evenly over the data",
        json_schema_extra=unit("records"),
    )
    max_tokens: int = Field(160, ge=1, description="Longest answer", json_schema_extra=unit("tokens"))
    context: int = Field(2048, ge=256, description="Context for one dialogue", json_schema_extra=unit("tokens"))
    parallel: Annotated[int, NoEffect()] = Field(2, ge=1, le=64, description="Dialogues at once in the server")
    chunks: int = Field(
        8,
        ge=1,
        description="Chunks of held-out text for perplexity and KL divergence",
        json_schema_extra=unit("chunks"),
    )
    chunk_tokens: int = Field(512, ge=64, description="Length of a chunk", json_schema_extra=unit("tokens"))
    min_exact_match: float | None = Field(None, ge=0, le=1, description="Fail if the tool-call exact match is lower")
    threads: Annotated[int | None, NoEffect()] = Field(None, ge=1, description="Threads (default: the machine's cores)")
