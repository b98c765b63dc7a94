"""What the head's logits are judged by: cross-entropy, a divergence from a teacher, or a mix of both.

An objective sees a chunk of logits at a time (see pillm.train.head_loss), returns sums over the chunk's
tokens, and writes the gradient where the logits were, so that no more than a chunk is ever kept.
Gradients are written out, not left to autograd, which would keep several copies of the chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Objective(Protocol):
    """Sums over some learned tokens: [loss, cross-entropy, divergence], in nats; nan for one that was not computed.

    `logits` [n, V] float32 belong to the learned tokens `rows` of a pack. With `gradient`, they are overwritten
    with the gradient of the loss.
    """

    def __call__(self, logits: torch.Tensor, rows: slice, gradient: bool) -> torch.Tensor:
        """Judge one chunk."""
        ...


Divergence = Callable[[torch.Tensor, slice, bool], tuple[torch.Tensor, torch.Tensor]]
"""(log q [n, V], rows, gradient) -> (sum over rows, gradient with respect to the logits that log q is the
log-softmax of). The second is without meaning if no gradient is asked for."""


def cross_entropy(targets: torch.Tensor) -> Objective:
    """-log q of `targets` [T], token ids."""

    def objective(logits: torch.Tensor, rows: slice, gradient: bool) -> torch.Tensor:
        target = targets[rows, None]
        own = logits.gather(-1, target)
        normalizer, mass = _exponentials(logits)
        total = (normalizer - own).sum()
        if gradient:
            # d loss / d logits = softmax - one-hot
            logits.div_(mass).scatter_add_(-1, target, torch.full_like(own, -1))
        return torch.stack((total, total, total.new_tensor(float("nan"))))

    return objective


def sparse(
    targets: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, entropy: torch.Tensor, share: float
) -> Objective:
    """`share` of the forward KL from sparse targets at temperature 1, and the rest cross-entropy: one softmax for both.

    `ids` and `weights` [T, W] stand for the teacher's distribution: with p̂ a row of weights, the loss is
    -sum p̂ log q, whose gradient is (sum p̂) q - p̂ (for p̂ that sums to 1: Sparse Logit Sampling, arXiv
    2503.16870). `entropy` [T] is what is subtracted (see losses.cached).
    """

    def objective(logits: torch.Tensor, rows: slice, gradient: bool) -> torch.Tensor:
        target, places, weight = targets[rows, None], ids[rows], weights[rows]
        own, at = logits.gather(-1, target), logits.gather(-1, places)
        normalizer, mass = _exponentials(logits)
        of_labels = (normalizer - own).sum()
        known = weight.sum(-1, keepdim=True)
        divergence = ((weight * (normalizer - at)).sum(-1) - entropy[rows]).sum()
        if gradient:
            logits.mul_((share * known + (1 - share)) / mass)
            logits.scatter_add_(-1, places, weight * -share)
            if share < 1:
                logits.scatter_add_(-1, target, torch.full_like(own, share - 1))
        return torch.stack((share * divergence + (1 - share) * of_labels, of_labels, divergence))

    return objective


def mixed(
    targets: torch.Tensor, divergence: Divergence, share: float, temperature: float, common: int | None = None
) -> Objective:
    """`share` of a divergence at a temperature, times its square, and the rest cross-entropy at temperature 1.

    The gradient of a divergence of softened distributions goes with 1 / temperature², so the square keeps the
    mix as it is at every temperature (Hinton et al. 2015, section 2). `common` is how many of the student's
    rows the teacher has, too; the student's others (padding of its embeddings) are left out.
    """

    def objective(logits: torch.Tensor, rows: slice, gradient: bool) -> torch.Tensor:
        if common is not None and common < logits.shape[-1]:
            logits[:, common:] = float("-inf")
        target = targets[rows, None]
        seen = logits[:, :common]
        soft = torch.log_softmax(seen / temperature if temperature != 1 else seen, -1)
        # Cross-entropy costs nothing at temperature 1; at others only a loss that has a part of it makes it.
        if temperature == 1:
            of_labels = -soft.gather(-1, target).sum()
            plain = soft.exp() if gradient and share < 1 else None
        elif share < 1 or not gradient:
            hard = torch.log_softmax(seen, -1)
            of_labels = -hard.gather(-1, target).sum()
            plain = hard.exp_() if gradient else None
        else:
            of_labels, plain = soft.new_tensor(float("nan")), None
        value, slope = divergence(soft, rows, gradient)
        value = value * temperature**2
        if gradient:
            if common is not None:
                logits[:, common:] = 0
            seen.copy_(slope).mul_(share * temperature)
            if plain is not None:
                seen.add_(plain, alpha=1 - share)
                seen.scatter_add_(-1, target, torch.full_like(target, -1, dtype=seen.dtype) * (1 - share))
        loss = share * value + ((1 - share) * of_labels if share < 1 else 0)
        return torch.stack((loss, of_labels, value))

    return objective


def _exponentials(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn logits into exp(logits - their largest), in place. Returns log-sum-exp [n, 1] and the row sums [n, 1]."""
    largest = logits.amax(-1, keepdim=True)
    mass = logits.sub_(largest).exp_().sum(-1, keepdim=True)
    return largest + mass.log(), mass
