"""Options of `pillm export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pillm.core.options import InputFile, NoEffect, StageOptions, unit


class ExportOptions(StageOptions):
    """Convert a merged model to GGUF and prove that llama.cpp computes what torch does."""

    model: Annotated[Path, InputFile()] = Field(
        description="Folder of a merged model (safetensors, tokenizer, chat template)"
    )
    dtype: Literal["f16", "bf16", "f32"] = Field("f16", description="Type of the matrices in the GGUF file")
    check: Literal["full", "off"] = Field(
        "full", description="Compare torch's and llama.cpp's logits and tokenizers on real text; off skips it"
    )
    check_data: Annotated[Path | None, InputFile()] = Field(
        None, description="Dataset whose text the check reads (default: a shipped one)"
    )
    check_tokens: int = Field(
        512, ge=64, description="Text that the logits are compared on", json_schema_extra=unit("tokens")
    )
    max_kl: float = Field(
        0.01,
        gt=0,
        description="Largest mean KL divergence between torch and llama.cpp that passes",
        json_schema_extra=unit("nats/token"),
    )
    threads: Annotated[int | None, NoEffect()] = Field(None, ge=1, description="Threads (default: the machine's cores)")
