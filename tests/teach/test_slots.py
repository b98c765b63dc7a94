"""Batches behind a shared beginning, against transformers' own loop, on tiny random models (in float32: nothing else differs)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

import torch
import transformers

from pillm.core.events import silent
from pillm.core.records import Message, Record
from pillm.models.chat import ChatTemplate
from pillm.teach import batches, generation, slots
from pillm.teach.ask import Ask, Sampling
from pillm.teach.in_process import Teacher

pytestmark = pytest.mark.train
BEGINNING = [(7 * n) % 89 + 3 for n in range(70)]


def model_of(**more: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**{**sizes, **heads, **more}, initializer_range=0.4)
    return transformers.LlamaForCausalLM(config).eval()


def teacher_of(model: Any) -> Teacher:
    # Token 1 ends an answer, as a random model now and then writes it: rows leave at different times.
    return Teacher(model, None, ChatTemplate(""), (1, 2), 0, 2**20)


def prompts_of(count: int, sampling: Sampling, shared: int = 70) -> list[tuple[Ask, list[int]]]:
    made = []
    for number in range(count):
        own = [(number * 31 + place * 17) % 90 + 3 for place in range(1 + number * 3 % 40)]
        made.append(
            (Ask(str(number), Record(str(number), (Message("user", "x"),)), 1, sampling), BEGINNING[:shared] + own)
        )
    return made


def tokens(made: Any) -> dict[str, tuple[list[int], float]]:
    return {item.ask.key: (item.tokens, item.logprob) for finished in made for item in finished}


@pytest.mark.parametrize("sampling", [Sampling(20, 0.0, 1.0, 0), Sampling(20, 0.9, 0.8, 5)], ids=["greedy", "warm"])
@pytest.mark.parametrize("size", [1, 3, 16])
def test_answers_are_those_of_one_prompt_at_a_time_with_transformers_own_loop(size, sampling):
    teacher = teacher_of(model_of())
    prompts = prompts_of(11, sampling)
    expected = tokens(generation.by_generate(teacher, prompts, 1, lambda _: None, silent))
    assert len({len(answer) for answer, _ in expected.values()}) > 1, (
        "all answers are of one length: choose another seed"
    )
    assert slots.use(teacher.model)
    for shared in (70, 0):
        got = tokens(generation.by_slots(teacher, prompts, shared, size, lambda _: None, silent))
        assert {key: answer for key, (answer, _) in got.items()} == {
            key: answer for key, (answer, _) in expected.items()
        }
        for key, (_, logprob) in got.items():
            assert logprob == pytest.approx(expected[key][1], abs=1e-3)


def test_long_prompts_are_read_in_pieces_to_the_same_answers(monkeypatch):
    teacher = teacher_of(model_of())
    prompts = prompts_of(6, Sampling(6, 0.0, 1.0, 0))
    assert slots.use(teacher.model)
    whole = tokens(generation.by_slots(teacher, prompts, 8, 3, lambda _: None, silent))
    monkeypatch.setattr(slots, "_SCORES", 1)
    assert {
        k: v[0] for k, v in tokens(generation.by_slots(teacher, prompts, 8, 3, lambda _: None, silent)).items()
    } == {k: v[0] for k, v in whole.items()}


def test_the_shared_beginning_is_read_once(monkeypatch):
    teacher = teacher_of(model_of())
    assert slots.use(teacher.model)
    read = []
    step = slots.Slots.step
    monkeypatch.setattr(
        slots.Slots, "step", lambda self, rows, ids, places: read.append(ids.shape) or step(self, rows, ids, places)
    )
    list(generation.by_slots(teacher, prompts_of(11, Sampling(4, 0.0, 1.0, 0)), 70, 4, lambda _: None, silent))
    assert sum(shape == (1, 96) for shape in read) == 1
    # All else is what is the prompts' own, padded to 32 or 64, and single tokens.
    assert max(shape[1] for shape in read if shape != (1, 96)) <= 64


@pytest.mark.parametrize(
    "config",
    [
        transformers.Gemma2Config(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8,
        ),
        transformers.MistralConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=8,
        ),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_a_model_whose_attention_is_not_plain_is_left_as_it_is_and_still_answers(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    before = model.config._attn_implementation
    assert not slots.use(model)
    assert model.config._attn_implementation == before
    prompts = prompts_of(3, Sampling(5, 0.0, 1.0, 0), 4)
    made = tokens(generation.by_generate(teacher_of(model), prompts, 2, lambda _: None, silent))
    assert set(made) == {"0", "1", "2"}


def test_a_model_that_our_attention_gets_wrong_is_found_out(monkeypatch):
    model = model_of()
    attend = slots.attend

    def wrong(*given: Any, **more: Any) -> Any:
        result, _ = attend(*given, **more)
        return result * 0.7, None

    monkeypatch.setattr(slots, "attend", wrong)
    assert not slots.use(model)
    assert model.config._attn_implementation != slots.NAME


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=60), min_size=1, max_size=30), st.integers(1, 5))
def test_groups_hold_every_prompt_once_and_share_what_they_say(texts, least):
    prompts = [
        (Ask(str(n), Record(str(n), (Message("user", "x"),)), 1, Sampling(1, 0, 1, 0)), ids)
        for n, ids in enumerate(texts)
    ]
    found = batches.groups(prompts, least)
    assert sorted(ask.key for group in found for ask, _ in group.prompts) == sorted(str(n) for n in range(len(texts)))
    for members, shared in found:
        assert len({tuple(ids[:shared]) for _, ids in members}) == 1
        assert all(len(ids) > shared for _, ids in members)


def test_prompts_with_another_beginning_make_a_group_of_their_own_if_they_are_many():
    sampling = Sampling(1, 0, 1, 0)
    first = prompts_of(8, sampling)
    second = [(ask, [5, *range(10, 60), n]) for n, (ask, _) in enumerate(prompts_of(8, sampling))]
    lone = [(ask, [9, 9, n, n, n]) for n, (ask, _) in enumerate(prompts_of(3, sampling))]
    assert sorted((len(group.prompts), group.shared) for group in batches.groups([*first, *second, *lone], 8)) == [
        (3, 2), (8, 51), (8, 70),
    ]  # fmt: skip
