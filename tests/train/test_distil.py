"""Distillation through the stage: from a cache, from a live teacher, across tokenizers; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pillm.core import jsonl
from pillm.core.artifacts import artifact_of
from pillm.core.errors import FindingsError, PillmError, UsageError
from pillm.core.events import Log, Metric, silent
from pillm.core.records import Message, Record
from pillm.train.options import TrainOptions

pytestmark = [pytest.mark.train, pytest.mark.model]
ALL = {"method": "full", "embeddings": "train", "learning_rate": 5e-3}
"""What a random student must train to learn anything in a few steps."""


@pytest.fixture(scope="module")
def run():
    from pillm.train.run import run

    return run


@pytest.fixture(scope="module")
def tiny_teacher(run, tiny_student: Path, dialogues_file, tmp_path_factory) -> Path:
    """The student's tokenizer, weights that have learned the dialogues, and a head with 24 rows of padding."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("tiny-teacher")
    run(_options(tiny_student, dialogues_file, folder, epochs=6, max_steps=24, **ALL), silent)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    torch.manual_seed(5)
    model.resize_token_embeddings(model.config.vocab_size + 24, mean_resizing=False)
    model.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def cache(tiny_teacher, dialogues_file, tmp_path_factory) -> Path:
    from pillm.train.logits.options import LogitsOptions
    from pillm.train.logits.run import run as make

    out = tmp_path_factory.mktemp("cache")
    make(LogitsOptions(data=dialogues_file, teacher=str(tiny_teacher), out=out, dtype="float32", samples=60), silent)
    return out


def _options(student: Path, data: Path, out: Path, **more) -> TrainOptions:
    given = {
        "micro_tokens": 512,
        "batch_tokens": 1024,
        "max_steps": 2,
        "dtype": "float32",
        "learning_rate": 3e-3,
        **more,
    }
    return TrainOptions(student=str(student), data=data, out=out, validation=0.1, **given)


def _said(events, level="warning") -> str:
    return " / ".join(event.message for event in events if isinstance(event, Log) and event.level == level)


def _log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]


def test_a_student_learns_from_a_cache_and_says_so(run, tiny_student, dialogues_file, cache, tmp_path):
    events = []
    run(
        _options(tiny_student, dialogues_file, tmp_path, logits=cache, epochs=6, max_steps=16, validate_every=5, **ALL),
        events.append,
    )
    report = json.loads((tmp_path / "train.json").read_text())
    assert report["loss"] == "forward-kl"
    assert report["distillation"]["cache"] == artifact_of(cache / "cache" / "manifest.json").sha256
    assert report["distillation"]["cache_kind"] == "sampled"
    assert report["last_validation_loss"] < report["first_validation_loss"] - 0.5
    log = _log(tmp_path)
    assert all(step["divergence"] == step["loss"] and step["cross_entropy"] > 0 for step in log)
    assert [step["step"] for step in log if "validation_cross_entropy" in step] == [1, 5, 10, 15, 16][: len(log)]
    said = [event.message for event in events if isinstance(event, Log)]
    assert any(line.startswith("loss = forward-kl (chosen: ") for line in said)
    assert any(isinstance(event, Metric) and event.name == "tokens_per_second" for event in events)


