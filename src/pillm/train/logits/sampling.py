"""From logits to a sparse distribution whose expectation is the distribution.

Of a distribution p and a resolution S, all p_v >= 1/S are kept exactly (at most `top`). The rest, the tail, has the mass
M; it is represented by n = max(1, floor(S M)) samples of weight M / n each, drawn by systematic sampling: the tail's
probabilities are laid end to end on [0, M), and the points (u + k) M / n, k = 0 .. n - 1, with one u uniform in [0, 1),
each pick the token that they fall on. Token v is hit p_v / (M / n) times on average, so the expected weight of v is p_v.

Sparse Logit Sampling (arXiv 2503.16870) draws S independent tokens from p itself and keeps their counts. Both are
unbiased. Here what would be drawn again and again costs one exact entry without any variance, and of tail tokens
(p_v < 1/S <= M / n) none is hit twice. The bound 1/S is the same for all tokens since the variance of a tail of mass M with n
samples is about M^2 / n, whose derivative by n is -(M / n)^2: the same M / n everywhere spends entries best.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from pillm.logit_cache.rows import SMALLEST, Rows

LEFT = 1e-4
"""A plain top-k row ends where less than this mass is left."""


class Sparse(NamedTuple):
    """Rows of a chunk, and sums for the report."""

    rows: Rows
    entropy: float
    """Sum over tokens, in nats."""


def offsets(seed: int, key: bytes, count: int) -> np.ndarray:
    """The random numbers u of a dialogue's `count` learned tokens, float64 in [0, 1). They depend on its content only."""
    bits = np.random.Philox(key=np.array([seed, int.from_bytes(key[:8], "little")], np.uint64))
    return np.random.Generator(bits).random(count)


def sparse(logits: torch.Tensor, u: torch.Tensor, top: int, samples: int, temperature: float = 1.0) -> Sparse:
    """Sparse rows of softmax(logits / temperature); `logits` float32 [C, V] is overwritten, `u` float64 [C].

    With `samples` 0 only the top is kept, and what is left is no more than a number. Raises FloatingPointError
    where a logit is NaN or infinite.
    """
    if temperature != 1:
        logits.div_(temperature)
    logs = torch.log_softmax(logits, -1)
    p = torch.exp(logs, out=logits)
    # 0 * -inf is no number; tokens that a model forbids have no part in the entropy.
    entropy = -math.fsum(logs.clamp_(min=-1e4).mul_(p).sum(-1).tolist())
    if not math.isfinite(entropy):
        raise FloatingPointError("logits that are no numbers")
    rows = _top(p, top) if samples == 0 else _sampled(p, u, top, samples)
    return Sparse(rows, entropy)


def _top(p: torch.Tensor, top: int) -> Rows:
    values, ids = p.topk(min(top, p.shape[1]), -1)
    before = values.cumsum(-1) - values
    kept = (1 - before >= LEFT) & (values >= SMALLEST)
    exact = kept.sum(-1)
    mass = (1 - (values * kept).sum(-1)).clamp(min=0)
    none = np.zeros(0, np.int64)
    return Rows(_numpy(exact), np.zeros(len(p), np.int64), _numpy(mass), _numpy(values[kept]), _numpy(ids[kept]), none)


def _sampled(p: torch.Tensor, u: torch.Tensor, top: int, samples: int) -> Rows:
    width = p.shape[1]
    found = _true(p >= 1 / samples)
    exact = torch.bincount(found // width, minlength=len(p))
    if (over := (exact > top).nonzero()[:, 0]).numel():
        within = p.topk(min(top, width), -1).indices[over] + over[:, None] * width
        found = torch.cat((found[~torch.isin(found // width, over)], within.flatten())).sort().values
        exact = torch.bincount(found // width, minlength=len(p))
    values, exact_ids = p.view(-1)[found], found % width
    p.view(-1)[found] = 0
    # In float32 a long sum's steps would not be the probabilities; Apple's GPUs have nothing longer.
    wide = torch.float32 if p.device.type == "mps" else torch.float64
    ends = p.to(wide).cumsum_(-1)
    mass = ends[:, -1]
    count = (mass * samples + 1e-6).floor().clamp(min=1)
    count = torch.where(mass < SMALLEST, 0, count)
    most = int(count.max())
    places = torch.arange(most, device=p.device, dtype=wide)[None]
    points = (u.to(wide)[:, None] + places) * (mass / count.clamp(min=1))[:, None]
    # Rounding may put the last point on the end, where no token is.
    points = torch.minimum(points, torch.nextafter(mass, torch.zeros_like(mass))[:, None])
    hit = torch.searchsorted(ends, points, right=True)
    used = places < count[:, None]
    return Rows(_numpy(exact), _numpy(count.long()), _numpy(mass), _numpy(values), _numpy(exact_ids), _numpy(hit[used]))


def _true(mask: torch.Tensor) -> torch.Tensor:
    """Flat indices of what is true. On a CPU numpy finds them many times as fast."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def joined(parts: list[Rows]) -> Rows:
    """Rows one after the other."""
    return Rows(*(np.concatenate([part[field] for part in parts]) for field in range(len(Rows._fields))))


def split(rows: Rows, counts: list[int]) -> list[Rows]:
    """Rows cut into dialogues of so many tokens each."""
    exact_ends, sample_ends = np.cumsum(rows.exact), np.cumsum(rows.samples)
    result: list[Rows] = []
    at = e = s = 0
    for count in counts:
        end = at + count
        e_end, s_end = (int(exact_ends[end - 1]), int(sample_ends[end - 1])) if count else (e, s)
        places, entries, samples = slice(at, end), slice(e, e_end), slice(s, s_end)
        parts = (rows.exact[places], rows.samples[places], rows.mass[places])
        result.append(Rows(*parts, rows.values[entries], rows.exact_ids[entries], rows.sample_ids[samples]))
        at, e, s = end, e_end, s_end
    return result
