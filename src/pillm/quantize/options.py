"""Options of `pillm quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pillm.core.options import InputFile, NoEffect, StageOptions, unit

QuantType = Literal[
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q3_K_L", "Q3_K_M",
    "Q3_K_S", "Q2_K", "Q2_K_S", "IQ4_NL", "IQ4_XS", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S",
    "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0",
]  # fmt: skip


class QuantizeOptions(StageOptions):
    """Quantize a GGUF file with an importance matrix from the training domain, and say what came of it."""

    model: Annotated[Path, InputFile()] = Field(description="GGUF file in f32, f16 or bf16")
    type: QuantType = Field("Q4_K_M", description="Quantization type of the file to ship")
    also: tuple[QuantType, ...] = Field((), description="Further types to make, for comparison")
    imatrix_data: Annotated[Path | None, InputFile()] = Field(
        None, description="Dataset for the importance matrix, in the model's chat template; none: no importance matrix"
    )
    imatrix_chunks: int = Field(
        24, ge=1, description="Chunks of text for the importance matrix", json_schema_extra=unit("chunks")
    )
    imatrix_context: int = Field(512, ge=32, description="Length of a chunk", json_schema_extra=unit("tokens"))
    threads: Annotated[int | None, NoEffect()] = Field(None, ge=1, description="Threads (default: the machine's cores)")