def test_the_cached_loss_is_the_live_one_on_average(
    tiny_student, tiny_teacher, dialogues, cache, dialogues_file, tmp_path
):
    """The same student, packs and teacher: the cache's gradient points where the whole distribution's does."""
    import torch

    from pillm.train import attention, lessons, loop, student
    from pillm.train.dialogues import encode
    from pillm.train.settings import Settings

    model, tokenizer, _ = student.load(tiny_student, torch.float32)
    attention.use(model)
    template = student.chat_template("auto", tokenizer, True)
    encoded = encode(dialogues, template, tokenizer)
    settings = Settings("cpu", "float32", 1e-3, False, {})
    found = {}
    for name, more in {"cache": {"logits": cache}, "teacher": {"teacher": str(tiny_teacher)}}.items():
        options = _options(tiny_student, dialogues_file, tmp_path, **more)
        taught = lessons.prepare(options, settings, dialogues, encoded, template, tokenizer, model, silent)
        model.zero_grad()
        packs = loop.plan(encoded, [], options).steps[0]
        sums = torch.zeros(3)
        for item in packs:
            loss, parts = loop.pack_sums(model, item, "cpu", taught.data)
            loss.backward()
            sums += parts
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        found[name] = sums / sum(item.targets for item in packs), gradient
    cached, live = found["cache"], found["teacher"]
    assert torch.nn.functional.cosine_similarity(cached[1], live[1], dim=0) > 0.97
    # What it takes for the tail's entropy is less than that is, which adds to the divergence; its noise goes both ways.
    assert cached[0][2] > live[0][2] - 0.1
    # Teachers' rows beyond the student's are left out of the live one only, and both are of the same labels.
    assert cached[0][1] == pytest.approx(live[0][1].item(), rel=1e-4)


@pytest.mark.parametrize("loss", ["reverse-kl", "jsd"])
def test_other_divergences_from_a_cache_say_that_they_are_bounds(
    loss, run, tiny_student, dialogues_file, cache, tmp_path
):
    events = []
    run(_options(tiny_student, dialogues_file, tmp_path, logits=cache, loss=loss, kd_weight=0.7), events.append)
    assert "lower bound" in _said(events)
    assert _log(tmp_path)[-1]["divergence"] > 0


def test_changed_data_is_refused_with_the_records_that_changed(
    run, tiny_student, dialogues, dialogues_file, cache, tmp_path
):
    other = tmp_path / "other.jsonl"
    records = [
        *dialogues[:38],
        Record("new-1", (Message("user", "Salut"), Message("assistant", "Allô")), dialogues[0].tools),
    ]
    jsonl.write(other, records)
    with pytest.raises(UsageError, match=r"1 of 39 dialogues .*'new-1'.* changed or added after caching") as caught:
        run(_options(tiny_student, other, tmp_path / "out", logits=cache), silent)
    assert "pillm logits" in caught.value.hint
    assert not (tmp_path / "out" / "model").exists()
    jsonl.write(other, [records[-1]])
    with pytest.raises(UsageError, match="other data, another chat template"):
        run(_options(tiny_student, other, tmp_path / "out", logits=cache), silent)


def test_another_temperature_or_tokenizer_than_the_caches_is_refused(
    run, tiny_student, other_student, dialogues_file, cache, tmp_path
):
    with pytest.raises(UsageError, match="temperature"):
        run(_options(tiny_student, dialogues_file, tmp_path, logits=cache, kd_temperature=2), silent)
    with pytest.raises(UsageError, match="vocabulary"):
        run(_options(other_student, dialogues_file, tmp_path, logits=cache), silent)


