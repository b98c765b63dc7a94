"""Losses of the output head, a chunk of tokens at a time.

The logits of 1,000 tokens over a vocabulary of 49,152 are 200 MB in float32, and log-softmax and its
gradient take as much again each. Here a chunk's logits live until its gradient is made, in the
forward pass (as Liger Kernel does, Hsu et al. 2024, arXiv 2410.10989); nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from pillm.train.losses.objectives import Objective, cross_entropy

CHUNK, _ROWS = 128, 32
# Heads that do more than a matrix product say so in their configuration under these names.
_EXTRAS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class _HeadLoss(torch.autograd.Function):
    """Hidden states [T, D] and the head's weight [V, D] in; the loss, and the objective's sums (without gradient) out."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, objective: Objective
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = len(hidden)
        # The last chunk is padded to one of four lengths, since kernels are made for each length that they meet.
        hidden = F.pad(hidden, (0, 0, 0, -count % _ROWS))
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        wanted = of_hidden is not None or of_weight is not None
        sums = hidden.new_zeros(3, dtype=torch.float32)
        # Written to again for every chunk: memory that comes new from the system costs more than the arithmetic.
        rows = min(CHUNK, len(hidden))
        rounded = hidden.new_empty((rows, len(weight)))
        exact = rounded if rounded.dtype == torch.float32 else torch.empty_like(rounded, dtype=torch.float32)
        for start in range(0, count, CHUNK):
            part = hidden[start : start + CHUNK]
            real = min(CHUNK, count - start)
            gradient, logits = rounded[: len(part)], exact[:real]
            torch.mm(part, weight.T, out=gradient)
            if exact is not rounded:
                logits.copy_(gradient[:real])
            sums += objective(logits, slice(start, start + real), wanted)
            if not wanted:
                continue
            if exact is not rounded:
                gradient[:real].copy_(logits)
            gradient[real:] = 0
            if of_hidden is not None:
                torch.mm(gradient, weight, out=of_hidden[start : start + CHUNK])
            if of_weight is not None:
                of_weight += gradient.T @ part
        ctx.save_for_backward(None if of_hidden is None else of_hidden[:count], of_weight)
        ctx.mark_non_differentiable(sums)
        return sums[0].clone(), sums

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        of_hidden, of_weight = ctx.saved_tensors
        scale = gradients[0]
        return (
            None if of_hidden is None else of_hidden * scale.to(of_hidden.dtype),
            None if of_weight is None else of_weight * scale.to(of_weight.dtype),
            None,
        )


class _LogitsLoss(torch.autograd.Function):
    """The same from logits [T, V] that are all there, for heads that are more than one matrix."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, objective: Objective) -> tuple[torch.Tensor, torch.Tensor]:
        gradient = logits.to(torch.float32, copy=True)
        sums = logits.new_zeros(3, dtype=torch.float32)
        for start in range(0, len(gradient), CHUNK):
            rows = slice(start, min(start + CHUNK, len(gradient)))
            sums += objective(gradient[rows], rows, ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient.to(logits.dtype))
        ctx.mark_non_differentiable(sums)
        return sums[0].clone(), sums

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None


def bare(model: Any) -> Any:
    """The causal model inside adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def plain_head(model: Any) -> bool:
    """Whether the logits are the last hidden states times one matrix, and nothing more."""
    causal = bare(model)
    head, config = causal.get_output_embeddings(), causal.config.get_text_config()
    one_matrix = type(head) is torch.nn.Linear and head.bias is None
    return one_matrix and not any(getattr(config, name, None) for name in _EXTRAS)


def judged(
    model: Any, inputs: dict[str, Any], predict: torch.Tensor, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """The objective at the positions `predict` [T] of a batch of one: its loss, summed, and its three sums.

    A head that is more than one matrix goes the plain way, with all its logits at once.
    """
    if not plain_head(model):
        logits = model(**inputs, logits_to_keep=predict, use_cache=False).logits[0]
        return _LogitsLoss.apply(logits, objective)  # type: ignore[return-value]
    causal = bare(model)
    hidden = causal.get_decoder()(**inputs, use_cache=False).last_hidden_state[0, predict]
    return _HeadLoss.apply(hidden, causal.get_output_embeddings().weight, objective)  # type: ignore[return-value]


def summed_loss(model: Any, inputs: dict[str, Any], predict: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy, in nats, of `targets` [T] predicted at the positions `predict` [T] of a batch of one."""
    return judged(model, inputs, predict, cross_entropy(targets))[0]
