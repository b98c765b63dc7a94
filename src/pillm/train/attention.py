"""Attention over a pack, piece by piece.

A pack is a shared beginning and continuations that see it and themselves. One dense mask over the
whole pack would compute scores that are thrown away (three of four with 150 shared tokens and
continuations of 70). So each piece is a small attention of its own. On a GPU that is torch's fused kernel; on a
CPU it is written out, since the fused kernel takes 1.8 times as long there, forward and backward, in
bfloat16 at these sizes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from pillm.core.errors import UsageError

NAME = "pillm-pack"
_LENGTH = 32
"""On a CPU pieces are attended to at multiples of this length: blank positions come after all others, where no query
sees them. oneDNN makes and keeps kernels for each shape; with every length its own they took a gigabyte. Each shared
beginning still brings shapes of its own."""


def pack_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    pieces: Sequence[int],
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a batch of one pack: `query` [1, H, L, D], `key` and `value` [1, K, L, D] -> [1, L, H, D].

    `pieces` are the bounds of the shared beginning and of each continuation: [0, P, e1, e2, ..., L].
    """
    if any(more.get(name) is not None for name in ("softcap", "s_aux")):
        raise UsageError("this model's attention has parts that pillm cannot train", "take another model")
    # One split, and not a slice a piece: the gradient of a slice is a tensor of the whole length.
    lengths = [end - start for start, end in itertools.pairwise(pieces)]
    keys, values = key.split(lengths, dim=2), value.split(lengths, dim=2)
    shared = lengths[0]
    results: list[torch.Tensor] = []
    for number, (length, q, k, v) in enumerate(zip(lengths, query.split(lengths, dim=2), keys, values, strict=True)):
        if not length:
            continue
        before = shared if number else 0
        spare = -length % _LENGTH if q.device.type == "cpu" else 0
        if before:
            k, v = torch.cat((keys[0], k), 2), torch.cat((values[0], v), 2)
        k, v = (F.pad(tensor, (0, 0, 0, spare)) for tensor in (k, v))
        hidden = _hidden(length + spare, before, sliding_window, q.device)
        results.append(_attend(F.pad(q, (0, 0, 0, spare)), k, v, hidden, scaling, dropout)[:, :, :length])
    return torch.cat(results, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor, scaling: float, dropout: float
) -> torch.Tensor:
    """softmax(q k' * scaling) v over the keys that are not `hidden` [Q, N].

    `query` [1, H, Q, D], `key` [1, K, N, D], `value` [1, K, N, E] -> [1, H, Q, E]
    """
    heads, length, width = query.shape[1:]
    if query.device.type != "cpu":
        # Repeated here: with a mask, CUDA has no fused kernel that takes fewer keys than queries.
        key, value = (repeat_kv(tensor, heads // tensor.shape[1]) for tensor in (key, value))
        return F.scaled_dot_product_attention(query, key, value, ~hidden, dropout, scale=scaling)
    # The queries that share a key-value head are rows of one product, so that no key or value is repeated.
    grouped = (query * scaling).reshape(1, key.shape[1], -1, width)
    scores = (grouped @ key.transpose(-1, -2)).view(1, heads, length, -1).masked_fill_(hidden, float("-inf"))
    weights = F.dropout(F.softmax(scores, -1), dropout)
    return (weights.view(1, key.shape[1], -1, weights.shape[-1]) @ value).view(1, heads, length, -1)


# The layers of a pack ask for the same few; more would hold on to memory that nothing accounts for.
@functools.lru_cache(32)
def _hidden(length: int, before: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which of (before + length) keys each of `length` queries does not see: bool [length, before + length]."""
    # What is made in inference mode can never be used in training, and these are kept for both.
    with torch.inference_mode(False):
        at = torch.arange(before, before + length, device=device)[:, None]
        keys = torch.arange(before + length, device=device)[None]
        return keys > at if window is None else (keys > at) | (at - keys >= window)


def use(model: Any) -> None:
    """Make `model` attend pack by pack; its forward then takes `pieces`. Raises UsageError for what cannot."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if other := kinds - {"full_attention", "sliding_attention"}:
        # Such layers would carry one dialogue's state into the next.
        raise UsageError(f"pillm cannot run packs through layers of {', '.join(other)}", "take another model")
    AttentionInterface.register(NAME, pack_attention)
    model.set_attn_implementation(NAME)
