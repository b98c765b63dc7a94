"""Packs that share a beginning give the losses and gradients of training dialogues one by one."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from pillm.core.records import Message, Record
from pillm.models.chat import ChatTemplate, load_template
from pillm.train import attention, head_loss, loop, student
from pillm.train.dialogues import encode, pack, shared_beginnings, tensors
from pillm.train.losses.objectives import cross_entropy
from pillm.train.settings import Settings

pytestmark = [pytest.mark.train, pytest.mark.model]


@pytest.fixture(scope="module")
def encoded(tiny_student: Path, dialogues):
    _, tokenizer, _ = student.load(tiny_student, torch.float32)
    other = Record("no-tools", (Message("user", "Salut"), Message("assistant", "Allô !")))
    return encode([*dialogues[:9], other], ChatTemplate(load_template("chatml-tools")), tokenizer)


def _plain_loss(model, items):
    """Cross-entropy of each dialogue alone, by transformers' own attention and full logits."""
    total = torch.zeros(())
    for item in items:
        ids = torch.tensor([item.ids])
        logits = model(ids).logits[0, :-1].float()
        learned = torch.tensor(item.learned[1:])
        total = total + torch.nn.functional.cross_entropy(logits[learned], ids[0, 1:][learned], reduction="sum")
    return total


def _gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("window", [None, 24])
def test_loss_and_gradients_are_those_of_single_dialogues(tiny_student, encoded, window):
    import transformers

    if window:
        # Mistral is Llama with sliding-window layers.
        config = transformers.MistralConfig(**{**transformers.AutoConfig.from_pretrained(tiny_student).to_dict(),
                                               "sliding_window": window, "model_type": "mistral"})  # fmt: skip
        torch.manual_seed(1)
        model = transformers.MistralForCausalLM(config)
    else:
        model, _, _ = student.load(tiny_student, torch.float32)
    model.set_attn_implementation("eager")
    alone = _plain_loss(model, encoded)
    expected = _gradients(model, alone)
    attention.use(model)
    packs = pack(encoded, shared_beginnings(encoded), 400, random.Random(0))
    assert max(max(item.segment) for item in packs) > 1, "no pack holds two dialogues"
    together = sum(loop.pack_loss(model, item, "cpu") for item in packs)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
    got = _gradients(model, together)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-4)


def test_every_learned_token_is_packed_exactly_once(encoded):
    shared = shared_beginnings(encoded)
    for beginnings in (shared, {}):
        packs = pack(encoded, beginnings, 300, random.Random(3))
        got = Counter(token for item in packs for token, mine in zip(item.ids, item.learned, strict=True) if mine)
        assert got == Counter(t for item in encoded for t, mine in zip(item.ids, item.learned, strict=True) if mine)
    assert sum(len(p.ids) for p in pack(encoded, shared, 300)) < sum(len(item.ids) for item in encoded)


def test_a_pack_is_no_longer_than_asked_unless_one_dialogue_is(encoded):
    limit = 250
    for item in pack(encoded, shared_beginnings(encoded), limit, random.Random(0)):
        assert len(item.ids) <= limit or max(item.segment) == 1


def test_lengths_are_few(encoded):
    packs = pack(encoded, shared_beginnings(encoded), 256, random.Random(0))
    assert all(len(item.ids) % 64 == 0 for item in packs if len(item.ids) <= 256)
    for item in packs:
        sizes = Counter(item.segment)
        assert all(sizes[segment] % 8 == 0 for segment in list(sizes)[1:-1])


def test_bfloat16_leaves_the_rotary_frequencies_alone(tiny_student):
    model, _, _ = student.load(tiny_student, torch.float32)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("inv_freq" in name for name in before)
    loop.set_arithmetic(model, Settings("cpu", "bfloat16", 1e-3, False, {}))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_the_heads_loss_in_chunks_is_that_of_all_logits(tiny_student, encoded):
    model, _, _ = student.load(tiny_student, torch.float32)
    attention.use(model)
    item = pack(encoded, {}, 600)[0]
    inputs = tensors(item)
    predict, targets = inputs.pop("predict"), inputs.pop("targets")
    assert len(targets) > head_loss.CHUNK, "one chunk shows nothing"
    logits = model(**inputs, logits_to_keep=predict, use_cache=False).logits[0]
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected = _gradients(model, plain)
    ours = head_loss.summed_loss(model, inputs, predict, targets)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    got = _gradients(model, ours * 0.5)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient * 0.5, rtol=1e-3, atol=1e-4)


def test_the_shared_beginning_ends_before_anything_is_learned(encoded):
    shared = shared_beginnings(encoded)
    for item in encoded:
        assert not any(item.learned[: shared[item.group]])
    assert max(shared.values()) > 20


def test_bfloat16_gradients_of_several_packs_gather_in_float32(tiny_student, encoded):
    packs = pack(encoded, shared_beginnings(encoded), 256, random.Random(0))
    assert len(packs) > 1
    model, _, _ = student.load(tiny_student, torch.float32)
    attention.use(model)
    expected = _gradients(model, sum(loop.pack_loss(model, item, "cpu") for item in packs))
    model.zero_grad()
    masters = loop.set_arithmetic(model, Settings("cpu", "bfloat16", 1e-3, False, {}))
    weights = dict(model.named_parameters())
    for _ in range(2):  # a second training of the same model begins with nothing left of the first
        with loop._gradients(weights, masters):
            for item in packs:
                loop.pack_loss(model, item, "cpu").backward()
                assert all(weight.grad is None for weight in weights.values())
            for name, gradient in expected.items():
                got = masters[name].grad
                assert got.dtype == torch.float32
                assert (got - gradient).norm() < 0.05 * gradient.norm(), name
        assert all(master.grad is None for master in masters.values())


@pytest.mark.parametrize("count", [1, 31, 128, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_is_right_whatever_the_number_of_tokens(count, dtype):
    torch.manual_seed(0)
    hidden, weight = torch.randn(count, 16).to(dtype).requires_grad_(), torch.randn(50, 16).to(dtype).requires_grad_()
    targets = torch.randint(0, 50, (count,))
    exact = torch.nn.functional.cross_entropy(hidden.float() @ weight.float().T, targets, reduction="sum")
    expected = torch.autograd.grad(exact, (hidden, weight))
    loss = head_loss._HeadLoss.apply(hidden, weight, cross_entropy(targets))[0]
    got = torch.autograd.grad(loss, (hidden, weight))
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    assert loss.item() == pytest.approx(exact.item(), rel=tolerance)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).float().norm() <= tolerance * other.float().norm()
