"""Adapters of every method, and every preset trained for some steps in 4 bits; what comes out of the merge."""

from __future__ import annotations

import copy
import math
from typing import get_args

import pytest

from pillm.core.errors import UsageError
from pillm.core.events import Log, silent
from pillm.train.options import TrainOptions
from pillm.train.presets import PRESETS, applied

# Libraries warn of their own deprecated calls; in the stage, run silences them.
pytestmark = [
    pytest.mark.train,
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

METHODS = [name for name in get_args(TrainOptions.model_fields["method"].annotation) if name != "full"]
STEPS = 12


def _trained(tiny_student, dialogues_file, tmp_path, **given):
    """Train for some steps; the model with its adapters in float32, settings, and the losses of the steps."""
    import torch

    from pillm.core import jsonl
    from pillm.models.chat import ChatTemplate, load_template
    from pillm.train import attention, loop, student
    from pillm.train.dialogues import encode, tensors
    from pillm.train.settings import settle

    given = {"student": str(tiny_student), "data": dialogues_file, "out": tmp_path, "max_steps": STEPS, "epochs": 20,
             "micro_tokens": 256, "batch_tokens": 512, "learning_rate": 1e-2, "schedule": "constant", **given}  # fmt: skip
    options = applied(TrainOptions(**given))
    model, tokenizer, _ = student.load(tiny_student, torch.float32)
    settings = settle(options, model.num_parameters(), 2, 64)
    items = encode(jsonl.read(dialogues_file), ChatTemplate(load_template("chatml-tools")), tokenizer)
    work = loop.plan(items, [], options)
    torch.manual_seed(0)
    attention.use(model)
    model = student.with_adapters(tiny_student, model, settings)
    masters = loop.set_arithmetic(model, settings)
    log = loop.train(model, masters, work, options, settings, "test", silent)
    batch = tensors(work.steps[0][0])
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "pieces")}
    return loop.take_masters(model, masters), settings, [step.loss for step in log], inputs


def _logits(model, inputs):
    import torch

    model.eval()
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits[0].double()


def _distance(one, other):
    """Root mean square of the difference of log-probabilities."""
    return float((one.log_softmax(-1) - other.log_softmax(-1)).pow(2).mean().sqrt())


def _base(tiny_student):
    import torch

    from pillm.train import attention, student

    model = student.load(tiny_student, torch.float32)[0]
    attention.use(model)
    return model


def _rounding(dtype):
    """What the arithmetic's dtype alone may change in a log-probability: eight roundings of values up to about 2."""
    import torch

    return 8 * 2 * torch.finfo(getattr(torch, dtype)).eps


def _with_adapters_of(model, base):
    """The adapters of `model` beside other frozen weights, not merged."""
    import peft

    other = peft.get_peft_model(base, copy.deepcopy(model.peft_config["default"]))
    peft.set_peft_model_state_dict(other, peft.get_peft_model_state_dict(model))
    return other


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_trains_in_4_bits_and_merges_into_16(name, tiny_student, dialogues_file, tmp_path):
    import torch

    from pillm.train import student

    model, settings, losses, inputs = _trained(tiny_student, dialogues_file, tmp_path, preset=name, device="cpu")
    import bitsandbytes  # after ours, which keeps it quiet

    wanted = PRESETS[name].values
    assert (settings.base, settings.rank) == (wanted["base"], wanted["rank"])
    small = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(small) == 2 * 7
    assert {m.weight.quant_state.quant_type for m in small} == {wanted["base"]}
    assert all(m.weight.quant_state.nested == wanted["double_quantization"] for m in small)
    assert all(m.weight.dtype == torch.uint8 for m in small), "packed weights are never cast"
    assert losses[-1] < losses[0] - 0.5

    beside_4bit = _logits(model, inputs)
    merged = student.merged(model, lambda: _base(tiny_student), settings)
    assert not any(isinstance(m, bitsandbytes.nn.Linear4bit) for m in merged.modules())
    after = _logits(merged, inputs)
    # Merging is adding: nothing but float32 rounding may differ from the 16-bit weights with adapters beside them.
    exact = _logits(_with_adapters_of(model, _base(tiny_student)), inputs)
    assert _distance(after, exact) < 1e-5
    # And what differs from the trained model is the 4-bit error of its frozen weights. The base alone shows its size;
    # with adapters the activations are others, and so is the error, but not by much.
    plain = _base(tiny_student)
    before = _logits(plain, inputs)
    student.freeze_in_4bit(plain, settings.base, settings.double_quantization, torch.float32, "cpu")
    error = _distance(_logits(plain, inputs), before)
    assert error > 1e-4, "4 bits do change the base"
    assert _distance(after, beside_4bit) < 3 * error
    # The adapters themselves moved the logits by more than that.
    assert _distance(after, before) > 3 * error


