"""Losses and gradients in chunks against plain torch with all logits at once, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pillm.logit_cache import Manifest, Targets
from pillm.train import head_loss
from pillm.train.losses import cached, divergences
from pillm.train.losses.objectives import cross_entropy, mixed, sparse

pytestmark = pytest.mark.train
TOKENS, WIDTH, VOCABULARY = 150, 16, 50
MANIFEST = Manifest(
    kind="sampled", biased=False, temperature=1.0, top=100, samples=100, seed=0, vocabulary_size=60, vocabulary="",
    template="", dataset="", teacher="", run="", dialogues=2, positions=3, shards=(),
)  # fmt: skip
KINDS = ("forward-kl", "reverse-kl", "jsd")


@pytest.fixture
def case():
    """Hidden states, a head, labels and a teacher's logits, in float64 and more tokens than a chunk has."""
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64) / 2
    teacher = torch.randn(TOKENS, VOCABULARY, dtype=torch.float64) * 2
    assert len(hidden) > head_loss.CHUNK, "one chunk shows nothing"
    return hidden, weight, torch.randint(0, VOCABULARY, (TOKENS,)), teacher


def _divergence(kind, log_p, log_q, beta):
    """The definitions, as torch's own kl_div writes them: kl_div(log b, log a) is KL(a‖b)."""

    def kl(a, b):
        return F.kl_div(b, a, reduction="sum", log_target=True)

    if kind == "forward-kl":
        return kl(log_p, log_q)
    if kind == "reverse-kl":
        return kl(log_q, log_p)
    log_m = torch.logsumexp(torch.stack((log_p + math.log(beta), log_q + math.log(1 - beta))), 0)
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def _compare(hidden, weight, objective, plain, tolerance=2e-5):
    """Value and gradients of an objective in the chunked head against a function of all logits."""
    exact = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    expected = plain(exact[0] @ exact[1].T)
    gradients = torch.autograd.grad(expected, exact)
    ours = [tensor.float().requires_grad_() for tensor in (hidden, weight)]
    loss, sums = head_loss._HeadLoss.apply(*ours, objective)
    got = torch.autograd.grad(loss * 0.5, ours)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=1e-4)
    for one, other in zip(got, gradients, strict=True):
        assert (one - other * 0.5).norm() <= tolerance * other.norm()
    # What is judged from all logits at once, for heads that are more than a matrix, is the same.
    logits = (hidden @ weight.T).float().requires_grad_()
    whole, _ = head_loss._LogitsLoss.apply(logits, objective)
    all_logits = (hidden @ weight.T).requires_grad_()
    (of_all,) = torch.autograd.grad(plain(all_logits), all_logits)
    assert whole.item() == pytest.approx(expected.item(), rel=tolerance, abs=1e-4)
    assert (torch.autograd.grad(whole, logits)[0] - of_all).norm() <= tolerance * of_all.norm()
    return sums


def _at(tensor):
    return lambda rows: tensor[rows].float()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_divergences_from_a_live_teacher_are_their_definitions(case, kind, share, temperature):
    hidden, weight, targets, teacher = case
    objective = mixed(targets, divergences.dense(kind, _at(teacher), temperature, 0.3), share, temperature)

    def plain(logits):
        soft = torch.log_softmax(logits / temperature, -1)
        value = _divergence(kind, torch.log_softmax(teacher / temperature, -1), soft, 0.3) * temperature**2
        return share * value + (1 - share) * F.cross_entropy(logits, targets, reduction="sum")

    sums = _compare(hidden, weight, objective, plain)
    of_labels = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    if share < 1 or temperature == 1:
        assert sums[1].item() == pytest.approx(of_labels.item(), rel=1e-5)


def _full_targets(teacher, temperature):
    ids = torch.arange(VOCABULARY).expand(TOKENS, -1)
    return ids, torch.softmax(teacher / temperature, -1).float()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_sparse_targets_that_hold_everything_are_the_teacher(case, share, temperature):
    """Ids in another order in every row, so that a mistake in the order of places shows."""
    hidden, weight, targets, teacher = case
    ids = torch.stack([torch.randperm(VOCABULARY) for _ in range(TOKENS)])
    weights = torch.softmax(teacher / temperature, -1).gather(-1, ids).float()
    entropy = -(weights * weights.log()).sum(-1)
    if temperature == 1:
        objective = sparse(targets, ids, weights, entropy, share)
    else:
        objective = mixed(targets, divergences.forward_sparse(ids, weights, entropy), share, temperature)

    def plain(logits):
        soft = torch.log_softmax(logits / temperature, -1)
        value = _divergence("forward-kl", torch.log_softmax(teacher / temperature, -1), soft, 0) * temperature**2
        return share * value + (1 - share) * F.cross_entropy(logits, targets, reduction="sum")

    _compare(hidden, weight, objective, plain)


