"""Divergences of a student's distribution q from a teacher's p, with their gradients.

For a function f of probabilities q = softmax(z), df/dz_i = q_i (f_i - sum_j q_j f_j), where f_i = df/dq_i.
All sums are in nats; rows are learned tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from pillm.train.losses.objectives import Divergence

Kind = Literal["forward-kl", "reverse-kl", "jsd"]
TeacherLogits = Callable[[slice | torch.Tensor], torch.Tensor]
"""Teacher's logits of some learned tokens of a pack: float32 [n, V]."""

FLOOR = 1e-6
"""A cache's probabilities are rounded: a remainder below this is taken as this, or reverse KL would be infinite."""


def dense(kind: Kind, teacher: TeacherLogits, temperature: float, beta: float) -> Divergence:
    """Over the whole vocabulary: KL(p‖q), KL(q‖p), or the generalised Jensen-Shannon divergence
    beta KL(p‖m) + (1 - beta) KL(q‖m) with m = beta p + (1 - beta) q (Agarwal et al. 2024, equation 1).
    """

    def divergence(log_q: torch.Tensor, rows: slice, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
        # Rows that only one of the two has are padding of its embeddings; they are left out of both distributions.
        log_p = torch.log_softmax(teacher(rows)[:, : log_q.shape[-1]] / temperature, -1)
        return between(kind, log_p, log_q, beta, gradient)

    return divergence


def coarse(kind: Kind, ids: torch.Tensor, weights: torch.Tensor, beta: float) -> Divergence:
    """Reverse KL or JSD of the two distributions over the tokens `ids` [T, K] and one bucket for all others.

    Both are f-divergences, so this is at most the divergence over the vocabulary (data-processing
    inequality): what the student does within the bucket is not judged. Places of weight 0 are blank.
    """

    def divergence(log_q: torch.Tensor, rows: slice, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
        places, p = ids[rows], weights[rows]
        there = p > 0
        q = log_q.exp()
        at = q.gather(-1, places).masked_fill(~there, 0)
        rest_p = (1 - p.sum(-1, keepdim=True)).clamp_min(FLOOR)
        rest_q = (1 - at.sum(-1, keepdim=True)).clamp_min(FLOOR)
        log_small_p = torch.cat((torch.where(there, p, 1).log(), rest_p.log()), -1)
        log_small_q = torch.cat((torch.where(there, log_q.gather(-1, places), 0), rest_q.log()), -1)
        small_q = torch.cat((at, rest_q), -1)
        small_p = torch.cat((p, rest_p), -1)
        value, slopes = _parts(kind, small_p, log_small_p, small_q, log_small_q, beta)
        if not gradient:
            return value.sum(), q
        of_rest = slopes[:, -1:]
        mean = (small_q * slopes).sum(-1, keepdim=True)
        extra = ((slopes[:, :-1] - of_rest) * at).masked_fill_(~there, 0)
        return value.sum(), q.mul_(of_rest - mean).scatter_add_(-1, places, extra)

    return divergence


def forward_sparse(ids: torch.Tensor, weights: torch.Tensor, entropy: torch.Tensor) -> Divergence:
    """Forward KL from sparse targets, as `objectives.sparse` has it, for other temperatures than 1."""

    def divergence(log_q: torch.Tensor, rows: slice, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
        places, weight = ids[rows], weights[rows]
        value = (-(weight * log_q.gather(-1, places)).sum(-1) - entropy[rows]).sum()
        if not gradient:
            return value, log_q
        slope = log_q.exp().mul_(weight.sum(-1, keepdim=True))
        return value, slope.scatter_add_(-1, places, -weight)

    return divergence


def by_rank(teacher: TeacherLogits, pairs: torch.Tensor, temperature: float) -> Divergence:
    """Universal Logit Distillation: sum_i |p_(i) - q_(i)| over probabilities sorted downwards, the shorter of the two
    filled up with zeros (Boizard et al. 2024, arXiv 2402.12030).

    `pairs` [T] is for each of the student's learned tokens the row of the teacher's prediction at the same place
    of the text, or -1 where the teacher has none; such tokens count nothing.
    """

    def divergence(log_q: torch.Tensor, rows: slice, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
        matched = pairs[rows]
        mine = torch.nonzero(matched >= 0)[:, 0]
        slope = torch.zeros_like(log_q) if gradient else log_q
        if not len(mine):
            return log_q.new_zeros(()), slope
        q = log_q[mine].exp_()
        p = torch.softmax(teacher(matched[mine]) / temperature, -1).sort(-1, descending=True).values
        sorted_q, order = q.sort(-1, descending=True)
        width = sorted_q.shape[-1]
        value = p[:, width:].sum()
        p = torch.nn.functional.pad(p[:, :width], (0, max(0, width - p.shape[-1])))
        difference = sorted_q - p
        value = value + difference.abs().sum()
        if gradient:
            slopes = torch.empty_like(q).scatter_(-1, order, difference.sign_())
            slope[mine] = q * (slopes - (q * slopes).sum(-1, keepdim=True))
        return value, slope

    return divergence


def between(
    kind: Kind, log_p: torch.Tensor, log_q: torch.Tensor, beta: float, gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divergence of log q from log p [n, V], summed over rows, and its gradient in the student's logits."""
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward-kl":
        value = (p * (log_p - log_q)).sum()
        return value, q.sub_(p)
    values, slopes = _parts(kind, p, log_p, q, log_q, beta)
    if not gradient:
        return values.sum(), q
    return values.sum(), slopes.sub_((q * slopes).sum(-1, keepdim=True)).mul_(q)


def _parts(
    kind: Kind, p: torch.Tensor, log_p: torch.Tensor, q: torch.Tensor, log_q: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's part of reverse KL or JSD, and what the divergence's derivative in q is up to a constant."""
    if kind == "reverse-kl":
        slopes = log_q - log_p
        return q * slopes, slopes
    log_m = (beta * p + (1 - beta) * q).clamp_min(1e-38).log()
    slopes = log_q - log_m
    # d/dq_i of both terms: (1 - beta) (log q_i - log m_i) + (1 - beta) (1 - (beta p_i + (1 - beta) q_i) / m_i)
    return beta * p * (log_p - log_m) + (1 - beta) * q * slopes, (1 - beta) * slopes
