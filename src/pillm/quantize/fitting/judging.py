"""The gate: a file beside the best stock file of no more bytes, in its domain and out of it.

The reference's log-probabilities are computed in torch, with the tokens as the model reads them (llama-perplexity
itself cannot parse a chat template's special tokens), and written in llama-perplexity's own form; each file's figures
are then llama-perplexity's. Both domains are text that nothing was fitted on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from pillm.core.artifacts import PARTIAL, publish
from pillm.core.errors import ResourceError, writing
from pillm.core.events import Emit, Progress
from pillm.devices.formats import tensor_bytes
from pillm.llamacpp import logits as logits_file
from pillm.llamacpp.gguf_file import GgufFile
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.perplexity import Divergence, kl_divergence
from pillm.llamacpp.quantize import NEEDS_IMATRIX, recipe
from pillm.quantize.fitting.allocation import predicted
from pillm.quantize.fitting.costs import Table, padded
from pillm.quantize.fitting.texts import Tokens
from pillm.quantize.weights import Loaded

STOCK = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_S", "Q2_K",
)  # fmt: skip
"""llama.cpp's recipes that a file can be held against."""

_RESAMPLES = 4000


class Ratio(msgspec.Struct, frozen=True):
    """Mean KL of one file over another's on the same chunks, with the paired bootstrap's 95 % interval over chunks."""

    value: float
    low: float
    high: float


class Stock(msgspec.Struct, frozen=True):
    """One of llama.cpp's recipes: its types, bytes of tensors, and predicted KL (None: a type has no costs)."""

    kind: str
    types: dict[str, str]
    bytes: int
    predicted: float | None


def save_logits(loaded: Loaded, tokens: Tokens, target: Path, emit: Emit, label: str) -> None:
    """The reference's log-probabilities on `tokens` in llama-perplexity's form. Kept as long as the caller wants."""
    context = tokens.shape[1]
    first, count = context // 2, logits_file.measured(context)
    vocabulary = loaded.file.vocabulary
    need = len(tokens) * count * 2 * (vocabulary + 5)

    def chunks() -> Iterator[NDArray[np.float32]]:
        with torch.inference_mode():
            for number, row in enumerate(tokens):
                ids = torch.from_numpy(row.astype(np.int64))[None].to(loaded.model.device)
                hidden = loaded.model(ids, use_cache=False, logits_to_keep=context - first).logits[0, :count]
                yield hidden.float().cpu().numpy()
                emit(Progress(label, number + 1, len(tokens), "chunks"))

    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(target.parent).free) < need:
            raise ResourceError(
                f"{target}: the reference's predictions take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
                "free some space, choose another folder with --out, or judge on fewer --held-chunks",
            )
        partial = target.with_name(PARTIAL + target.name)
        logits_file.write(partial, tokens, chunks(), vocabulary)
        publish(partial, target)


def judge(
    tools: LlamaCpp, file: Path, bases: Mapping[str, Path], threads: int | None, emit: Emit
) -> dict[str, Divergence]:
    """A file's figures on each side."""
    return {side: kl_divergence(tools, file, base, threads=threads, emit=emit) for side, base in bases.items()}


def ratio(ours: Divergence, rival: Divergence) -> Ratio:
    """How our mean KL compares with the rival's, on the same chunks."""
    a, b = np.array(ours.kl_chunks), np.array(rival.kl_chunks)
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(a), (_RESAMPLES, len(a)))
    drawn = a[picks].mean(1) / np.maximum(b[picks].mean(1), 1e-12)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Ratio(ours.kl_mean / max(rival.kl_mean, 1e-12), float(low), float(high))


def stock(tools: LlamaCpp, source: GgufFile, table: Table, matrix: Path, emit: Emit) -> list[Stock]:
    """Every recipe of llama.cpp as it would come out, with what the table predicts of it."""
    found = []
    for number, kind in enumerate(STOCK):
        emit(Progress("stock recipes", number, len(STOCK), "recipes"))
        types = recipe(tools, source, kind, imatrix=matrix if kind in NEEDS_IMATRIX else None)
        size = sum(padded(tensor_bytes(types[t.name], t.elements)) for t in source.tensors)
        known = all(types[name] in cells for name, cells in table.items())
        found.append(Stock(kind, types, size, predicted(table, types) if known else None))
    emit(Progress("stock recipes", len(STOCK), len(STOCK), "recipes"))
    return found


def rivals(stocks: Sequence[Stock], tensor_bytes_at_most: int, count: int) -> list[Stock]:
    """The `count` recipes of no more bytes that are predicted best: which one it is, measuring says."""
    fitting = [each for each in stocks if each.bytes <= tensor_bytes_at_most and each.predicted is not None]
    return sorted(fitting, key=lambda each: (each.predicted, each.bytes))[:count]