def test_weights_that_do_not_sum_to_one_have_the_gradient_of_their_own_loss(case):
    hidden, weight, targets, teacher = case
    top = torch.softmax(teacher, -1).topk(5, -1)
    zeros = torch.zeros(TOKENS)
    objective = sparse(targets, top.indices, top.values.float(), zeros, 1.0)

    def plain(logits):
        return -(top.values * torch.log_softmax(logits, -1).gather(-1, top.indices)).sum()

    _compare(hidden, weight, objective, plain)


def test_a_token_that_stands_twice_in_a_row_counts_twice(case):
    hidden, weight, targets, _ = case
    ids = torch.tensor([[3, 7, 3, 0]]).expand(TOKENS, -1)
    weights = torch.tensor([[0.5, 0.2, 0.3, 0.0]]).expand(TOKENS, -1)

    def plain(logits):
        log_q = torch.log_softmax(logits, -1)
        return -(0.8 * log_q[:, 3] + 0.2 * log_q[:, 7]).sum()

    _compare(hidden, weight, sparse(targets, ids, weights, torch.zeros(TOKENS), 1.0), plain)


@pytest.mark.parametrize("kind", ["reverse-kl", "jsd"])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_from_a_cache_it_is_the_divergence_over_the_top_and_one_bucket(case, kind, share):
    hidden, weight, targets, teacher = case
    p = torch.softmax(teacher, -1)
    top = p.topk(6, -1)
    known = top.values.clone()
    known[::3, 4:] = 0  # rows with fewer exact tokens: blank places
    ids = torch.where(known > 0, top.indices, 0)

    def small(distribution):
        taken = distribution.gather(-1, ids) * (known > 0)
        return torch.cat((taken, 1 - taken.sum(-1, keepdim=True)), -1)

    def plain(logits):
        rows = small(torch.softmax(logits, -1)), small(p)
        there = torch.cat((known > 0, torch.ones(TOKENS, 1, dtype=torch.bool)), -1)
        q, mine = (torch.where(there, row, 1.0).log()[there] for row in rows)
        value = _divergence(kind, mine, q, 0.3)
        return share * value + (1 - share) * F.cross_entropy(logits, targets, reduction="sum")

    objective = mixed(targets, divergences.coarse(kind, ids, known.float(), 0.3), share, 1.0)
    sums = _compare(hidden, weight, objective, plain, 1e-4)
    whole = _divergence(kind, torch.log_softmax(teacher, -1), torch.log_softmax(hidden @ weight.T, -1), 0.3)
    assert sums[2].item() < whole.item(), "coarse-graining only takes away (data-processing inequality)"


def test_a_teacher_that_is_certain_gives_finite_reverse_divergences():
    ids = torch.zeros(4, 1, dtype=torch.long)
    logits = torch.randn(4, VOCABULARY)
    for kind in ("reverse-kl", "jsd"):
        divergence = divergences.coarse(kind, ids, torch.ones(4, 1), 0.5)
        value, slope = divergence(torch.log_softmax(logits, -1), slice(0, 4), True)
        assert torch.isfinite(value)
        assert torch.isfinite(slope).all()


@pytest.mark.parametrize("more", [-9, 14])
def test_rows_that_only_one_has_are_left_out(case, more):
    """Teacher and student with one tokenizer, but embeddings padded to other sizes."""
    hidden, weight, targets, teacher = case
    rows = VOCABULARY + more
    teacher = F.pad(teacher, (0, max(0, more)), value=3.0)[:, :rows]
    common = min(rows, VOCABULARY)
    targets = targets % common
    objective = mixed(targets, divergences.dense("reverse-kl", _at(teacher), 1.0, 0.5), 0.5, 1.0, common)

    def plain(logits):
        seen = logits[:, :common]
        value = _divergence("reverse-kl", torch.log_softmax(teacher[:, :common], -1), torch.log_softmax(seen, -1), 0)
        return 0.5 * value + 0.5 * F.cross_entropy(seen, targets, reduction="sum")

    _compare(hidden, weight, objective, plain)


@pytest.mark.parametrize("rows", [31, 50, 70])
def test_universal_logit_distillation_is_the_distance_of_sorted_probabilities(case, rows):
    hidden, weight, targets, _ = case
    teacher = torch.randn(40, rows, dtype=torch.float64)
    pairs = torch.full((TOKENS,), -1)
    matched = torch.arange(0, TOKENS, 4)
    pairs[matched] = torch.randint(0, 40, (len(matched),))

    def plain(logits):
        q = torch.softmax(logits[matched], -1).sort(-1, descending=True).values
        p = torch.softmax(teacher[pairs[matched]], -1).sort(-1, descending=True).values
        width = max(rows, VOCABULARY)
        q, p = (F.pad(one, (0, width - one.shape[-1])) for one in (q, p))
        return 0.6 * (q - p).abs().sum() + 0.4 * F.cross_entropy(logits, targets, reduction="sum")

    objective = mixed(targets, divergences.by_rank(_at(teacher), pairs, 1.0), 0.6, 1.0)
    # Two probabilities that are equal in float32 may be taken in the other order than in float64.
    _compare(hidden, weight, objective, plain, 1e-3)


