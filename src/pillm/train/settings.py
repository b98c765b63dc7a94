"""What the options leave open, settled for the model and the machine; and where each value came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec
import psutil
import torch

from pillm.core.errors import MissingError
from pillm.train.options import TrainOptions

DEFAULT_RATE = {"lora": 1e-3, "full": 2e-4}
"""LoRA takes about ten times the rate of full training (Schulman et al., "LoRA Without Regret", 2025); for
135M parameters 2e-4 is the usual rate of full fine-tuning."""


class Settings(msgspec.Struct, frozen=True):
    """Hyperparameters that depend on the model or the machine, with the reason for each."""

    device: str
    dtype: Literal["float32", "bfloat16", "float16"]
    learning_rate: float
    gradient_checkpointing: bool
    reasons: dict[str, str]


def settle(options: TrainOptions, parameters: int, layers: int, width: int) -> Settings:
    """Choose device, arithmetic, rate and checkpointing for a student of this size.

    Raises MissingError if the options name a device that is not there.
    """
    reasons: dict[str, str] = {}
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        reasons["device"] = "the fastest here"
    elif device == "cuda" and not torch.cuda.is_available():
        raise MissingError(
            "--device cuda: torch sees no CUDA device here", "use --device cpu, or install a CUDA build of torch"
        )
    elif device == "mps" and not torch.backends.mps.is_available():
        raise MissingError("--device mps: torch sees no Apple GPU here", "use --device cpu")
    dtype = options.dtype
    if dtype == "auto":
        dtype, reasons["dtype"] = _dtype(device)
    rate = options.learning_rate
    if rate is None:
        rate = DEFAULT_RATE[options.method]
        reasons["learning_rate"] = f"the default of {options.method}"
    checkpointing = options.gradient_checkpointing == "on"
    if options.gradient_checkpointing == "auto":
        need = training_bytes(options, parameters, layers, width, dtype)
        free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
        checkpointing = need > 0.7 * free
        reasons["gradient_checkpointing"] = f"about {need / 2**30:.1f} GiB needed without, {free / 2**30:.1f} GiB free"
    return Settings(device, dtype, rate, checkpointing, reasons)


def _dtype(device: str) -> tuple[Literal["float32", "bfloat16", "float16"], str]:
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "this GPU computes in bfloat16"
        return "float16", "this GPU has no bfloat16"
    if device == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bfloat16", "this CPU has AVX512-BF16"
    return "float32", f"this {device} has no fast bfloat16"


def training_bytes(options: TrainOptions, parameters: int, layers: int, width: int, dtype: str) -> float:
    """Rough memory of a step without checkpointing: weights, gradients, AdamW's moments, activations.

    Activations are taken as 34 values a token, layer and unit of width (Korthikanti et al. 2022,
    equation 1, without the attention matrix, which the fused kernels do not keep).
    """
    size = 4 if dtype == "float32" else 2
    full = 4 + 4 + 8 + (0 if size == 4 else size)  # weights, gradients, two moments, weights in the dtype
    states = parameters * (full if options.method == "full" else size * 1.1)
    return states + 34 * options.micro_tokens * layers * width * size / 2


def table(options: TrainOptions, settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Every hyperparameter as (name, value, where it came from)."""
    for name in type(options).model_fields:
        if name in ("out", "data", "card", "student"):
            continue
        value = getattr(settings, name, getattr(options, name))
        if reason := settings.reasons.get(name):
            yield name, str(value), f"chosen: {reason}"
        else:
            yield name, str(value), "given" if name in options.model_fields_set else "default"
