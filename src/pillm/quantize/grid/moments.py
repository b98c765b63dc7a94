"""Which tensors are multiplied with the same vectors, and those vectors' second moments, `X'X / tokens`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pillm.core.events import Emit
from pillm.quantize.grid.watch import HEAD, batches, device_of, watch
from pillm.quantize.weights import Loaded

_LEADERS = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate"}
_MOST_BYTES = 1_500_000_000
"""Of moments in memory together; a larger model's are gathered in several passes."""
_PROBE_TOKENS = 1024
_PROBE = 0.05
"""Of the embedding's root mean square. Large against what 16-bit arithmetic does to any disturbed input (KL 0.002)."""


def shared(loaded: Loaded, names: list[str]) -> dict[str, list[str]]:
    """Matrices among `names` by the module whose input they are multiplied with; those of experts are left out."""
    found: dict[str, list[str]] = {}
    for name in names:
        slot = loaded.tensors.get(name)
        if slot is None or len(slot.shape) != 2:
            continue
        module = slot.module
        if name in ("output.weight", "token_embd.weight"):
            if name == "token_embd.weight" and not loaded.tied:
                continue
            module = HEAD
        else:
            block, part, _ = name.rsplit(".", 2)
            leader = loaded.tensors.get(f"{block}.{_LEADERS.get(part, part)}.weight")
            module = leader.module if leader else module
        found.setdefault(module, []).append(name)
    return found


def moments(
    loaded: Loaded, sharing: dict[str, list[str]], tokens: np.ndarray, emit: Emit
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Second moments float32 (columns, columns) of every group of `shared`, some groups a pass over the text."""
    waiting = list(sharing)
    while waiting:
        some: list[str] = []
        size = 0
        while waiting:
            columns = loaded.tensors[sharing[waiting[0]][0]].shape[1]
            size += 4 * columns * columns
            if some and size > _MOST_BYTES:
                break
            some.append(waiting.pop(0))
        sums: dict[str, torch.Tensor] = {}

        def see(module: str, x: torch.Tensor, sums: dict[str, torch.Tensor] = sums) -> None:
            if module not in sums:
                sums[module] = x.new_zeros((x.shape[1], x.shape[1]))
            sums[module].addmm_(x.T, x)

        watch(loaded, {module: module for module in some}, tokens, see, emit, "second moments")
        for module in some:
            total = sums.pop(module) / tokens.size
            if sharing[module] == ["token_embd.weight"]:
                total.diagonal().add_(_as_input(loaded, tokens) * total.diagonal().mean())
            yield sharing[module], total


def _as_input(loaded: Loaded, tokens: np.ndarray) -> float:
    """How much an error in a tied embedding costs where it is read as input, in parts of what it costs as head.

    Measured: the KL that the same small noise makes at either place. As input every channel counts alike, for want of
    anything better; without this part the head's errors would be pushed into channels that the input needs.
    """
    model = loaded.model
    embedding = model.get_input_embeddings().weight.data
    generator = torch.Generator(device="cpu").manual_seed(0)
    noise = torch.empty(embedding.shape, dtype=torch.float32).normal_(generator=generator).to(embedding.device)
    noise *= _PROBE * embedding.float().square().mean().sqrt()
    noisy = (embedding.float() + noise).to(embedding.dtype)
    del noise
    kept = embedding.clone()
    ids = batches(tokens, _PROBE_TOKENS)[0][1][:, :_PROBE_TOKENS].to(device_of(loaded))

    def hidden() -> torch.Tensor:
        return model.model(ids, use_cache=False).last_hidden_state

    with torch.no_grad():
        plain = hidden()
        as_head = _divergence(plain, kept, plain, noisy)
        embedding.copy_(noisy)
        as_input = _divergence(plain, kept, hidden(), kept)
        embedding.copy_(kept)
    return as_input / max(as_head, 1e-12)


def _divergence(one: torch.Tensor, head: torch.Tensor, other: torch.Tensor, other_head: torch.Tensor) -> float:
    total = 0.0
    for mine, theirs in zip(one.flatten(0, 1).split(256), other.flatten(0, 1).split(256), strict=True):
        base = (mine @ head.T).float().log_softmax(-1)
        total += float((base.exp() * (base - (theirs @ other_head.T).float().log_softmax(-1))).sum())
    return total
