"""Training inside the grid: the quantized model's predictions are drawn to the unquantized one's.

The loss is the forward KL of all next-token distributions. The model always computes with exactly what the file will
decode to. Behind each code stands a latent number, which the gradient moves as if it were not rounded (the
straight-through estimator, Bengio et al. 2013); latents begin where the unquantized weight lies, but at most 0.45 from
the code that rounding chose. Scales and minima are float32, used as the float16 that the file holds; whole-numbered
scales of groups stand. The optimizer is Adam, its rates in steps of the grid or relative to a block's scale.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pillm.core.artifacts import atomic_file
from pillm.core.events import Emit, Log, Metric, Progress
from pillm.quantize.grid.codec import Packed
from pillm.quantize.grid.latents import Trained, made_of, norm_of
from pillm.quantize.grid.watch import batches, device_of
from pillm.quantize.weights import Loaded, decoded

_STEP_TOKENS = 2048
_HELD_TOKENS = 4096
_HEAD_TOKENS = 256
_WARM_UP = 5
_CHECK_EVERY = 10
_SAVE_SECONDS = 180.0
"""A checkpoint has 14 bytes a weight."""


def distilled(
    loaded: Loaded, packed: dict[str, Packed], tokens: np.ndarray, seconds: float | None, checkpoint: Path, emit: Emit
) -> tuple[dict[str, Packed], dict[str, np.ndarray]]:
    """The best of what one pass over `tokens` int (sequences, context) made of `packed`, and of the norms.

    `loaded` is the unquantized model. A part of the text is held out; the state with the least KL there is returned,
    the untrained one included. `seconds` ends the pass early. The state is kept in `checkpoint`.
    """
    held = min(max(1, _HELD_TOKENS // tokens.shape[1]), max(1, len(tokens) // 8))
    judged, taught = batches(tokens[-held:], _STEP_TOKENS), batches(tokens[:-held], _STEP_TOKENS)
    student = copy.deepcopy(loaded)
    parts = _parts(student, packed)
    for part in parts:
        part.slot.parameter.requires_grad_(True)
    began, saved = time.monotonic(), time.monotonic()
    first, least = 0, math.inf
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        first, least, spent = state["step"], state["least"], state["seconds"]
        began -= spent
        for part, kept in zip(parts, state["parts"], strict=True):
            part.restore(kept)
    for part in parts:
        part.show()
    if not first:
        least = _judge(loaded, student, judged)
        emit(Log(f"before training: KL {least:.5f} on held-out calibration text"))
        for part in parts:
            part.remember()
    for step in range(first, len(taught)):
        if seconds is not None and time.monotonic() - began > seconds:
            emit(Log(f"distillation ends after {step} of {len(taught)} steps: its time is over", "warning"))
            break
        loss = _teach(loaded, student, taught[step][1])
        rate = min(1.0, (step + 1) / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / len(taught)))
        for part in parts:
            part.learn(step + 1, rate)
        emit(Metric("kl", loss, step))
        emit(Progress("distillation", step + 1, len(taught), "steps"))
        if (step + 1) % _CHECK_EVERY == 0 or step + 1 == len(taught):
            least = _keep_best(loaded, student, judged, parts, least, emit)
        if time.monotonic() - saved > _SAVE_SECONDS:
            saved = time.monotonic()
            _save(checkpoint, step + 1, least, saved - began, parts)
    else:
        first = len(taught)
    if first < len(taught):
        _keep_best(loaded, student, judged, parts, least, emit)
    better = dict(packed)
    norms: dict[str, np.ndarray] = {}
    for part in parts:
        if part.packed is None:
            norms[part.slot.name] = part.best_values()
        else:
            better[part.slot.name] = part.best_packed()
    return better, norms


def _parts(student: Loaded, packed: dict[str, Packed]) -> list[Trained]:
    tensors = {tensor.name: tensor for tensor in student.file.tensors}
    parts = []
    for name, slot in student.tensors.items():
        if name in packed and len(slot.shape) == 2:
            parts.append(made_of(slot, packed[name], decoded(student.file, tensors[name])))
        elif tensors[name].type == "F32" and not slot.is_matrix:
            parts.append(norm_of(slot, decoded(student.file, tensors[name])))
    return parts


def _keep_best(
    loaded: Loaded, student: Loaded, judged: Any, parts: list[Trained], least: float, emit: Emit
) -> float:  # fmt: skip
    now = _judge(loaded, student, judged)
    emit(Metric("held-out kl", now))
    if now < least:
        for part in parts:
            part.remember()
    return min(least, now)


def _teach(teacher: Loaded, student: Loaded, ids: torch.Tensor) -> float:
    """One forward and backward pass; gradients are left in the student's parameters. Returns the mean KL."""
    ids = ids.to(device_of(student))
    with torch.no_grad():
        wanted = teacher.model.model(ids, use_cache=False).last_hidden_state.flatten(0, 1)
    hidden = student.model.model(ids, use_cache=False).last_hidden_state
    flat = hidden.detach().flatten(0, 1).requires_grad_(True)
    head = student.model.lm_head.weight
    pull = torch.zeros_like(head, dtype=torch.float32) if head.requires_grad else None
    pulls, total = [], 0.0
    for start in range(0, len(flat), _HEAD_TOKENS):
        some = flat[start : start + _HEAD_TOKENS].detach().requires_grad_(True)
        loss = _divergence(teacher, wanted[start : start + _HEAD_TOKENS], student, some) / len(flat)
        if pull is None:
            (own,) = torch.autograd.grad(loss, [some])
        else:
            own, more = torch.autograd.grad(loss, [some, head])
            pull += more
        pulls.append(own)
        total += float(loss.detach())
    hidden.backward(torch.cat(pulls).reshape(hidden.shape).to(hidden.dtype))
    if pull is not None:
        head.grad = (pull if head.grad is None else head.grad.float() + pull).to(head.dtype)
    return total


def _judge(teacher: Loaded, student: Loaded, judged: Any) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for _, batch in judged:
            ids = batch.to(device_of(student))
            wanted = teacher.model.model(ids, use_cache=False).last_hidden_state.flatten(0, 1)
            got = student.model.model(ids, use_cache=False).last_hidden_state.flatten(0, 1)
            for mine, theirs in zip(wanted.split(_HEAD_TOKENS), got.split(_HEAD_TOKENS), strict=True):
                total += float(_divergence(teacher, mine, student, theirs))
            count += len(wanted)
    return total / count


def _divergence(teacher: Loaded, wanted: torch.Tensor, student: Loaded, got: torch.Tensor) -> torch.Tensor:
    """Sum over rows of the KL of the student's predictions from the teacher's."""
    with torch.no_grad():
        base = _logits(teacher.model, wanted).log_softmax(-1)
    return torch.nn.functional.kl_div(
        _logits(student.model, got).log_softmax(-1), base, reduction="sum", log_target=True
    )


def _logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    logits = model.lm_head(hidden).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _save(checkpoint: Path, step: int, least: float, spent: float, parts: list[Trained]) -> None:
    with atomic_file(checkpoint) as file:
        torch.save({"step": step, "least": least, "seconds": spent, "parts": [part.state() for part in parts]}, file)
