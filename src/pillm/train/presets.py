"""THE table of QLoRA presets: values by kind of hardware, the reason of each, and what was tested where.

The choices of `--preset`, `pillm presets`, the table in docs/training.md and the training itself all read it.
Given options win over a preset's values, a preset's over defaults.
"""

from __future__ import annotations

import msgspec

from pillm.core.errors import UsageError
from pillm.train.options import TrainOptions

Value = str | float | int | bool


class Tested(msgspec.Struct, frozen=True):
    """One real training with the preset. Only what was measured stands here."""

    device: str
    date: str
    model: str
    dtype: str
    """Arithmetic that was used, which is the fall-back where the device lacks the preset's."""
    tokens_per_second: float
    """Tokens processed (trained) a second, loading and merging left out, median over steps."""
    peak_memory: float
    """GiB: resident memory of the process on a CPU, memory allocated by torch on a GPU."""


class Preset(msgspec.Struct, frozen=True):
    """Values of options for a kind of hardware."""

    name: str
    hardware: str
    capability: tuple[int, int] | None
    """Least CUDA compute capability; None where no GPU is needed."""
    memory: float
    """GiB of the smallest usual machine or card of the kind, for which the tokens of a pass are chosen."""
    values: dict[str, Value]
    reasons: dict[str, str]
    tested: tuple[Tested, ...] = ()


_BASE = "lower perplexity than FP4 (Dettmers et al. 2023, arXiv 2305.14314, table 2)"
_DOUBLE = "0.127 instead of 0.5 bits a weight for scales (Dettmers et al. 2023, section 3)"
_ALPHA = "with alpha fixed at 32 the best learning rate hardly depends on the rank (Schulman et al. 2025, LoRA Without Regret)"
_RANK = "quality does not depend on the rank once every linear layer has adapters (Dettmers et al. 2023, figure 4)"
_RATE = "5e-5 * 10 * (2000 / width) ** 0.781 for Llama, at a width of 2,000 (Schulman et al. 2025)"
_BF16 = "range of float32, so no loss scaling; tensor cores for it since capability 8.0"
_CHECKPOINTING = "on only where the estimate of memory says that it must be"


def _preset(
    name: str,
    hardware: str,
    capability: tuple[int, int] | None,
    memory: float,
    dtype: tuple[str, str],
    rank: int,
    tokens: tuple[int, int, str],
    rate: tuple[float, str] = (5e-4, _RATE),
    more: tuple[tuple[str, Value, str], ...] = (),
    tested: tuple[Tested, ...] = (),
) -> Preset:
    micro, batch, why = tokens
    rows: list[tuple[str, Value, str]] = [
        ("base", "nf4", _BASE),
        ("double_quantization", True, _DOUBLE),
        ("dtype", *dtype),
        ("rank", rank, _RANK),
        ("alpha", 32.0, _ALPHA),
        ("learning_rate", *rate),
        ("micro_tokens", micro, why),
        ("batch_tokens", batch, "two to four passes a step; the peak of memory does not depend on it"),
        ("gradient_checkpointing", "auto", _CHECKPOINTING),
        *more,
    ]
    values = {field: value for field, value, _ in rows}
    return Preset(name, hardware, capability, memory, values, {field: reason for field, _, reason in rows}, tested)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _preset(
            "qlora-turing", "NVIDIA T4, RTX 20, GTX 16", (7, 5), 8,
            dtype=("float16", "no bfloat16 on capability 7.5; losses are scaled"),
            rank=16, tokens=(2048, 8192, "cards of this kind have 6 to 16 GiB"),
        ),
        _preset(
            "qlora-ampere", "NVIDIA A100, A10, A40, RTX 30, Jetson Orin", (8, 0), 8,
            dtype=("bfloat16", _BF16),
            rank=32, tokens=(4096, 16384, "cards of this kind have 8 to 80 GiB"),
        ),
        _preset(
            "qlora-ada", "NVIDIA L4, L40, RTX 40", (8, 9), 12,
            dtype=("bfloat16", _BF16),
            rank=32, tokens=(4096, 16384, "cards of this kind have 8 to 48 GiB"),
        ),
        _preset(
            "qlora-hopper", "NVIDIA H100, H200, GH200", (9, 0), 80,
            dtype=("bfloat16", _BF16),
            rank=64, tokens=(16384, 32768, "80 GiB and more: larger passes keep the GPU busy"),
        ),
        _preset(
            "qlora-cpu", "any CPU with 8 GiB", None, 8,
            dtype=("bfloat16", "half the traffic of float32 where the CPU has AVX512-BF16 or AMX; float32 elsewhere"),
            rank=16, tokens=(1024, 2048, "a pass of 1,024 tokens already fills a few cores"),
            rate=(1e-3, "the same rule gives 1.3e-3 at a width of 576 (SmolLM2-135M); 1e-3 is the default of adapters"),
            more=(("device", "cpu", "also where there is a GPU, which is then left alone"),),
        ),
    )
}  # fmt: skip


def applied(options: TrainOptions) -> TrainOptions:
    """The options with the preset's values where none was given; which were given stays known. Applying twice is once.

    Raises UsageError for options that contradict each other.
    """
    if options.preset:
        given = {name for name in options.model_fields_set if getattr(options, name) is not None}
        values = {name: value for name, value in PRESETS[options.preset].values.items() if name not in given}
        options = options.model_copy(update=values)
        # A copy counts its updates among what was given; settings.table tells the two apart.
        object.__setattr__(options, "__pydantic_fields_set__", set(given))
    if options.method == "full" and options.base != "16bit":
        where = f"which preset {options.preset} sets" if "base" not in options.model_fields_set else "which was given"
        raise UsageError(
            f"method full cannot train a {options.base} base, {where}: 4-bit weights are frozen",
            "take --method lora, rslora or dora, or --base 16bit",
        )
    return options
