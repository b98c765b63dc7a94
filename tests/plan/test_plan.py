"""What `pillm plan` answers. Speeds are predictions: no test says that a board is as fast."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pillm.core.errors import PillmError, UsageError
from pillm.core.events import Event, Log, Output, silent
from pillm.devices.mixture import QUANTS
from pillm.history.document import Board, Model, Run, Runtime, Speed, State
from pillm.llamacpp.gguf_file import describe
from pillm.plan.measured import figures
from pillm.plan.options import PlanOptions
from pillm.plan.report import Plan
from pillm.plan.run import USUAL, run

Folder = Callable[..., Path]


def plan(model: object, device: str = "pi5-4gb", **options: Any) -> Plan:
    found = run(PlanOptions(model=str(model), device=device, **options), silent).document
    assert isinstance(found, Plan)
    return found


def test_a_folder_with_only_a_config_is_enough(folder: Folder):
    result = run(PlanOptions(model=str(folder()), device="pi5-2gb", quant="Q4_0", threads=2), silent)
    told = json.loads(msgspec.json.encode(result.document))
    assert told["fits"] is True
    assert told["label"] == "predicted, not measured"
    assert (told["quant"], told["threads"], told["threads_batch"], told["ubatch"]) == ("Q4_0", 2, 2, 512)
    for name in ("decode_tps", "prefill_tps"):
        assert 0 < told[f"{name}_low"] < told[name] < told[f"{name}_high"]
    for name in ("memory_bytes", "weight_bytes", "kv_bytes", "compute_bytes"):
        assert told[name] > 0
    assert {name: result.metrics[name] for name in ("decode_tps", "memory_bytes", "fits")} == {
        name: told[name] for name in ("decode_tps", "memory_bytes", "fits")
    }
    # Published for this model, type and board with two threads: 34.2 tokens/s.
    assert told["decode_tps_low"] <= 34.2 <= told["decode_tps_high"]


def test_types_are_compared_and_one_that_fits_is_recommended(folder: Folder):
    found = plan(folder(), "pi4-1gb", context=2048)
    assert [item.quant for item in found.alternatives] == list(USUAL)
    (chosen,) = [item for item in found.alternatives if item.recommended]
    assert chosen.fits
    assert (chosen.quant, chosen.decode_tps) == (found.quant, found.decode_tps)


def test_the_text_names_board_label_types_and_the_server_s_arguments(folder: Folder):
    events: list[Event] = []
    run(PlanOptions(model=str(folder()), device="pi4-4gb"), events.append)
    text = "\n".join(event.line for event in events if isinstance(event, Output))
    for word in (
        "Raspberry Pi 4, 4 GB: fits",
        "predicted, not measured",
        *USUAL,
        "llama-server -c 4096",
        "-tb 4",
        "-ub 512",
    ):
        assert word in text


def test_a_board_without_room_tells_the_largest_type_that_would_fit(folder: Folder):
    small = folder(
        hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_hidden_layers=12, vocab_size=32000
    )
    found = plan(small, "zero2w", quant="F16", context=1024)
    assert not found.fits
    assert found.free_bytes < 0
    (note,) = [note for note in found.notes if "does not fit" in note]
    named = note.rsplit(" ", 1)[1]
    assert named in QUANTS
    assert plan(small, "zero2w", quant=named, context=1024).fits
    larger = QUANTS[QUANTS.index(named) - 1] if QUANTS.index(named) else "F16"
    assert not plan(small, "zero2w", quant=larger, context=1024).fits


def test_a_board_that_is_far_too_small_says_that_nothing_fits(folder: Folder):
    large = folder(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    found = plan(large, "pi4-1gb")
    assert not found.fits
    assert any("no quantization does (the smallest, Q2_K, needs" in note for note in found.notes)


def test_the_smallest_type_is_the_one_that_weighs_least(folder: Folder):
    """With rows of 896 weights Q2_K falls back to Q4_0 for most tensors, and Q3_K_S is smaller."""
    model = folder(num_hidden_layers=120)
    weighed = {quant: plan(model, "pi4-1gb", quant=quant).weight_bytes for quant in QUANTS}
    smallest = min(weighed, key=lambda quant: weighed[quant])
    assert smallest != QUANTS[-1]
    found = plan(model, "pi4-1gb", quant="F16")
    assert not found.fits
    assert any(f"no quantization does (the smallest, {smallest}, needs" in note for note in found.notes)


def test_a_model_that_fits_with_a_shorter_context_says_so(folder: Folder):
    wide = folder(num_key_value_heads=14, num_attention_heads=14)
    found = plan(wide, "pi4-1gb", context=32768, quant="Q2_K", kv_type="f16")
    assert not found.fits
    assert any("does with a context of" in note for note in found.notes)


def test_memory_is_saved_by_a_smaller_batch_and_then_by_the_cache_s_type(folder: Folder):
    model = folder(num_key_value_heads=14)
    room = plan(model, "pi4-2gb", context=4096, quant="Q4_0")
    tight = plan(model, "pi4-1gb", context=4096, quant="Q4_0")
    assert (room.kv_type, room.ubatch) == ("f16", 512)
    assert room.fits
    assert tight.kv_type == "q8_0"
    assert tight.kv_bytes == room.kv_bytes * 17 // 32
    assert tight.arguments[-6:] == ("-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0")
    forced = plan(model, "pi4-1gb", context=4096, quant="Q4_0", kv_type="f16", ubatch=512)
    assert not forced.fits


@pytest.mark.parametrize(
    ("asked", "planned"), [(None, 4096), (0, 32768), (1000, 1000), (32768, 32768), (100_000, 32768)]
)
def test_the_context_is_the_model_s_at_most(folder: Folder, asked: int | None, planned: int):
    found = plan(folder(), "pi5-16gb", context=asked, quant="Q4_0")
    assert found.context == planned
    assert any("was trained for 32768" in note for note in found.notes) == (asked == 100_000)


def test_a_model_with_a_short_context_is_planned_with_it(folder: Folder):
    assert plan(folder(max_position_embeddings=2048)).context == 2048


def test_a_negative_context_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        PlanOptions(model="x", context=-1)


@pytest.mark.parametrize("option", ["threads", "threads_batch"])
def test_more_threads_than_cores_are_refused(folder: Folder, option: str):
    with pytest.raises(UsageError, match="has 4 cores"):
        plan(folder(), **{option: 5})


def test_a_mixture_of_experts_reads_less_than_it_weighs(folder: Folder):
    dense = folder()
    whole = plan(dense, quant="Q4_0")
    moe = plan(
        folder(model_type="qwen3_moe", num_experts=16, num_experts_per_tok=2, moe_intermediate_size=2432, head_dim=64),
        "pi5-8gb",
        quant="Q4_0",
    )
    assert moe.weight_bytes > 4 * whole.weight_bytes
    assert moe.decode_tps > whole.decode_tps / 2
    assert any("2 of 16 experts" in note for note in moe.notes)


def test_an_unknown_architecture_and_missing_keys_are_told(folder: Folder):
    with pytest.raises(UsageError, match="'rwkv' is not known here") as error:
        plan(folder(model_type="rwkv"))
    assert "llama, mistral" in error.value.hint
    with pytest.raises(UsageError, match=r"config.json:1: hidden_size is missing"):
        plan(folder(hidden_size=None))


def test_no_model_at_all_is_told():
    with pytest.raises(UsageError, match="which model"):
        run(PlanOptions(device="pi4-4gb"), silent)


@pytest.mark.parametrize("name", ["empty", "nothing"])
def test_a_folder_without_a_model_is_told(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError):
        plan(tmp_path / name)


@pytest.mark.model
def test_a_quantized_file_is_planned_as_it_is(smollm2_gguf: Path):
    found = plan(smollm2_gguf, "pi4-1gb")
    assert (found.quant, found.alternatives) == ("Q4_1", ())
    assert found.weight_bytes == describe(smollm2_gguf).tensor_bytes
    assert found.kv_bytes == 90 * 2**20
    with pytest.raises(UsageError, match="quantized already"):
        plan(smollm2_gguf, quant="Q8_0")


@pytest.mark.model
@pytest.mark.parametrize("kept", [0.5, 0.001, 0])
def test_a_file_cut_in_half_is_told(smollm2_gguf: Path, tmp_path: Path, kept: float):
    half = tmp_path / "half.gguf"
    data = smollm2_gguf.read_bytes()
    half.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UsageError, match=r"cut off or damaged|not a GGUF file"):
        plan(half)


def test_the_list_of_boards_has_their_room_and_rows():
    events: list[Event] = []
    document = run(PlanOptions(boards=True), events.append).document
    listed = {board["name"]: board for board in json.loads(msgspec.json.encode(document))["boards"]}
    assert listed["zero2w-512mb"]["published_rows"] == 0
    assert listed["pi5-8gb"]["published_rows"] > 10
    assert len([event for event in events if isinstance(event, Output)]) == len(listed)


def bench_run(**changes: Any) -> Run:
    whole = {
        "id": "x", "started": "2026-01-01T00:00:00Z", "seconds": 1.0, "tool": "test", "valid": True,
        "board": Board(model="Raspberry Pi 5 Model B Rev 1.0", architecture="aarch64", kernel="6"),
        "before": State(at_s=0), "runtime": Runtime(kind="llama.cpp"),
        "model": Model(file="m.gguf", weight_bytes=10**9, read_bytes=10**9, kv_bytes_per_token=10**5, vocabulary=32000,
                       width=2048, types={"Q4_0": 10**9}),
        "speeds": (
            Speed(what="decode", tokens=128, depth=0, threads=2, mean_tps=5.0, stddev_tps=0.1, samples_tps=(5.0,)),
            Speed(what="prefill", tokens=512, depth=0, threads=4, mean_tps=60.0, stddev_tps=1, samples_tps=(60.0,)),
        ),
    }  # fmt: skip
    return Run(**{**whole, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"valid": False, "invalid": ("throttled",)},
        {"emulated": "qemu-aarch64"},
        {"board": Board(model="Raspberry Pi 4 Model B Rev 1.4", architecture="aarch64", kernel="6")},
        {"board": Board(model=None, architecture="x86_64", kernel="6")},
        {"model": Model(file="m.gguf")},
        {"warnings": ("other programs used 40% of the processors before the run: the figures will be too low",)},
        {"warnings": ("a", "other programs used 20% of the processors during the run: the figures are too low")},
    ],
)
def test_runs_that_say_nothing_of_the_board_are_left_out(changes: dict[str, Any]):
    from pillm.devices import load

    assert len(list(figures(load("pi5-4gb"), [bench_run()]))) == 2
    assert list(figures(load("pi5-4gb"), [bench_run(**changes)])) == []


@pytest.mark.parametrize(
    ("types", "depths"), [({}, {64, 1088}), ({"type_k": "q8_0"}, {64}), ({"type_v": "q8_0"}, {64})]
)
def test_decoding_at_a_depth_counts_with_a_cache_in_f16_alone(types: dict[str, str], depths: set[int]):
    from pillm.devices import load

    tests = tuple(
        Speed(
            what="decode", tokens=128, depth=depth, threads=2, mean_tps=5.0, stddev_tps=0.1, samples_tps=(5.0,), **types
        )
        for depth in (0, 1024)
    )
    found = figures(load("pi5-4gb"), [bench_run(speeds=tests)])
    assert {figure.decode_depth for figure in found} == depths


def test_a_prompt_s_length_is_carried_to_the_predictor():
    from pillm.devices import load

    short = Speed(what="prefill", tokens=128, depth=0, threads=4, mean_tps=60.0, stddev_tps=1, samples_tps=(60.0,))
    (found,) = figures(load("pi5-4gb"), [bench_run(speeds=(short,))])
    assert found.prefill_tokens == 128


def test_measured_runs_of_the_history_move_the_plan(folder: Folder):
    from pillm.history import store

    before = plan(folder(), quant="Q4_0")
    store.add(bench_run())
    after, without = plan(folder(), quant="Q4_0"), plan(folder(), quant="Q4_0", history=False)
    assert after.label == "predicted, from 1 model measured on this board"
    assert after.decode_tps < before.decode_tps
    assert without.decode_tps == before.decode_tps
    assert plan(folder(), "pi4-4gb", quant="Q4_0").label == "predicted, not measured"


def test_a_history_that_cannot_be_read_is_noted(folder: Folder, monkeypatch: pytest.MonkeyPatch):
    from pillm.history import store

    place = store.location()
    place.parent.mkdir(parents=True)
    place.write_bytes(b"this is no database" * 1000)
    found = plan(folder(), quant="Q4_0")
    assert any("without the history" in note for note in found.notes)


def test_a_plan_writes_nothing(folder: Folder, tmp_path: Path):
    model = folder()
    before = sorted(tmp_path.rglob("*"))
    plan(model)
    assert sorted(tmp_path.rglob("*")) == before


def test_warnings_are_told_as_such_where_nothing_fits(folder: Folder):
    events: list[Event] = []
    run(PlanOptions(model=str(folder()), device="zero2w", quant="F16", context=0), events.append)
    assert any(isinstance(event, Log) and event.level == "warning" for event in events)


def test_a_bad_reference_is_told():
    with pytest.raises(PillmError):
        plan("https://localhost:1/v1")


def test_this_machine_can_be_planned_for(folder: Folder):
    found = plan(folder(), "here", quant="Q4_0")
    assert found.device == "here"
    assert 0 < found.room_bytes < found.ram_bytes
    assert found.decode_tps_high / found.decode_tps_low > 10
    assert any("is a guess" in note for note in found.notes)
