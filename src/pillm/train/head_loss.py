"""Cross-entropy of the output head, a chunk of tokens at a time.

The logits of 1,000 tokens over a vocabulary of 49,152 are 200 MB in float32, and log-softmax and its
gradient take as much again each. Here a chunk's logits live until its gradient is made, in the
forward pass (as Liger Kernel does, Hsu et al. 2024, arXiv 2410.10989); nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

CHUNK, _ROWS = 128, 32
# Heads that do more than a matrix product say so in their configuration under these names.
_EXTRAS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        count = len(targets)
        # The last chunk is padded to one of four lengths, since kernels are made for each length that they meet.
        hidden = F.pad(hidden, (0, 0, 0, -count % _ROWS))
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        total = hidden.new_zeros((), dtype=torch.float32)
        # Written to again for every chunk: memory that comes new from the system costs more than the arithmetic.
        rows = min(CHUNK, len(hidden))
        rounded = hidden.new_empty((rows, len(weight)))
        exact = rounded if rounded.dtype == torch.float32 else torch.empty_like(rounded, dtype=torch.float32)
        for start in range(0, count, CHUNK):
            part, target = hidden[start : start + CHUNK], targets[start : start + CHUNK, None]
            gradient, logits = rounded[: len(part)], exact[: len(target)]
            torch.mm(part, weight.T, out=gradient)
            if exact is not rounded:
                logits.copy_(gradient[: len(target)])
            largest = logits.amax(-1, keepdim=True)
            total += (largest - logits.gather(-1, target)).sum()
            mass = logits.sub_(largest).exp_().sum(-1, keepdim=True)
            total += mass.log().sum()
            if of_hidden is None and of_weight is None:
                continue
            # d loss / d logits = softmax - one-hot
            logits.div_(mass).scatter_add_(-1, target, torch.full_like(target, -1, dtype=logits.dtype))
            if exact is not rounded:
                gradient[: len(target)].copy_(logits)
            gradient[len(target) :] = 0
            if of_hidden is not None:
                torch.mm(gradient, weight, out=of_hidden[start : start + CHUNK])
            if of_weight is not None:
                of_weight += gradient.T @ part
        ctx.save_for_backward(None if of_hidden is None else of_hidden[:count], of_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        of_hidden, of_weight = ctx.saved_tensors
        scale = gradients[0]
        return (
            None if of_hidden is None else of_hidden * scale.to(of_hidden.dtype),
            None if of_weight is None else of_weight * scale.to(of_weight.dtype),
            None,
        )


def summed_loss(model: Any, inputs: dict[str, Any], predict: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy, in nats, of `targets` [T] predicted at the positions `predict` [T] of a batch of one.

    A head that is more than one matrix goes the plain way, with all its logits at once.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    head, config = causal.get_output_embeddings(), causal.config.get_text_config()
    plain = type(head) is not torch.nn.Linear or head.bias is not None
    if plain or any(getattr(config, name, None) for name in _EXTRAS):
        logits = model(**inputs, logits_to_keep=predict, use_cache=False).logits[0]
        return F.cross_entropy(logits.float(), targets, reduction="sum")
    hidden = causal.get_decoder()(**inputs, use_cache=False).last_hidden_state[0, predict]
    return _HeadLoss.apply(hidden, head.weight, targets)  # type: ignore[no-any-return]
