"""The table of presets is the only one: flags, docs, command and training agree with it. Light: no torch but where said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from pillm.core.events import Output
from pillm.train.options import TrainOptions
from pillm.train.presets import PRESETS, applied
from pillm.train.presets_options import PresetsOptions
from pillm.train.presets_table import markdown, run

DOCS = Path(__file__).parents[2] / "docs" / "training.md"


def _options(**given) -> TrainOptions:
    return TrainOptions(student="x", data=Path("x.jsonl"), **given)


def test_choices_of_the_options_are_the_table():
    for model in (TrainOptions, PresetsOptions):
        assert set(get_args(model.model_fields["preset"].annotation)) - {""} == set(PRESETS)


@pytest.mark.parametrize("name", list(PRESETS))
def test_values_are_options_and_each_has_a_reason(name):
    preset = PRESETS[name]
    assert set(preset.values) == set(preset.reasons)
    assert all(preset.reasons.values())
    checked = _options(**preset.values)  # the options' own bounds
    assert {field: getattr(checked, field) for field in preset.values} == preset.values
    assert preset.values["batch_tokens"] >= preset.values["micro_tokens"]
    turing_or_older = preset.capability is not None and preset.capability < (8, 0)
    assert (preset.values["dtype"] == "float16") == turing_or_older


def test_given_options_win_over_a_preset_and_a_preset_over_defaults():
    options = applied(_options(preset="qlora-hopper", rank=8, base="fp4"))
    assert (options.rank, options.base) == (8, "fp4")
    assert options.micro_tokens == PRESETS["qlora-hopper"].values["micro_tokens"]
    assert options.epochs == TrainOptions.model_fields["epochs"].default
    assert options.model_fields_set == {"student", "data", "preset", "rank", "base"}
    assert applied(options) == options
    # A value that equals the default was given all the same.
    assert applied(_options(preset="qlora-hopper", rank=32)).rank == 32
    assert applied(_options()) == _options()


def test_the_command_prints_the_table_and_a_document():
    lines = []
    result = run(PresetsOptions(), lambda event: lines.append(event.line) if isinstance(event, Output) else None)
    text = "\n".join(lines)
    for preset in PRESETS.values():
        assert preset.name in text
    document = json.loads(json.dumps(result.document))
    assert [row["name"] for row in document["presets"]] == list(PRESETS)
    assert document["presets"][0]["values"]["dtype"] == "float16"
    one = []
    result = run(PresetsOptions(preset="qlora-turing"), one.append)
    assert any("no bfloat16 on capability 7.5" in event.line for event in one)
    assert len(result.document["presets"]) == 1


def test_the_documented_table_is_the_table():
    text = DOCS.read_text()
    start, end = "<!-- presets: made by pillm.train.presets_table.markdown -->\n", "<!-- end of presets -->"
    assert text[text.index(start) + len(start) : text.index(end)].strip() == markdown().strip()


@pytest.mark.train
def test_what_the_hardware_lacks_falls_back_and_is_said(monkeypatch):
    # The machine is the real one but for what torch says of it, since there is no such machine here.
    import torch

    from pillm.train.settings import settle, table

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    warnings = []
    options = applied(_options(preset="qlora-ampere"))
    settings = settle(options, 10**6, 2, 64, None, warnings.append)
    assert (settings.device, settings.dtype) == ("cpu", "float32")
    assert [event.level for event in warnings] == ["warning", "warning"]
    assert "asks for bfloat16" in warnings[1].message
    rows = {name: (value, source) for name, value, source in table(options, settings)}
    assert rows["dtype"] == ("float32", "chosen: preset qlora-ampere asks for bfloat16; this cpu has no fast bfloat16")
    assert rows["rank"] == ("32", "preset qlora-ampere")
    assert rows["epochs"] == ("1.0", "default")
    # What was asked for by hand is done.
    assert settle(_options(preset="qlora-ampere", dtype="bfloat16"), 1, 1, 64).dtype == "bfloat16"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**34, 2**34))
    warnings.clear()
    assert settle(_options(preset="qlora-ampere"), 10**6, 2, 64, None, warnings.append).dtype == "float16"
    assert "is for compute capability 8.0; Tesla T4 has 7.5" in warnings[0].message
    warnings.clear()
    assert settle(_options(preset="qlora-turing"), 10**6, 2, 64, None, warnings.append).dtype == "float16"
    assert not warnings
    assert settle(_options(preset="qlora-cpu"), 10**6, 2, 64).device == "cpu"


@pytest.mark.train
def test_rslora_gets_a_lower_rate_unless_one_is_given():
    from pillm.train.settings import settle

    rate = settle(_options(method="rslora", rank=16, device="cpu"), 1, 1, 64).learning_rate
    assert rate == pytest.approx(1e-3 / 4)
    assert settle(_options(method="rslora", learning_rate=0.5, device="cpu"), 1, 1, 64).learning_rate == 0.5
