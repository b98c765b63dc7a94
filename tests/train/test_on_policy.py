"""The student writes the answers, the teacher scores them; and a killed run writes the same ones again."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from pillm.core.artifacts import artifact_of
from pillm.core.errors import UsageError
from pillm.core.events import Metric, silent
from pillm.train import attention, on_policy, student
from pillm.train.dialogues import Encoded, encode, pack
from pillm.train.options import TrainOptions

pytestmark = [pytest.mark.train, pytest.mark.model]


@pytest.fixture(scope="module")
def loaded(tiny_student: Path, dialogues):
    model, tokenizer, _ = student.load(tiny_student, torch.float32)
    attention.use(model)
    encoded = encode(dialogues[:6], student.chat_template("auto", tokenizer, True), tokenizer)
    return model, tokenizer, encoded


def _options(tiny_student: Path, data: Path, out: Path, **more) -> TrainOptions:
    given = {
        "micro_tokens": 512,
        "batch_tokens": 1024,
        "dtype": "float32",
        "on_policy_tokens": 8,
        "validation": 0,
        **more,
    }
    return TrainOptions(student=str(tiny_student), data=data, out=out, teacher=str(tiny_student), **given)


def test_the_last_turn_is_written_anew_and_alone_is_learned(loaded, tiny_student, tmp_path):
    model, tokenizer, encoded = loaded
    stops = on_policy.stop_tokens(encoded, tokenizer.all_special_ids, tokenizer.eos_token_id)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in stops
    by_number = {item.number: item for item in encoded}
    options = _options(tiny_student, tmp_path, tmp_path)
    packs = on_policy.answered(model, pack(encoded, {}, 512), by_number, 3, stops, options, "cpu")
    assert sorted(number for one in packs for number in one.dialogues) == sorted(by_number)
    assert all(item.targets <= 8 * len(item.dialogues) for item in packs)
    again = on_policy.answered(model, pack(encoded, {}, 512), by_number, 3, stops, options, "cpu")
    assert packs == again
    other = on_policy.answered(model, pack(encoded, {}, 512), by_number, 4, stops, options, "cpu")
    assert packs != other
    assert model.config._attn_implementation == attention.NAME, "training goes on with packs"
    for one in encoded:
        prompt = one.ids[: on_policy.prompt_length(one)]
        assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
        assert sum(one.learned[len(prompt) :]) == sum(one.learned[i] for i in range(len(prompt), len(one.ids)))


def test_what_is_drawn_follows_the_students_own_distribution(loaded, tiny_student, tmp_path):
    """The first token of many answers to prompts of different lengths, against the probabilities of each prompt alone."""
    model, _, encoded = loaded
    options = _options(tiny_student, tmp_path, tmp_path, on_policy_tokens=1)
    prompts = [encoded[0].ids[:30], encoded[1].ids[:45]]
    count = 1500
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # Random heads are flat; a peaked one makes frequencies that a sample can be held against.
        kept = model.model.norm.weight.clone()
        model.model.norm.weight.mul_(60)
        try:
            answers = on_policy.written(model, prompts * count, frozenset(), options, generator, "cpu")
            model.set_attn_implementation("sdpa")
            expected = [model(torch.tensor([one])).logits[0, -1].softmax(-1) for one in prompts]
        finally:
            model.model.norm.weight.copy_(kept)
            attention.use(model)
    for place, probabilities in enumerate(expected):
        token = int(probabilities.argmax())
        share = sum(answer == [token] for answer in answers[place::2]) / count
        p = probabilities[token].item()
        assert p > 0.05, "too flat to show anything"
        assert abs(share - p) < 4 * (p * (1 - p) / count) ** 0.5 + 1e-9


def test_what_teacher_or_tokenizer_do_not_know_is_never_written(loaded, tiny_student, tmp_path):
    from pillm.train import lessons

    model, tokenizer, encoded = loaded
    options = _options(tiny_student, tmp_path, tmp_path, on_policy=1.0)
    packs, known = pack(encoded, {}, 512), len(tokenizer) - 40_000
    highest = max(max(item.ids) for item in encoded)
    assert highest > known, "prompts may hold any token"

    def written(vocabulary: int, common: int) -> list[int]:
        class Small:
            all_special_ids, eos_token_id = tokenizer.all_special_ids, tokenizer.eos_token_id

            def get_vocab(self):
                return {str(index): index for index in range(vocabulary)}

        write = lessons._writer(options, encoded, Small(), model, "cpu", common)
        packs_written = write(model, 0, packs)
        return [
            token for one in packs_written or [] for token, learned in zip(one.ids, one.learned, strict=True) if learned
        ]

    assert max(written(len(tokenizer), len(tokenizer))) >= known, "this student writes such tokens if it may"
    for some in (written(known, len(tokenizer)), written(len(tokenizer), known)):
        assert some
        assert max(some) < known


def test_an_answer_ends_at_a_stop_token_or_at_the_longest(loaded, tiny_student, tmp_path):
    model, _, encoded = loaded
    options = _options(tiny_student, tmp_path, tmp_path, on_policy_tokens=5)
    everything = frozenset(range(model.config.vocab_size))
    prompts = [item.ids[:20] for item in encoded]
    generator = torch.Generator().manual_seed(0)
    assert all(len(answer) == 1 for answer in on_policy.written(model, prompts, everything, options, generator, "cpu"))
    assert all(len(answer) == 5 for answer in on_policy.written(model, prompts, frozenset(), options, generator, "cpu"))
    # A prompt of 510 tokens leaves 2 of this student's 512.
    long = [random.Random(0).choices(range(1000), k=510)]
    assert len(on_policy.written(model, long, frozenset(), options, generator, "cpu")[0]) == 2


def test_the_share_of_steps_is_what_was_asked_for_and_follows_from_the_seed(tiny_student, tmp_path):
    options = _options(tiny_student, tmp_path, tmp_path, on_policy=0.3)
    own = [on_policy.is_own(step, options) for step in range(2000)]
    assert sum(own) / 2000 == pytest.approx(0.3, abs=0.04)
    assert own == [on_policy.is_own(step, options) for step in range(2000)]
    assert not any(on_policy.is_own(step, options.model_copy(update={"on_policy": 0.0})) for step in range(100))
    assert all(on_policy.is_own(step, options.model_copy(update={"on_policy": 1.0})) for step in range(100))


def test_a_prompt_that_fills_the_context_is_refused():
    item = Encoded(list(range(12)), [False] * 10 + [True] * 2, b"")
    on_policy.check_room([item], 11)
    with pytest.raises(UsageError, match="a prompt has 10 tokens, and the student reads 10"):
        on_policy.check_room([item], 10)


class _Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tiny_student, dialogues_file, tmp_path):
    from pillm.train.run import run

    more = {
        "on_policy": 0.5,
        "max_steps": 6,
        "epochs": 4,
        "checkpoint_every": 0,
        "lora_dropout": 0.1,
        "learning_rate": 3e-3,
    }
    whole = run(_options(tiny_student, dialogues_file, tmp_path / "whole", **more), silent)

    def stop(event):
        if isinstance(event, Metric) and event.name == "tokens_per_second" and event.step == 4:
            raise _Killed

    options = _options(tiny_student, dialogues_file, tmp_path / "stopped", **more)
    with pytest.raises(_Killed):
        run(options, stop)
    assert (options.out / "checkpoint" / "state.pt").is_file()
    resumed = run(options, silent)
    for name, path in whole.outputs.items():
        assert artifact_of(resumed.outputs[name]).sha256 == artifact_of(path).sha256, name
    log = [json.loads(line) for line in whole.outputs["log"].read_text().splitlines()]
    assert 0 < sum(step.get("on_policy", False) for step in log) < len(log), (
        "take another seed: both kinds must be there"
    )
    report = json.loads(whole.outputs["report"].read_text())
    assert report["distillation"]["loss"] == "forward-kl"
    assert report["distillation"]["own_loss"] == "reverse-kl"
    assert report["distillation"]["on_policy_steps"] == sum(step.get("on_policy", False) for step in log)