@pytest.mark.parametrize(
    ("method", "base", "dtype"),
    [
        *((method, base, "float32") for method in METHODS for base in ("16bit", "nf4")),
        ("lora", "fp4", "float32"), ("lora", "16bit", "bfloat16"), ("dora", "16bit", "bfloat16"),
        ("dora", "nf4", "bfloat16"), ("rslora", "fp4", "bfloat16"),
    ],
)  # fmt: skip
def test_every_method_learns_beside_every_base(method, base, dtype, tiny_student, dialogues_file, tmp_path):
    import torch

    from pillm.train import student

    model, settings, losses, inputs = _trained(
        tiny_student, dialogues_file, tmp_path, method=method, base=base, dtype=dtype, rank=8
    )
    # Batches of an untrained model differ by about 0.02 from log(49152).
    assert losses[-1] < losses[0] - 0.1
    exact = _logits(_with_adapters_of(model, _base(tiny_student)), inputs)
    beside = _logits(model, inputs)
    merged = student.merged(model, lambda: _base(tiny_student), settings)
    after = _logits(merged, inputs)
    assert _distance(after, exact) < 1e-5
    if base == "16bit":
        assert _distance(after, beside) < max(1e-5, _rounding(dtype))
    layer = merged.get_decoder().layers[0].self_attn.q_proj.weight
    assert layer.dtype == torch.float32
    assert not torch.equal(layer, _base(tiny_student).get_decoder().layers[0].self_attn.q_proj.weight)


