"""What the options leave open, settled for the model and the machine; and where each value came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec
import torch

from pillm.core.errors import MissingError, PillmError
from pillm.core.events import Emit, Log, silent
from pillm.train.memory import Sizes, free_memory, is_short, needed, rough_sizes, teacher_sizes
from pillm.train.options import TrainOptions
from pillm.train.presets import PRESETS, applied

DEFAULT_RATE = {"lora": 1e-3, "rslora": 1e-3, "dora": 1e-3, "full": 2e-4}
"""LoRA takes about ten times the rate of full training (Schulman et al., "LoRA Without Regret", 2025); for
135M parameters 2e-4 is the usual rate of full fine-tuning."""


class Settings(msgspec.Struct, frozen=True):
    """Hyperparameters that depend on the model or the machine, with the reason for each."""

    device: str
    dtype: Literal["float32", "bfloat16", "float16"]
    learning_rate: float
    gradient_checkpointing: bool
    reasons: dict[str, str]
    method: Literal["lora", "rslora", "dora", "full"] = "lora"
    rank: int = 32
    alpha: float = 32.0
    lora_dropout: float = 0.0
    base: Literal["16bit", "nf4", "fp4"] = "16bit"
    double_quantization: bool = True
    fallbacks: tuple[str, ...] = ()
    """What a preset asks for and this machine lacks, with what is done instead; each is worth a warning."""


def settle(
    options: TrainOptions, parameters: int, layers: int, width: int, sizes: Sizes | None = None, emit: Emit = silent
) -> Settings:
    """Choose device, arithmetic, rate and checkpointing for a student of this size; a preset's values come first.

    `sizes` are the student's where they are known better. What a preset asks for and this machine lacks is told
    as a warning, with what is done instead.
    Raises MissingError if the options name a device that is not there, UsageError if they contradict each other.
    """
    options = applied(options)
    reasons: dict[str, str] = {}
    fallbacks: list[str] = []
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
    if options.preset:
        fallbacks += _hardware(options.preset, device)
    dtype = options.dtype
    if dtype == "auto":
        dtype, reasons["dtype"] = _dtype(device)
    elif options.preset and "dtype" not in options.model_fields_set:
        asked, (best, why) = dtype, _dtype(device)
        # float16 on a CPU is slow, and bfloat16 on a GPU without it is emulated.
        if asked != best and (asked == "bfloat16" or device != "cuda"):
            dtype = best
            reasons["dtype"] = f"preset {options.preset} asks for {asked}; {why}"
            fallbacks.append(f"preset {options.preset} asks for {asked} arithmetic; {why}, so it is {best}")
    rate = options.learning_rate
    if rate is None:
        rate = DEFAULT_RATE[options.method]
        reasons["learning_rate"] = f"the default of {options.method}"
    if options.method == "rslora" and "learning_rate" not in options.model_fields_set:
        # Its scale is sqrt(rank) times that of LoRA; so the first update has the same size.
        rate /= options.rank**0.5
        reasons["learning_rate"] = f"{rate * options.rank**0.5:g} / sqrt(rank), since rslora's scale is so much larger"
    checkpointing = options.gradient_checkpointing == "on"
    if options.gradient_checkpointing == "auto":
        known = sizes or rough_sizes(parameters, layers, width)
        try:
            teacher = teacher_sizes(options, emit)
        except PillmError:
            teacher = None  # its loading says what is wrong with it; some that can be loaded have no sizes here
        found = needed(options, known, teacher, dtype, False, device)
        free = torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()
        checkpointing, need = is_short(found, free), found.training
        reasons["gradient_checkpointing"] = f"about {need / 2**30:.1f} GiB needed without, {free / 2**30:.1f} GiB free"
    for message in fallbacks:
        emit(Log(message, "warning"))
    return Settings(
        device, dtype, rate, checkpointing, reasons, options.method, options.rank, options.alpha,
        options.lora_dropout, options.base, options.double_quantization, tuple(fallbacks),
    )  # fmt: skip


def _hardware(name: str, device: str) -> Iterator[str]:
    """What of the preset's hardware is not here."""
    preset = PRESETS[name]
    if preset.capability is None:
        return
    wanted = ".".join(map(str, preset.capability))
    if device != "cuda":
        yield f"preset {name} is for {preset.hardware}; there is none here, so it trains on {device}"
    elif (found := torch.cuda.get_device_capability()) < preset.capability:
        has = ".".join(map(str, found))
        yield f"preset {name} is for compute capability {wanted}; {torch.cuda.get_device_name()} has {has}"


def _dtype(device: str) -> tuple[Literal["float32", "bfloat16", "float16"], str]:
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "this GPU computes in bfloat16"
        return "float16", "this GPU has no bfloat16"
    if device == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bfloat16", "this CPU has AVX512-BF16"
    return "float32", f"this {device} has no fast bfloat16"


def table(options: TrainOptions, settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Every hyperparameter as (name, value, where it came from)."""
    effective = applied(options)
    preset = PRESETS[options.preset].values if options.preset else {}
    for name in type(options).model_fields:
        if name in ("out", "data", "card", "student"):
            continue
        value = getattr(settings, name, getattr(effective, name))
        if reason := settings.reasons.get(name):
            yield name, str(value), f"chosen: {reason}"
        elif name in options.model_fields_set:
            yield name, str(value), "given"
        else:
            yield name, str(value), f"preset {options.preset}" if name in preset else "default"
