"""The file of log-probabilities that llama-perplexity saves and compares with.

    b"_logits_", int32 context, int32 vocabulary, int32 chunks, int32[chunks * context] tokens,
    then for each token from context // 2 to context - 2 of each chunk one row of uint16:
    float32 scale and float32 minimum (as four uint16), then vocabulary values, padded to an even count

A log-probability is `minimum + scale * value`; those more than 16 nats below the top are raised to it.
Source: tools/perplexity/perplexity.cpp of llama.cpp. Values are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pillm.core.errors import UsageError, writing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAGIC = b"_logits_"
_RANGE_NATS = 16.0
_STEPS = 65535


class Header(msgspec.Struct, frozen=True):
    """What a logits file was made of; `tokens` is how many of its tokens are measured."""

    context: int
    vocabulary: int
    chunks: int
    tokens: int


def measured(context: int) -> int:
    """Tokens of a chunk whose prediction is measured: those after the first half, less the last."""
    return context - 1 - context // 2


def read_header(path: Path) -> Header:
    """Raises UsageError if `path` is not a whole file of logits."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC) + 12)
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", "check the path") from error
    if len(start) < len(_MAGIC) + 12 or not start.startswith(_MAGIC):
        raise UsageError(f"{path}: not a file of saved logits", "make it with llama-perplexity")
    context, vocabulary, chunks = struct.unpack_from("<3i", start, len(_MAGIC))
    tokens = chunks * measured(context)
    if size != len(start) + 4 * chunks * context + 2 * tokens * _row_length(vocabulary):
        raise UsageError(f"{path}: the file of saved logits is cut off", "make it again")
    return Header(context, vocabulary, chunks, tokens)


def write(path: Path, tokens: NDArray[np.int32], chunks: Iterable[NDArray[np.float32]], vocabulary: int) -> None:
    """Write logits computed elsewhere, for `perplexity.kl_divergence`.

    `tokens` is [chunks, context]; each item of `chunks` is [context - 1 - context // 2, vocabulary or more],
    the raw logits at positions context // 2 to context - 2 (those of the token that follows each).
    """
    import numpy as np

    count, context = tokens.shape
    with writing(path), path.open("wb") as file:
        file.write(_MAGIC + struct.pack("<3i", context, vocabulary, count))
        file.write(tokens.astype("<i4").tobytes())
        for block in chunks:
            logits = np.asarray(block, dtype=np.float32)[:, :vocabulary]
            top = logits.max(axis=1, keepdims=True)
            low = np.maximum(logits.min(axis=1, keepdims=True), top - _RANGE_NATS)
            total = np.log(np.exp(logits - top).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
            scale = (top - low) / _STEPS
            rows = np.zeros((len(logits), _row_length(vocabulary)), dtype="<u2")
            rows[:, :4] = np.concatenate([scale, low - top - total], axis=1).astype("<f4").view("<u2")
            # All logits equal: scale 0, and every value stays 0.
            steps = np.divide(np.maximum(logits - low, 0), scale, out=np.zeros_like(logits), where=scale > 0)
            rows[:, 4 : 4 + vocabulary] = np.rint(steps).astype("<u2")
            file.write(rows.tobytes())


def _row_length(vocabulary: int) -> int:
    """In uint16."""
    return 2 * ((vocabulary + 1) // 2) + 4
