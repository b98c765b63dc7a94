"""What `quantize.json` holds. Light: the report and the faces read it. No times: equal runs give equal files."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pillm.core.stage import read_report


class TypeShare(msgspec.Struct, frozen=True):
    """Tensors of one type in a file."""

    type: str
    tensors: int
    bytes: int


class FallbackGroup(msgspec.Struct, frozen=True):
    """Tensors that the recipe wanted in `wanted` and that are in `got`, for the same `reason`."""

    wanted: str
    got: str
    reason: str
    bytes: int
    tensors: tuple[str, ...]


class QuantizedFile(msgspec.Struct, frozen=True):
    """One file as it is, read back from disk."""

    file: str
    """Path below the stage's folder."""
    sha256: str
    asked: str
    bytes: int
    bits_per_weight: float
    """Of tensor data, over all weights."""
    types: tuple[TypeShare, ...]
    """Largest share first."""
    fallbacks: tuple[FallbackGroup, ...]
    without_imatrix: tuple[str, ...] = ()
    """Quantized tensors that the importance matrix says nothing of."""

    @property
    def fallback_share(self) -> float:
        """Share of the file's tensor bytes that are in another type than the recipe wanted."""
        total = sum(share.bytes for share in self.types)
        return sum(group.bytes for group in self.fallbacks) / total if total else 0.0


class Imatrix(msgspec.Struct, frozen=True):
    """The importance matrix and the text it was measured on."""

    file: str
    data: str
    chunks: int
    context: int
    dialogues: int
    chat_template: bool
    """Whether the dialogues were written in the model's chat template; else their plain words were."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """Figures in the domain (`in`) or out of it (`out`), of the file and of the rival. `ratio` is of mean KLs, ours over
    the rival's, with the paired bootstrap's 95 % interval over chunks.
    """

    side: str
    chunks: int
    tokens: int
    kl_mean: float
    kl_99: float
    same_top: float
    perplexity_ratio: float
    rival_kl_mean: float | None = None
    rival_kl_99: float | None = None
    rival_same_top: float | None = None
    rival_perplexity_ratio: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """How a fitted file was made, and how it compares with the best stock file of no more bytes."""

    method: str
    plan: str
    data: str
    general: str
    tokens: dict[str, int]
    """That it was fitted on, by source."""
    predicted_kl: float
    rival: str
    sides: tuple[Side, ...]
    device: str = ""
    decode_tps: float | None = None
    prefill_tps: float | None = None
    rival_decode_tps: float | None = None
    rival_prefill_tps: float | None = None


class Quantize(msgspec.Struct, frozen=True, kw_only=True):
    """`quantize.json`: the file to ship first, then the others."""

    source: str
    source_bytes: int
    parameters: int
    files: tuple[QuantizedFile, ...]
    imatrix: Imatrix | None = None
    fitted: Fitted | None = None
    llamacpp: str
    version: int = 1


def load(path: Path) -> Quantize:
    """Read a `quantize.json`. Raises UsageError if it is not one."""
    return read_report(path, Quantize, "quantize")