def test_a_flipped_bit_stops_the_training(run, tiny_student, dialogues_file, cache, tmp_path):
    broken = tmp_path / "cache"
    shutil.copytree(cache / "cache", broken)
    shard = max((path for path in broken.iterdir() if path.suffix != ".json"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    # One bit, of a dialogue that a training of one step would not read.
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises((UsageError, FindingsError), match=shard.name):
        run(_options(tiny_student, dialogues_file, tmp_path / "out", logits=broken, max_steps=1), silent)
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize("loss", ["auto", "reverse-kl", "jsd"])
def test_a_live_teacher_with_padded_rows_teaches(loss, run, tiny_student, tiny_teacher, dialogues_file, tmp_path):
    events = []
    options = _options(tiny_student, dialogues_file, tmp_path, teacher=str(tiny_teacher), loss=loss, epochs=4, max_steps=10, **ALL,
                       kd_temperature=1.5 if loss == "jsd" else 1)  # fmt: skip
    run(options, events.append)
    report = json.loads((tmp_path / "train.json").read_text())
    assert report["last_validation_loss"] < 0.95 * report["first_validation_loss"]
    assert report["distillation"]["teacher"] == str(tiny_teacher)
    assert "rows: the first" in _said(events, "info")


@pytest.fixture(scope="module")
def other_student(dialogues, tmp_path_factory) -> Path:
    """A tiny Llama with a byte-level tokenizer that was trained on other text: other tokens, other ids."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("other-student")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(
        [message.content for record in dialogues[:20] for message in record.messages if message.content], trainer
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_another_tokenizer_is_refused_with_the_ways_out(run, other_student, tiny_teacher, dialogues_file, tmp_path):
    with pytest.raises(UsageError, match="has another tokenizer than the student") as caught:
        run(_options(other_student, dialogues_file, tmp_path, teacher=str(tiny_teacher), max_length=4096), silent)
    for way in ("teacher's family", "pillm label", "--loss uld"):
        assert way in caught.value.hint


def test_uld_trains_across_tokenizers(run, other_student, tiny_teacher, dialogues_file, tmp_path):
    events = []
    options = _options(other_student, dialogues_file, tmp_path, teacher=str(tiny_teacher), loss="uld", epochs=6, max_steps=12,
                       max_length=4096)  # fmt: skip
    # The teacher reads 512 tokens, and the SmolLM2 tokenizer makes fewer of these dialogues than that.
    run(options, events.append)
    report = json.loads((tmp_path / "train.json").read_text())
    assert report["distillation"]["weight"] == 0.6
    assert report["last_validation_loss"] < report["first_validation_loss"]
    (said,) = [e.message for e in events if isinstance(e, Log) and e.message.startswith("uld: ")]
    matched, total = (int(word) for word in said.split() if word.isdigit())
    assert 0 < matched < total


def test_aligned_places_begin_at_the_same_character(other_student, tiny_teacher, dialogues):
    from pillm.models.chat import ChatTemplate, load_template
    from pillm.train import student
    from pillm.train.dialogues import encode
    from pillm.train.losses import aligned

    template = ChatTemplate(load_template("chatml-tools"))
    from transformers import AutoTokenizer

    mine, other = (AutoTokenizer.from_pretrained(folder) for folder in (other_student, tiny_teacher))
    assert student.chat_template("auto", mine, True).source == template.source
    compared = 0
    for record in dialogues[:8]:
        one, two = (aligned.turns(record, template, tokenizer) for tokenizer in (mine, other))
        learned = [[t for t, m in zip(e.ids, e.learned, strict=True) if m] for tokenizer in (mine, other)
                   for e in encode([record], template, tokenizer)]  # fmt: skip
        links = aligned.pairs(one, two)
        assert len(links) == len(learned[0])
        for index, link in enumerate(links):
            if link >= 0:
                # What was written up to there is the same text, read back through each tokenizer.
                texts = [
                    tokenizer.decode(ids[:at])
                    for tokenizer, ids, at in ((mine, learned[0], index), (other, learned[1], link))
                ]
                assert texts[0] == texts[1]
                compared += 1
    assert compared > 100


def test_turns_that_close_differently_are_compared_up_to_there():
    from pillm.train.losses.aligned import Turn, pairs

    student = [Turn("oui<end>", [0, 1, 3]), Turn("né<end>", [0, 1, -1, 3])]
    teacher = [Turn("oui</s>", [0, 3]), Turn("né</s>", [0, 1, 2])]
    # In the second, byte tokens inside é have no place, and the closing tokens are both predicted after the same text.
    assert pairs(student, teacher) == [0, -1, 1, 2, 3, -1, -1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"loss": "forward-kl"}, "needs a teacher's distributions"),
        ({"loss": "uld"}, "runs beside the student"),
        ({"on_policy": 0.5}, "needs a teacher that scores"),
        ({"logits": Path("c"), "teacher": "t"}, "both say"),
        ({"teacher": "t", "loss": "uld", "kd_weight": 1.0}, "do not say which token"),
        ({"teacher": "t", "loss": "uld", "on_policy": 0.5}, "do not go together"),
        ({"teacher": "t", "loss": "cross-entropy", "on_policy": 0.5}, "needs a teacher that scores"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other_are_refused_at_once(more, message, run, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(_options(Path("no-model"), Path("no-data"), tmp_path / "out", **more), silent)
    assert not (tmp_path / "out").exists()


def test_the_share_that_is_not_given_follows_from_the_loss():
    from pillm.train.lessons import ULD_SHARE, choose

    def share(**more) -> float:
        options = _options(Path("s"), Path("d"), Path("o"), **more)
        # As a profile has them: every field is given.
        whole = TrainOptions(**options.model_dump())
        assert choose(whole) == choose(options)
        return choose(options).share

    assert share(teacher="t") == 1
    assert share(teacher="t", kd_weight=0.3) == 0.3
    assert share(teacher="t", loss="uld") == ULD_SHARE
    assert share() == 0


def test_a_student_with_a_smaller_context_is_refused_before_training(run, tiny_student, dialogues_file, tmp_path):
    short = tmp_path / "short"
    shutil.copytree(tiny_student, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 128}))
    with pytest.raises(UsageError, match="longer than the 128 tokens that the student reads") as caught:
        run(_options(short, dialogues_file, tmp_path / "out"), silent)
    assert "--max-length 128 --long drop" in caught.value.hint
    run(_options(short, dialogues_file, tmp_path / "out", max_length=128, long="drop", max_steps=1), silent)
    assert json.loads((tmp_path / "out" / "train.json").read_text())["dropped_records"] > 0


def test_a_teacher_with_a_smaller_context_is_refused(run, tiny_student, tiny_teacher, dialogues_file, tmp_path):
    short = tmp_path / "short"
    shutil.copytree(tiny_teacher, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 128}))
    with pytest.raises(UsageError, match="reads 128"):
        run(_options(tiny_student, dialogues_file, tmp_path / "out", teacher=str(short)), silent)


def test_a_tokenizer_without_pad_and_eos_trains(run, other_student, dialogues_file, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(other_student, bare)
    config = json.loads((bare / "tokenizer_config.json").read_text())
    for name in ("eos_token", "pad_token", "bos_token"):
        config.pop(name, None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    run(_options(bare, dialogues_file, tmp_path / "out", max_length=4096, max_steps=1), silent)
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_cross_entropy_with_a_cache_says_that_it_is_not_used(run, tiny_student, dialogues_file, cache, tmp_path):
    events = []
    run(
        _options(tiny_student, dialogues_file, tmp_path, logits=cache, loss="cross-entropy", max_steps=1), events.append
    )
    assert "not used" in _said(events)
    assert json.loads((tmp_path / "train.json").read_text())["distillation"] is None


def test_a_loss_far_above_its_start_stops_and_one_bad_batch_does_not():
    from pillm.train.report import Step
    from pillm.train.watch import stop_if_apart

    def log(losses, own=()):
        return [Step(n + 1, loss, 1e-3, n, on_policy=n in own) for n, loss in enumerate(losses)]

    good = [2.0] * 30 + [9.0] * 19
    stop_if_apart(log(good))
    with pytest.raises(PillmError, match="training has come apart") as caught:
        stop_if_apart(log([*good, 9.0]))
    assert "--learning-rate" in caught.value.hint
    stop_if_apart(log([*good, 3.9] + [9.0] * 10))
    # A student that is nearly its teacher at the start, and steps whose own answers are judged by another loss.
    stop_if_apart(log([0.01] * 5 + [0.9] * 50))
    stop_if_apart(log([0.1, 5.0] * 30, own=range(1, 60, 2)))
