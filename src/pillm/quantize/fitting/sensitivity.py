"""How much the model's predictions suffer from an error in each weight, and from rounding what each layer is given.

For small errors e of the weights the divergence of the model's predictions is, per token,

    KL = 1/2 sum over weights of F e^2,    F = E[g^2],

with g the gradient of the log-likelihood of a label that is drawn from the model's own prediction (the Fisher
information; Amari, Natural gradient works efficiently in learning, 1998; off-diagonal terms are left out). A sequence's
labels are drawn at once, and the squared gradient of their sum estimates the sum over its tokens, since the terms of
different tokens are independent with mean 0.

F of single weights is noisy after a few thousand tokens. What is kept is one number for each row and 32 columns, r, with

    F[i, j] = r[i, j // 32] m[j],    m[j] = E[x[j]^2]

the second moments of the layer's inputs: the gradient of a weight is its row's error signal times its column's input.
So the memory is a thirty-second of the model's, and gradients are dropped one by one as they are made.

llama.cpp rounds a layer's inputs to 8 bits, in blocks of 32 for the types with blocks of 32 and of 256 for the others,
with a step of the block's largest magnitude / 127. The cost is 1/2 sum of (dL/dx)^2 e^2 with e what that changes in x: where
one outlier sets the step, most of a block is below half of it, and e is x itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from pillm.core.events import Emit, Progress
from pillm.quantize.fitting.texts import Tokens
from pillm.quantize.weights import Loaded, Slot

BLOCK = 32
"""Columns that share a number."""
SEQUENCE = 256
"""Tokens of a sequence whose gradient is squared."""
_WARM = 64
"""Tokens at its beginning whose predictions do not count: with little before them a model is unsure, and errors cost more
than where texts are longer."""
_ROUNDED = (32, 256)


class Sensitivity(msgspec.Struct, frozen=True):
    """By tensor: second moments of its inputs [experts or 1, columns], rows of r [rows, blocks], and what rounding its inputs costs.

    Tensors that nothing is known of (norms, biases) are left out. `rounding` is in nats a token, by block width.
    """

    moments: dict[str, NDArray[np.float32]]
    rows: dict[str, NDArray[np.float32]]
    rounding: dict[str, dict[int, float]]
    tokens: int
    """That the moments were measured on."""


def moments(loaded: Loaded, tokens: Tokens, emit: Emit) -> dict[str, NDArray[np.float32]]:
    """Mean square of each column of what each matrix is multiplied with; a tied embedding's as the head."""
    sums: dict[str, torch.Tensor] = {}
    count = [0]

    def hook(name: str) -> Callable[..., None]:
        def look(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
            sums[name] = sums.get(name, torch.zeros(x.shape[1])) + x.square().sum(0).cpu()

        return look

    watched = _watched(loaded)
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in watched.items()]
    try:
        with torch.inference_mode():
            for at in range(0, len(tokens), 2):
                ids = torch.from_numpy(tokens[at : at + 2].astype(np.int64)).to(loaded.model.device)
                loaded.model(ids, use_cache=False)
                count[0] += ids.numel()
                emit(Progress("second moments", at + len(ids), len(tokens), "chunks"))
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for slot in _matrices(loaded):
        name = _module_of(loaded, slot)
        if name in sums:
            found[slot.name] = (sums[name] / count[0]).numpy()[None]
    return found


def fisher(
    loaded: Loaded, tokens: Tokens, known: dict[str, NDArray[np.float32]], *, sequences: int, seed: int, emit: Emit
) -> Sensitivity:
    """Squared gradients of `sequences` pieces, evenly over `tokens`, and what rounding inputs costs."""
    generator = torch.Generator().manual_seed(seed)
    model, slots = loaded.model, _matrices(loaded)
    rows: dict[str, torch.Tensor] = {}
    rounding: dict[str, dict[int, float]] = {}
    by_parameter: dict[int, list[Slot]] = {}
    for slot in slots:
        by_parameter.setdefault(id(slot.parameter), []).append(slot)

    def collect(parameter: torch.nn.Parameter) -> None:
        if parameter.grad is None:
            return
        for slot in by_parameter[id(parameter)]:
            blocks = _blocks(slot.to_file(parameter.grad).float().square()).sum(-1).cpu()
            rows[slot.name] = rows[slot.name] + blocks if slot.name in rows else blocks
        parameter.grad = None

    for slot in slots:
        slot.parameter.requires_grad_(True)
    handles: list[Any] = [
        group[0].parameter.register_post_accumulate_grad_hook(collect) for group in by_parameter.values()
    ]
    seen: dict[str, torch.Tensor] = {}
    names: dict[str, list[str]] = {}
    for slot in slots:
        names.setdefault(_module_of(loaded, slot), []).append(slot.name)
    for name, module in _watched(loaded).items():
        handles.append(module.register_forward_hook(_input_hook(name, names.get(name, []), seen, rounding)))
    pieces = _pieces(tokens, sequences).to(loaded.model.device)
    counted = pieces.shape[1] - min(_WARM, pieces.shape[1] // 4)
    try:
        for number, piece in enumerate(pieces):
            logits = model(piece[None], use_cache=False, logits_to_keep=counted).logits[0].float()
            labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).to(logits.device)
            loss = torch.nn.functional.cross_entropy(logits, labels[:, 0], reduction="sum")
            seen.clear()
            loss.backward()
            emit(Progress("sensitivity", number + 1, len(pieces), "sequences"))
    finally:
        for handle in handles:
            handle.remove()
        for slot in slots:
            slot.parameter.requires_grad_(False)
            slot.parameter.grad = None
    total = len(pieces) * counted
    scaled = {}
    for slot in slots:
        if slot.name not in rows:
            continue
        own = known.get(slot.name)
        width = slot.shape[-1]
        # Without moments of its own (an expert, an untied embedding) every column counts alike.
        column = torch.from_numpy(own[0]) if own is not None else torch.ones(width)
        weight = _blocks(column[None].double()).sum(-1).clamp_min(1e-30)
        scaled[slot.name] = (rows[slot.name].double() / total / weight).float().numpy()
    costs = {name: {block: value / total for block, value in by.items()} for name, by in rounding.items()}
    return Sensitivity(known, scaled, costs, int(tokens.size))


