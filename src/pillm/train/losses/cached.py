"""Targets from a cache of a teacher's distributions: which dialogue has which, and a pack's as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from pillm.core.errors import UsageError
from pillm.core.records import Record
from pillm.train.dialogues import Encoded

if TYPE_CHECKING:
    from pillm.logit_cache import Cache, Manifest, Targets

_NAMED = 5


class Sparse(NamedTuple):
    """A pack's targets, for its learned tokens in order."""

    ids: torch.Tensor
    """int64 [T, W]; blank places are token 0 with weight 0."""
    weights: torch.Tensor
    """float32 [T, W]"""
    exact: torch.Tensor
    """float32 [T, K]: the weights that are exact probabilities, of `ids[:, :K]`; 0 elsewhere."""
    entropy: torch.Tensor
    """float32 [T], nats: a lower bound of the teacher's entropy."""


def find(cache: Cache, encoded: Sequence[Encoded], records: Sequence[Record], file: str) -> dict[int, int]:
    """Where in the cache each dialogue is, by its number among `records`.

    Raises UsageError if any is not there: a run on a part of the data would look like one on all of it.
    """
    found: dict[int, int] = {}
    missing: list[Encoded] = []
    for item in encoded:
        index = cache.find(item.ids, item.learned)
        if index is None:
            missing.append(item)
        else:
            found[item.number] = index
    if missing:
        ids = ", ".join(repr(records[item.number].id) for item in missing[:_NAMED])
        more = "" if len(missing) <= _NAMED else ", ..."
        why = (
            "the cache is of other data, another chat template or another --loss-on"
            if not found
            else "these records were changed or added after caching, or were left out of it (--max-length)"
        )
        raise UsageError(
            f"--logits: {len(missing)} of {len(encoded)} dialogues of {file} are not in the cache (records {ids}{more}): {why}",
            "cache the data as it is now, with the same template: pillm logits; or train on the data that was cached",
        )
    return found


def entropy_bound(weights: np.ndarray, exact: np.ndarray, top: int, unlikely: float) -> np.ndarray:
    """At least this is the teacher's entropy, nats [T]: known for the exact tokens, and for the rest of mass t at least
    -t log of the most that one of them can have.

    That is `unlikely` where fewer than `top` tokens were kept exactly, all that were at least so probable; else no more
    than the least probable exact one.
    """
    mine = np.arange(weights.shape[1])[None] < exact[:, None]
    known = mine & (weights > 0)
    logs = np.log(np.where(known, weights, 1.0))
    smallest = np.min(np.where(known, weights, 1.0), axis=1, initial=1.0)
    most = np.where(exact < top, np.minimum(unlikely, smallest), smallest)
    rest = np.where(mine, 0.0, weights).sum(1)
    return -(np.where(known, weights, 0.0) * logs).sum(1) - rest * np.log(most)


def joined(parts: Sequence[Targets], vocabulary: int, manifest: Manifest, device: str = "cpu") -> Sparse:
    """The targets of a pack's dialogues, one after the other, as tensors on a device.

    Tokens that the student has no row for (a teacher's padding) are left out.
    """
    width = max(part.ids.shape[1] for part in parts)
    count = sum(len(part.ids) for part in parts)
    ids, weights = np.zeros((count, width), np.int64), np.zeros((count, width), np.float32)
    exact = np.concatenate([part.exact for part in parts])
    at = 0
    for part in parts:
        rows = slice(at, at + len(part.ids))
        ids[rows, : part.ids.shape[1]], weights[rows, : part.ids.shape[1]] = part.ids, part.weights
        at = rows.stop
    outside = ids >= vocabulary
    ids[outside], weights[outside] = 0, 0.0
    # Of a sampled cache, whatever was as probable as one sample in all of them was kept exactly.
    unlikely = 1 / manifest.samples if manifest.kind == "sampled" and manifest.samples else 1.0
    entropy = entropy_bound(weights, exact, manifest.top, unlikely).astype(np.float32)
    top = int(exact.max(initial=0))
    known = np.where(np.arange(top)[None] < exact[:, None], weights[:, :top], np.float32(0))
    return Sparse(*(torch.from_numpy(array).to(device) for array in (ids, weights, known, entropy)))
