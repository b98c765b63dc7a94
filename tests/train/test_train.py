"""The stage: from a dialogue file to a merged model, with kills and bad input on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pillm.core import jsonl
from pillm.core.artifacts import artifact_of
from pillm.core.errors import FindingsError, PillmError, ResourceError, UsageError
from pillm.core.events import Log, Metric, Progress, silent
from pillm.core.records import Message, Record
from pillm.train.options import TrainOptions

pytestmark = [pytest.mark.train, pytest.mark.model]


@pytest.fixture(scope="module")
def run():
    from pillm.train.run import run

    return run


def _options(student: Path, data: Path, out: Path, **more) -> TrainOptions:
    given = {"micro_tokens": 256, "batch_tokens": 512, "epochs": 2, "dtype": "float32", "learning_rate": 3e-3, **more}
    return TrainOptions(student=str(student), data=data, out=out, **given)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loss_goes_down_and_the_merged_model_has_it(method, run, tiny_student, dialogues_file, tmp_path):
    import torch

    from pillm.models.chat import ChatTemplate
    from pillm.train import loop, student
    from pillm.train.dialogues import encode, pack
    from pillm.train.settings import Settings

    events = []
    result = run(_options(tiny_student, dialogues_file, tmp_path, method=method, epochs=4), events.append)
    report = json.loads((tmp_path / "train.json").read_text())
    assert report["last_validation_loss"] < report["first_validation_loss"] - 0.5
    assert len((tmp_path / "training.jsonl").read_text().splitlines()) == report["steps"]
    assert report["unpacked_tokens"] > report["processed_tokens"] > report["learned_tokens"] > 0
    said = [event.message for event in events if isinstance(event, Log)]
    for field in set(TrainOptions.model_fields) - {"out", "data", "card", "student"}:
        assert any(line.startswith(f"{field} = ") for line in said), field
    assert any(isinstance(event, Progress) and event.label == "training" for event in events)
    assert any(isinstance(event, Metric) and event.name == "loss" for event in events)

    # The published folder alone, loaded anew, has the loss that training ended with.
    model, tokenizer, _ = student.load(result.outputs["model"], torch.float32)
    template = ChatTemplate(tokenizer.chat_template)
    assert template.knows_tools
    from pillm.train import attention

    attention.use(model)
    items = encode(jsonl.read(dialogues_file), template, tokenizer)
    settings = Settings("cpu", "float32", 1e-3, False, {})
    loss = loop.mean_loss(model, pack(items, {}, 512), settings)
    assert loss == pytest.approx(report["last_loss"], abs=0.6)
    assert loss < report["first_loss"] - 0.5


def test_equal_runs_give_equal_files_and_packing_gives_the_same_model(run, tiny_student, dialogues_file, tmp_path):
    hashes = []
    for name in ("a", "b"):
        result = run(_options(tiny_student, dialogues_file, tmp_path / name, lora_dropout=0.1), silent)
        hashes.append({key: artifact_of(path).sha256 for key, path in result.outputs.items()})
    assert hashes[0] == hashes[1]


def test_kill_9_in_training_goes_on_to_the_same_files(run, tiny_student, dialogues_file, tmp_path):
    import torch

    # In this process somebody has set the number of threads, in the killed ones nobody.
    torch.set_num_threads(torch.get_num_threads())
    whole = run(_options(tiny_student, dialogues_file, tmp_path / "whole", epochs=6, lora_dropout=0.1), silent)
    options = _options(
        tiny_student, dialogues_file, tmp_path / "killed", epochs=6, lora_dropout=0.1, checkpoint_every=0
    )
    program = (
        "import sys; from pillm.train.options import TrainOptions; from pillm.train.run import run\n"
        "def emit(e):\n    print(type(e).__name__, getattr(e, 'step', ''), flush=True)\n"
        "run(TrainOptions.model_validate_json(sys.argv[1]), emit)"
    )
    kills = 0
    for steps in (2, 5):
        with subprocess.Popen(
            [sys.executable, "-c", program, options.model_dump_json()], stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout:
                if line.startswith("Metric") and line.split()[1:] == [str(steps)]:
                    time.sleep(0.05)
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
    assert kills == 2
    events = []
    resumed = run(options, events.append)
    assert any(isinstance(e, Log) and "going on from the checkpoint" in e.message for e in events)
    for name, path in whole.outputs.items():
        assert artifact_of(resumed.outputs[name]).sha256 == artifact_of(path).sha256, name


def _stopped_after_two_steps(event):
    if isinstance(event, Metric) and event.name == "loss" and event.step == 3:
        raise KeyboardInterrupt


def test_a_checkpoint_of_other_options_is_not_used(run, tiny_student, dialogues_file, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(_options(tiny_student, dialogues_file, tmp_path, checkpoint_every=0), _stopped_after_two_steps)
    assert (tmp_path / "checkpoint" / "state.pt").is_file()
    events = []
    run(_options(tiny_student, dialogues_file, tmp_path, checkpoint_every=0, seed=7), events.append)
    assert any(isinstance(e, Log) and "starts anew" in e.message for e in events)
    assert not (tmp_path / "checkpoint").exists(), "a finished training needs no checkpoint"


def test_a_torn_checkpoint_is_said_and_not_used(run, tiny_student, dialogues_file, tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"PK\x03\x04half")
    events = []
    run(_options(tiny_student, dialogues_file, tmp_path, max_steps=1), events.append)
    assert any(isinstance(e, Log) and "not readable" in e.message for e in events)


def test_a_loss_that_is_no_number_stops_the_line(run, tiny_student, dialogues_file, tmp_path):
    with pytest.raises(PillmError, match="training has come apart"):
        run(_options(tiny_student, dialogues_file, tmp_path, learning_rate=1e30, max_grad_norm=1e30, warmup=0), silent)
    assert not (tmp_path / "model").exists()


@pytest.fixture
def small_training(tmp_path):
    """A model of random weights, its masters and packs: what the loop takes."""
    import torch
    import transformers

    from pillm.train import attention, loop
    from pillm.train.dialogues import Encoded, pack
    from pillm.train.settings import Settings

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2,
        )
    )  # fmt: skip
    attention.use(model)
    items = [Encoded(list(range(3 + i, 23 + i)), [False] * 10 + [True] * 10, b"") for i in range(4)]
    packs = pack(items, {}, 128)

    def train(dtype="float32", validation=False, write=None, hook=None, steps=2):
        options = _options(Path("s"), Path("d"), tmp_path, max_steps=steps, checkpoint_every=0)
        settings = Settings("cpu", dtype, 1e-3, False, {}, "full")
        masters = loop.set_arithmetic(model, settings)
        if hook:
            model.model.layers[0].mlp.up_proj.weight.register_hook(hook)
        spoil = (lambda student, step, packs: write(masters, step)) if write else None
        work = loop.Plan([packs] * steps, packs if validation else [])
        return loop.train(model, masters, work, options, settings, "test", silent, write=spoil), masters

    return train


def _spoiled(masters, step) -> None:
    """A weight overflows, at a place that the loss of this step does not see any more."""
    if step == 0:
        masters["model.layers.0.mlp.up_proj.weight"].data[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"hook": lambda gradient: gradient * float("nan")}, "step 1: the norm of the gradients is nan"),
        ({"hook": lambda gradient: gradient * float("inf")}, "step 1: the norm of the gradients is"),
        ({"dtype": "bfloat16", "write": _spoiled, "validation": True}, "step 1: the validation loss is nan"),
        ({"dtype": "bfloat16", "write": _spoiled}, r"step 1: model\.layers\.0\.mlp\.up_proj\.weight is no longer a number"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_neither_kept_nor_published(more, what, small_training, tmp_path):
    with pytest.raises(PillmError, match=f"{what}.*training has come apart") as caught:
        small_training(**more)
    assert "--learning-rate" in caught.value.hint
    assert not (tmp_path / "checkpoint" / "state.pt").exists()


def test_a_step_that_the_scaler_skips_is_no_end(small_training):
    """float16 overflows until the scale has come down: that is no failure."""
    import torch

    calls = []

    def overflow(gradient):
        calls.append(1)
        return gradient * float("inf") if len(calls) == 1 else gradient

    log, masters = small_training(dtype="float16", hook=overflow, steps=4)
    assert len(log) == 4
    assert all(torch.isfinite(weight).all() for weight in masters.values())


def test_a_model_that_overflows_in_its_own_arithmetic_is_not_published(
    run, tiny_student, dialogues_file, tmp_path, monkeypatch
):
    from pillm.train import student

    merged = student.merged

    def broken(*given):
        model = merged(*given)
        next(model.parameters()).data[0, 0] = float("inf")
        return model

    monkeypatch.setattr(student, "merged", broken)
    with pytest.raises(PillmError, match="is no longer a number"):
        run(_options(tiny_student, dialogues_file, tmp_path, max_steps=1), silent)
    assert not (tmp_path / "model").exists()


def test_two_runs_into_one_folder_are_refused(run, tiny_student, dialogues_file, tmp_path):
    from pillm.core.locks import locked
    from pillm.train.run import LOCK

    options = _options(tiny_student, dialogues_file, tmp_path, max_steps=1)
    with locked(tmp_path / LOCK), pytest.raises(UsageError, match="another run is at work in this folder"):
        run(options, silent)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    run(options, silent)


def test_metrics_are_on_disk_while_training_and_cut_to_the_checkpoint(run, tiny_student, dialogues_file, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    options = _options(tiny_student, dialogues_file, tmp_path, max_steps=4, epochs=9, checkpoint_every=1e6)

    def lines() -> list[int]:
        return [json.loads(line)["step"] for line in metrics.read_text().splitlines()]

    def stop(event):
        if isinstance(event, Metric) and event.name == "loss" and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(options, stop)
    assert lines() == [1, 2]
    # There is no checkpoint, so the first step is done again.
    seen = []

    def look(event):
        if isinstance(event, Metric) and event.name == "tokens_per_second":
            seen.append(lines())

    run(options, look)
    assert seen == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    assert not metrics.exists(), "training.jsonl takes its place"
    assert len((tmp_path / "training.jsonl").read_text().splitlines()) == 4


def test_prompts_only_are_refused(run, tiny_student, tmp_path):
    data = tmp_path / "prompts.jsonl"
    jsonl.write(data, [Record("p", (Message("user", "Hi"),))])
    with pytest.raises(UsageError, match="no record has an answer"):
        run(_options(tiny_student, data, tmp_path / "out"), silent)


def test_bad_lines_are_named_and_nothing_is_written(run, tiny_student, tmp_path):
    data = tmp_path / "bad.jsonl"
    data.write_text('{"id": "a"}\nnot json\n')
    with pytest.raises(FindingsError) as caught:
        run(_options(tiny_student, data, tmp_path / "out"), silent)
    assert {finding.line for finding in caught.value.findings} == {1, 2}
    assert not (tmp_path / "out").exists()


def test_a_student_without_a_template_needs_one(tiny_student, dialogues_file, run, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(tiny_student, bare)
    (bare / "chat_template.jinja").unlink()
    config = json.loads((bare / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    # With ChatML's tokens in the vocabulary the shipped template fits.
    run(_options(bare, dialogues_file, tmp_path / "out", max_steps=1), silent)
    tokens = (bare / "tokenizer.json").read_text().replace("<|im_start|>", "<|other|>")
    (bare / "tokenizer.json").write_text(tokens)
    (bare / "tokenizer_config.json").write_text(json.dumps(config).replace("<|im_start|>", "<|other|>"))
    with pytest.raises(UsageError, match="needs ChatML tokens"):
        run(_options(bare, dialogues_file, tmp_path / "out2"), silent)


def test_a_folder_that_is_no_model_is_refused_plainly(dialogues_file, run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PillmError):
        run(_options(tmp_path / "empty", dialogues_file, tmp_path / "out"), silent)


def test_a_full_disk_is_said_and_leaves_no_half_model(small_disk, run, tiny_student, dialogues_file):
    with pytest.raises(ResourceError, match="disk is full"):
        run(_options(tiny_student, dialogues_file, small_disk / "out", max_steps=1), silent)
    assert not (small_disk / "out" / "model").exists()


@pytest.mark.gpu
def test_training_on_a_gpu(run, tiny_student, dialogues_file, tmp_path):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run(_options(tiny_student, dialogues_file, tmp_path, device="cuda", dtype="bfloat16", epochs=4), silent)
    report = json.loads((tmp_path / "train.json").read_text())
    assert report["last_loss"] < report["first_loss"] - 0.5