def test_without_gradient_nothing_but_the_sums_is_made(case):
    hidden, weight, targets, teacher = (tensor.float() if tensor.is_floating_point() else tensor for tensor in case)
    ids, weights = _full_targets(teacher, 1.0)
    entropy = -(weights * weights.log()).sum(-1)
    both = [
        sparse(targets, ids, weights, entropy, 0.5),
        mixed(targets, divergences.dense("jsd", _at(teacher), 2, 0.5), 1, 2),
    ]
    for objective in [cross_entropy(targets), *both]:
        quiet, of_quiet = head_loss._HeadLoss.apply(hidden, weight, objective)
        loud, of_loud = head_loss._HeadLoss.apply(hidden.clone().requires_grad_(), weight, objective)
        assert not quiet.requires_grad
        assert loud.item() == pytest.approx(quiet.item(), rel=1e-6)
        assert torch.allclose(of_quiet[2], of_loud[2], equal_nan=True)


def test_sampled_targets_are_right_on_average(case):
    """Exact top and samples of the tail: the mean gradient goes to the full one as the draws grow, a top-k's does not."""
    hidden, weight, targets, teacher = (tensor.float() if tensor.is_floating_point() else tensor for tensor in case)
    p = torch.softmax(teacher, -1)
    top = p.topk(4, -1)
    tail = p.scatter(-1, top.indices, 0)
    mass = tail.sum(-1, keepdim=True)
    torch.manual_seed(1)

    def gradient(ids, weights):
        leaf = hidden.clone().requires_grad_()
        loss, _ = head_loss._HeadLoss.apply(leaf, weight, sparse(targets, ids, weights, torch.zeros(TOKENS), 1.0))
        return torch.autograd.grad(loss, leaf)[0]

    full = gradient(*_full_targets(teacher, 1.0))
    draws = []
    for _ in range(400):
        samples = torch.multinomial(tail, 8, replacement=True)
        draws.append(
            gradient(torch.cat((top.indices, samples), -1), torch.cat((top.values, (mass / 8).expand(-1, 8)), -1))
        )
    errors = torch.stack(draws) - full
    standard = errors.std(0) / len(draws) ** 0.5
    z = errors.mean(0) / standard
    # A thousand and more independent standard normal values, if the estimator is unbiased.
    assert z.pow(2).mean().item() == pytest.approx(1, abs=0.15)
    biased = gradient(top.indices, top.values / top.values.sum(-1, keepdim=True)) - full
    assert errors.mean(0).norm() < 0.2 * biased.norm()


def test_the_entropy_that_is_subtracted_is_never_more_than_the_teachers():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, VOCABULARY)) * rng.uniform(0.1, 5, size=(200, 1))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1)
    p = -np.sort(-p, 1)
    for top in (1, 4, 20):
        rest = 1 - p[:, :top].sum(1, keepdims=True)
        weights = np.concatenate((p[:, :top], rest / 2, rest / 2), 1).astype(np.float32)
        bound = cached.entropy_bound(weights, np.full(200, top, np.int32), top, 1.0)
        assert (bound <= entropy + 1e-4).all()
        of_top = -(p[:, :top] * np.log(p[:, :top])).sum(1)
        assert (bound >= of_top - 1e-4).all()
    for limit in (0.3, 0.02):
        count = (p >= limit).sum(1).astype(np.int32)
        rest = np.where(p < limit, p, 0).sum(1, keepdims=True)
        # The exact ones first, then one sample that stands for all the rest.
        weights = np.where(p >= limit, p, 0)
        weights = np.concatenate((weights, np.zeros((200, 1))), 1)
        weights[np.arange(200), count] = rest[:, 0]
        bound = cached.entropy_bound(weights.astype(np.float32), count, 100, limit)
        assert (bound <= entropy + 1e-4).all()
        assert (bound >= -np.log(limit) * rest[:, 0] - 1e-4).all()
    everything = cached.entropy_bound(p.astype(np.float32), np.full(200, VOCABULARY, np.int32), 100, 1.0)
    np.testing.assert_allclose(everything, entropy, atol=1e-4)


def test_targets_of_several_dialogues_are_joined_in_order():
    one = Targets(
        np.array([[5, 6], [7, 0]], np.int32), np.array([[0.6, 0.4], [1, 0]], np.float32), np.array([2, 1], np.int32)
    )
    two = Targets(np.array([[9, 99, 8]], np.int32), np.array([[0.5, 0.3, 0.2]], np.float32), np.array([2], np.int32))
    joined = cached.joined([one, two], 60, MANIFEST)
    assert joined.ids.tolist() == [[5, 6, 0], [7, 0, 0], [9, 0, 8]], "token 99 is beyond the student's rows"
    assert joined.weights.tolist() == [pytest.approx([0.6, 0.4, 0]), [1, 0, 0], pytest.approx([0.5, 0, 0.2])]
    assert joined.exact.tolist() == [pytest.approx([0.6, 0.4]), [1, 0], [0.5, 0]]
    assert joined.entropy[1] == 0