def weighted_error(sensitivity: Sensitivity, name: str, error: NDArray[np.float32]) -> float:
    """1/2 sum of F e^2, in nats a token, of an error [..., rows, columns] of the tensor."""
    rows, own = sensitivity.rows[name], sensitivity.moments.get(name)
    width = error.shape[-1]
    squares = np.square(error, dtype=np.float32).reshape(-1, width)
    if own is not None:
        squares *= own[0]
    pad = -width % BLOCK
    if pad:
        squares = np.pad(squares, ((0, 0), (0, pad)))
    blocks = squares.reshape(len(squares), -1, BLOCK).sum(-1)
    return 0.5 * float((blocks * rows.reshape(blocks.shape)).sum(dtype=np.float64))


def _input_hook(
    name: str, tensors: list[str], seen: dict[str, torch.Tensor], rounding: dict[str, dict[int, float]]
) -> Callable[..., None]:
    """On a layer's output: when its gradient comes, carry it back to the input and weigh the input's rounding."""

    def look(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            return
        x = inputs[0].detach()

        def back(grad: torch.Tensor) -> None:
            carried = (grad.detach() @ module.weight.detach()).float().reshape(-1, x.shape[-1])
            for tensor in tensors:
                costs = rounding.setdefault(tensor, dict.fromkeys(_ROUNDED, 0.0))
                for block in _ROUNDED:
                    costs[block] += 0.5 * float((carried * _rounding(x, block)).square().sum(dtype=torch.float64))

        output.register_hook(back)

    return look


def _rounding(x: torch.Tensor, block: int) -> torch.Tensor:
    """What rounding the inputs [..., columns] to 8 bits changes, as [rows, columns]."""
    flat = x.reshape(-1, x.shape[-1]).float()
    pad = -flat.shape[1] % block
    wide = torch.nn.functional.pad(flat, (0, pad)).reshape(len(flat), -1, block)
    step = (wide.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return (wide - (wide / step).round() * step).reshape(len(flat), -1)[:, : flat.shape[1]]


def _blocks(values: torch.Tensor) -> torch.Tensor:
    """[..., columns] as [rows, blocks, 32], padded with zeros."""
    flat = values.reshape(-1, values.shape[-1])
    pad = -flat.shape[1] % BLOCK
    return torch.nn.functional.pad(flat, (0, pad)).reshape(len(flat), -1, BLOCK)


def _pieces(tokens: Tokens, sequences: int) -> torch.Tensor:
    length = min(SEQUENCE, tokens.shape[1])
    picks = [math.floor(n * len(tokens) / sequences) for n in range(sequences)]
    starts = [(n * 61) % max(1, tokens.shape[1] - length + 1) for n in range(sequences)]
    rows = [tokens[p, s : s + length] for p, s in zip(picks, starts, strict=True)]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def _matrices(loaded: Loaded) -> list[Slot]:
    return [slot for slot in loaded.tensors.values() if slot.is_matrix]


def _module_of(loaded: Loaded, slot: Slot) -> str:
    """The linear layer that the tensor is the weight of; a tied embedding's is the head."""
    return "lm_head" if slot.name == "token_embd.weight" and loaded.tied else slot.module


def _watched(loaded: Loaded) -> dict[str, Any]:
    wanted = {_module_of(loaded, slot) for slot in _matrices(loaded)}
    return {
        name: module
        for name, module in loaded.model.named_modules()
        if name in wanted and isinstance(module, torch.nn.Linear)
    }
