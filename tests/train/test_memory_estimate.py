"""The estimate of memory, from headers alone, against models that are really there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pillm.core.errors import UsageError
from pillm.train import memory
from pillm.train.options import TrainOptions


def _options(student, **given) -> TrainOptions:
    return TrainOptions(student=str(student), data=Path("dataset:home-assistant/train"), **given)


@pytest.mark.model
def test_a_preview_loads_no_torch_and_says_whether_it_fits(smollm2_gguf):
    program = (
        "import sys; from pathlib import Path; from pillm.train.memory import preview; from pillm.train.options import TrainOptions\n"
        "found = preview(TrainOptions(student=sys.argv[1], data=Path('dataset:home-assistant/train'), device='cpu'))\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)\n"
        "print(*found.lines, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(smollm2_gguf)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "needs about" in done.stdout
    assert "GiB are free: fits" in done.stdout


@pytest.mark.model
def test_what_does_not_fit_says_what_to_try(smollm2_gguf, monkeypatch):
    monkeypatch.setattr(memory, "_machine", lambda options: ("cpu", 1.5 * memory.GIB, "float32"))
    found = memory.preview(_options(smollm2_gguf, method="full", micro_tokens=4096))
    assert not found.fits
    assert "does not fit; try --method lora" in found.lines[0]
    assert found.estimate.checkpointing, "auto turns it on before giving up"


@pytest.mark.model
@pytest.mark.train
def test_sizes_are_the_same_from_a_header_and_from_the_loaded_model(smollm2_gguf, tiny_student):
    import torch

    from pillm.train import student

    for path in (smollm2_gguf, tiny_student):
        model, _, _ = student.load(path, torch.float32)
        assert memory.sizes_of(str(path)) == memory.sizes_of_model(model)


@pytest.mark.model
@pytest.mark.train
@pytest.mark.parametrize("method", ["lora", "full"])
def test_trained_parameters_are_counted_exactly(method, tiny_student):
    import torch

    from pillm.train import student
    from pillm.train.settings import settle

    options = _options(tiny_student, method=method, rank=8, embeddings="train")
    model, _, _ = student.load(tiny_student, torch.float32)
    settings = settle(options, model.num_parameters(), 2, 64)
    if method == "lora":
        model = student.with_adapters(tiny_student, model, settings)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.preview(options).estimate.trained == trained


@pytest.mark.model
def test_parts_follow_the_options(smollm2_gguf):
    sizes = memory.sizes_of(str(smollm2_gguf))

    def need(dtype="bfloat16", checkpointing=False, **given):
        return memory.estimate(_options(smollm2_gguf, **given), sizes, dtype, checkpointing)

    lora = need()
    assert sum(lora.parts.values()) == pytest.approx(lora.training)
    assert need(base="nf4").parts["4-bit base"] < 0.3 * lora.parts["weights"]
    assert need(method="full").training > lora.training
    assert need(micro_tokens=2048).parts["activations"] == pytest.approx(2 * lora.parts["activations"])
    assert need(checkpointing=True).parts["activations"] < 0.2 * lora.parts["activations"]
    teacher = memory.estimate(_options(smollm2_gguf), sizes, "bfloat16", False, teacher=sizes)
    assert teacher.parts["teacher"] > sizes.parameters * 2
    smaller = memory.preview(_options(smollm2_gguf, init="prune:layers=20", device="cpu", dtype="bfloat16"))
    assert (
        smaller.estimate.training
        < memory.preview(_options(smollm2_gguf, device="cpu", dtype="bfloat16")).estimate.training
    )


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(UsageError):
        memory.preview(_options(tmp_path))
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(UsageError):
        memory.preview(_options(tmp_path))


@pytest.mark.model
def test_what_a_cpu_training_was_measured_to_need_is_covered(smollm2_gguf):
    """The one measurement that the allowance is fitted to, docs/training.md: LoRA, bfloat16, 1,024 tokens a pass."""
    sizes = memory.sizes_of(str(smollm2_gguf))
    options = _options(smollm2_gguf)
    found = memory.estimate(options, sizes, "bfloat16", False, span=memory._span(options))
    assert found.parts["kernels and heap"] > 0
    assert 2.75 <= found.training / memory.GIB < 3.0
    assert "kernels and heap" not in memory.estimate(options, sizes, "bfloat16", False, "cuda").parts


@pytest.mark.model
@pytest.mark.train
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"init": "prune:layers=1"},
        {"teacher": "T"},
        {"teacher": "T", "logits": Path("c")},
        {"teacher": "T", "logits": Path("c"), "on_policy": 0.5},
        {"preset": "qlora-cpu"},
    ],
)
def test_the_preview_and_the_training_go_by_one_estimate(given, tiny_student, smollm2_gguf, monkeypatch):
    import torch

    from pillm.train import settings, student

    given = {**given, "teacher": str(smollm2_gguf)} if "teacher" in given else given
    options = _options(tiny_student, device="cpu", dtype="float32", **given)
    model, _, _ = student.load(tiny_student, torch.float32)
    said = memory.preview(options.model_copy(update={"gradient_checkpointing": "off"})).estimate.training
    for free, on in ((said / 0.7 - 1000, True), (said / 0.7 + 1000, False)):
        monkeypatch.setattr(memory, "free_memory", lambda free=free: free)
        monkeypatch.setattr(settings, "free_memory", lambda free=free: free)
        settled = settings.settle(options, model.num_parameters(), 2, 64, memory.sizes_of_model(model))
        assert settled.gradient_checkpointing is on
        assert memory.preview(options).estimate.checkpointing is on
