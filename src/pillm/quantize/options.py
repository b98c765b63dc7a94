"""Options of `pillm quantize`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pillm.core.options import ByHand, InputFile, NameOrFile, NoEffect, OutputFile, StageOptions, unit

QuantType = Literal[
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q3_K_L", "Q3_K_M",
    "Q3_K_S", "Q2_K", "Q2_K_S", "IQ4_NL", "IQ4_XS", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S",
    "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0",
]  # fmt: skip


FileType = Literal[QuantType, "fit"]

Method = Literal["auto", "mix", "mix+gptq", "mix+gptq+distill"]

_FITTING = ("fit", "max_bytes", "like", "max_kld", "plan", "device")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(B|kB|KB|MB|GB|KiB|MiB|GiB)?")
_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class QuantizeOptions(StageOptions):
    """Quantize a GGUF file: to a type of llama.cpp's with an importance matrix from the training domain, or fitted.

    A fitted file (--fit, --max-bytes, --like, --max-kld, --plan) has a type for each tensor, chosen so that the
    model's predictions change least at that size, and is refused if llama.cpp's best recipe of no more bytes is better.
    """

    model: Annotated[Path, InputFile()] = Field(description="GGUF file in f32, f16 or bf16")
    type: FileType = Field("Q4_K_M", description="Quantization type of the file to ship; fit: a type for each tensor")
    also: tuple[QuantType, ...] = Field((), description="Further types to make, for comparison")
    imatrix_data: Annotated[Path | None, InputFile()] = Field(
        None, description="Dataset for the importance matrix, in the model's chat template; none: no importance matrix"
    )
    imatrix_chunks: int = Field(
        24, ge=1, description="Chunks of text for the importance matrix", json_schema_extra=unit("chunks")
    )
    imatrix_context: int = Field(512, ge=32, description="Length of a chunk", json_schema_extra=unit("tokens"))
    fit: bool = Field(False, description="Fit a type to each tensor; the size of Q4_K_M, if nothing else is said")
    max_bytes: str | None = Field(
        None,
        pattern=r"^\d+(\.\d+)?(B|kB|KB|MB|GB|KiB|MiB|GiB)?$",
        description="Fit within this size of file, as in 95MB",
    )
    like: QuantType | None = Field(None, description="Fit within the bytes that this type's file has")
    max_kld: float | None = Field(
        None,
        gt=0,
        description="Fit the smallest file of this predicted mean KL",
        json_schema_extra=unit("nats a token"),
    )
    method: Method = Field(
        "auto", description="What a fitted file gets after the mix; auto: distillation too, where the time is enough"
    )
    max_time: float = Field(
        45.0, gt=0, description="Time for a fitted file; distillation ends with it", json_schema_extra=unit("min")
    )
    device: Annotated[str | None, NameOrFile()] = Field(
        None,
        description="Fit to a board: room for its context, and no slower than llama.cpp's recipe is predicted to be",
    )
    context: int = Field(4096, ge=1, description="Context that the board is to serve", json_schema_extra=unit("tokens"))
    min_tps: float | None = Field(
        None, gt=0, description="Decode at least so fast on the board, as predicted", json_schema_extra=unit("tokens/s")
    )
    general_data: Annotated[Path | None, InputFile()] = Field(
        None, description="Plain text for the general part of the fitting (default: the language reference of Python)"
    )
    fit_tokens: int = Field(
        16384, ge=1024, description="Tokens that a mix is fitted on", json_schema_extra=unit("tokens")
    )
    improve_tokens: int = Field(
        131072, ge=1024, description="Tokens for what comes after the mix", json_schema_extra=unit("tokens")
    )
    held_chunks: int = Field(
        20,
        ge=2,
        description="Held-out chunks for the gate, in the domain and out of it",
        json_schema_extra=unit("chunks"),
    )
    plan: Annotated[Path | None, InputFile()] = Field(None, description="Take the types of this plan (YAML)")
    plan_out: Annotated[Path | None, OutputFile(), NoEffect()] = Field(None, description="Write the plan here, too")
    max_memory: float | None = Field(
        None, gt=0, description="Refuse to need more memory than this", json_schema_extra=unit("GB")
    )
    seed: int = Field(0, ge=0, description="Seed of what is drawn while fitting")
    explain: Annotated[bool, ByHand()] = Field(
        False, description="Only tell of the file: which tensor has which type, why, and what llama.cpp would have done"
    )
    threads: Annotated[int | None, NoEffect()] = Field(None, ge=1, description="Threads (default: the machine's cores)")

    @model_validator(mode="after")
    def _fitted(self) -> QuantizeOptions:
        """Whatever asks for fitting makes the default type `fit`, which names the file."""
        if self.type == "Q4_K_M" and any(getattr(self, name) not in (None, False) for name in _FITTING):
            # Not before the fields are read: that would make Python's lists of a profile's JSON, which is read strictly.
            object.__setattr__(self, "type", "fit")
        return self

    @property
    def most_bytes(self) -> int | None:
        """`max_bytes` as a number."""
        match = _SIZE.fullmatch(self.max_bytes) if self.max_bytes else None
        return int(float(match[1]) * _UNITS[match[2] or "B"]) if match else None