def test_rslora_scales_by_the_square_root_of_the_rank_and_dora_trains_lengths(tiny_student, tmp_path):
    import torch

    from pillm.train import student
    from pillm.train.settings import Settings

    for method, scale in (("lora", 32 / 16), ("rslora", 32 / math.sqrt(16)), ("dora", 32 / 16)):
        model = student.load(tiny_student, torch.float32)[0]
        settings = Settings("cpu", "float32", 1e-3, False, {}, method=method, rank=16, alpha=32.0)
        model = student.with_adapters(tiny_student, model, settings)
        scales = {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")}
        assert scales == {scale}
        lengths = [n for n, p in model.named_parameters() if p.requires_grad and "magnitude" in n]
        assert bool(lengths) == (method == "dora")
        assert not any("lm_head" in n or "embed" in n for n, p in model.named_parameters() if p.requires_grad)


def test_layers_below_learn_after_a_forward_pass_in_evaluation(tiny_student):
    # bitsandbytes repacks weights on CPUs with AVX512-BF16 then, into a form without gradient.
    import torch

    from pillm.train import student
    from pillm.train.settings import Settings

    model = student.load(tiny_student, torch.float32)[0]
    model = student.with_adapters(tiny_student, model, Settings("cpu", "bfloat16", 1e-3, False, {}, base="nf4"))
    ids = torch.arange(10)[None]
    model.eval()
    with torch.no_grad():
        model(ids)
    model.train()
    model(ids, labels=ids).loss.backward()
    moved = [p.grad.abs().max() > 0 for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n]
    assert all(moved)
    assert len(moved) == 14


def test_nf4_is_nearer_to_the_weights_than_fp4_and_scales_in_8_bits_cost_little():
    import bitsandbytes
    import torch

    torch.manual_seed(0)
    weight = torch.randn(256, 256) * 0.05
    error = {}
    for kind in ("nf4", "fp4"):
        for double in (False, True):
            packed, state = bitsandbytes.functional.quantize_4bit(
                weight, blocksize=64, compress_statistics=double, quant_type=kind
            )
            back = bitsandbytes.functional.dequantize_4bit(packed, state)
            error[kind, double] = float((back - weight).pow(2).mean().sqrt() / weight.pow(2).mean().sqrt())
    assert error["nf4", False] < error["fp4", False]
    assert error["nf4", True] < error["nf4", False] * 1.05


def test_full_training_of_a_4_bit_base_is_refused(tiny_student, dialogues_file, tmp_path):
    given = {"student": str(tiny_student), "data": dialogues_file, "out": tmp_path, "method": "full"}
    with pytest.raises(UsageError, match="cannot train a nf4 base, which was given"):
        applied(TrainOptions(**given, base="nf4"))
    with pytest.raises(UsageError, match="which preset qlora-cpu sets"):
        applied(TrainOptions(**given, preset="qlora-cpu"))
    assert applied(TrainOptions(**given, preset="qlora-cpu", base="16bit")).rank == 16


def test_the_stage_trains_with_a_preset_and_says_where_values_are_from(tiny_student, dialogues_file, tmp_path):
    import json

    from transformers import AutoModelForCausalLM

    from pillm.train.run import run

    events = []
    options = TrainOptions(
        student=str(tiny_student), data=dialogues_file, out=tmp_path, preset="qlora-ampere", rank=4, device="cpu",
        micro_tokens=256, batch_tokens=512, max_steps=3, validate_every=1,
    )  # fmt: skip
    result = run(options, events.append)
    said = [e.message for e in events if isinstance(e, Log)]
    assert "rank = 4 (given)" in said
    assert "base = nf4 (preset qlora-ampere)" in said
    assert "lora_dropout = 0.0 (default)" in said
    warned = [e.message for e in events if isinstance(e, Log) and e.level == "warning"]
    assert any("there is none here, so it trains on cpu" in message for message in warned)
    report = json.loads((tmp_path / "train.json").read_text())
    assert ["base", "nf4", "preset qlora-ampere"] in report["hyperparameters"]
    assert report["last_loss"] < report["first_loss"]
    model = AutoModelForCausalLM.from_pretrained(result.outputs["model"])
    assert not getattr(model.config, "quantization_config", None)
    assert not any("absmax" in name for name in model.state_dict())


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.capability])
def test_a_preset_trains_on_its_own_hardware(name, tiny_student, dialogues_file, tmp_path):
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < PRESETS[name].capability:
        pytest.skip("needs a CUDA device of the preset's compute capability")
    _, settings, losses, _ = _trained(tiny_student, dialogues_file, tmp_path, preset=name, device="cuda")
    assert settings.dtype == PRESETS[name].values["dtype"]
    assert losses[-1] < losses[0] - 0.5


def test_plain_adapters_say_nothing_and_fetch_nothing(tiny_student, dialogues_file, tmp_path):
    """In a process of its own, where nothing has been imported yet: peft imports bitsandbytes by itself."""
    import subprocess
    import sys

    program = (
        "import sys; from pathlib import Path; from pillm.train.options import TrainOptions\n"
        "from pillm.train.run import run\n"
        "run(TrainOptions(student=sys.argv[1], data=Path(sys.argv[2]), out=Path(sys.argv[3]), max_steps=1), lambda e: None)\n"
        "assert 'peft' in sys.modules"
    )
    argv = [sys.executable, "-c", program, str(tiny_student), str(dialogues_file), str(tmp_path / "out")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "kernels-community" not in done.stderr
    assert done.stdout == ""
