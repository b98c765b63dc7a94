"""Options of `pillm plan`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pillm.core.options import ModelReference, NameOrFile, NoEffect, Options, unit

PlanQuant = Literal[
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "F16", "BF16",
]  # fmt: skip


class PlanOptions(Options):
    """Say what fits on a board, how fast it would be and with which settings, from a header or a config alone."""

    model: Annotated[str | None, ModelReference()] = Field(
        None, description="GGUF file, folder (its config.json is enough) or hf:org/name@revision"
    )
    device: Annotated[str, NameOrFile()] = Field(
        "pi5-8gb", description="Board, as pi4-4gb or zero2w; the path of a board's profile; here: this machine"
    )
    context: int | None = Field(
        None,
        ge=0,
        description="Context of a slot; 0: all that the model was trained for (default: 4096, or less where the model has less)",
        json_schema_extra=unit("tokens"),
    )
    depth: int = Field(
        256, ge=0, description="Tokens that stand before those whose speed is told", json_schema_extra=unit("tokens")
    )
    quant: PlanQuant | None = Field(
        None, description="Quantization (default: the usual ones are compared; a quantized file has its own)"
    )
    kv_type: Literal["f16", "q8_0", "q4_0"] | None = Field(
        None, description="Type of the cache of keys and values (default: f16, or q8_0 where only that fits)"
    )
    threads: int | None = Field(None, ge=1, description="Threads for decoding (default: the board's best)")
    threads_batch: int | None = Field(
        None, ge=1, description="Threads for the prompt (default: as --threads, else all cores)"
    )
    ubatch: int | None = Field(
        None,
        ge=1,
        le=8192,
        description="Tokens computed at once (default: 512, or 128 where only that fits)",
        json_schema_extra=unit("tokens"),
    )
    slots: int = Field(
        1, ge=1, le=64, description="Requests answered at the same time", json_schema_extra=unit("slots")
    )
    history: Annotated[bool, NoEffect()] = Field(
        True, description="Lean on runs that were measured on this kind of board, where the history has some"
    )
    boards: bool = Field(False, description="List the boards, and do nothing else")
