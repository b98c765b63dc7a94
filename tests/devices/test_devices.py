"""Boards and predictions, against the published rows. Nothing here was measured on a board."""

from __future__ import annotations

import json

import msgspec
import pytest

from pillm import devices
from pillm.core.errors import ProfileError, UsageError
from pillm.devices import boards
from pillm.devices.architecture import from_config
from pillm.devices.mixture import mixed
from pillm.devices.model import Model
from pillm.devices.published import model, rows
from pillm.devices.repack import repacks
from pillm.devices.speed import decode_seconds, fit, left_out, prefill_seconds, spreads

SMOLLM2 = devices.ModelNumbers(
    weight_bytes=96_570_000,
    read_bytes=96_570_000,
    kv_bytes_per_token=devices.kv_bytes_per_token(30, 3, 64, 64),
    vocabulary=49_152,
    width=576,
    types={"Q4_1": 67_000_000, "Q8_0": 29_500_000},
)
EXPECTED = {
    "pi4": (1, 2, 4, 8), "pi400": (4,), "cm4": (1, 2, 4, 8),
    "pi5": (2, 4, 8, 16), "pi500": (8, 16), "cm5": (2, 4, 8, 16),
}  # fmt: skip
PROFILE = """
family: mine
title: My board
soc: BCM2711
ram_gib: [3]
reserved_mib: 200
"""
OWN_SOC = """
family: other
title: Another board
ram_gib: [4]
reserved_mib: 200
soc:
  title: RK, 4 x Cortex-A55
  core: Cortex-A55
  cores: 4
  features: [neon, dotprod]
  decode_threads: 4
  read_gbps: {1: 5.0, 4: 7.0}
  dot_gweights: {other: 3.0}
  overlap: 0.5
"""


def numbers(gigabytes: float) -> devices.ModelNumbers:
    size = int(gigabytes * 1e9)
    return devices.ModelNumbers(size, size, devices.kv_bytes_per_token(24, 2, 64, 64), 151_936, 896, {"Q4_0": size})


def test_every_memory_size_of_every_board_has_a_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    wanted = {f"{family}-{size}gb" for family, sizes in EXPECTED.items() for size in sizes} | {"zero2w-512mb"}
    assert set(devices.names()) == wanted
    assert devices.load("PI5-8GB").ram_bytes == 8 * 2**30
    assert devices.load("zero2w").name == "zero2w-512mb"


@pytest.mark.parametrize(("name", "like"), [("pi400-4gb", "pi4-4gb"), ("cm4-2gb", "pi4-2gb"), ("cm5-8gb", "pi5-8gb")])
def test_boards_with_one_processor_share_its_figures(name: str, like: str):
    one, other = devices.load(name), devices.load(like)
    assert one.soc is other.soc
    subject = model("Llama-3.2-3B", "Q4_0")
    assert devices.predict(one, subject).decode == devices.predict(other, subject).decode


def test_an_unknown_board_names_those_there_are():
    with pytest.raises(UsageError, match="pi6-1gb") as error:
        devices.load("pi6-1gb")
    assert "pi5-16gb" in error.value.hint


def test_a_family_without_a_size_asks_which():
    with pytest.raises(UsageError, match="which memory size") as error:
        devices.load("pi4")
    assert error.value.hint == "one of: pi4-1gb, pi4-2gb, pi4-4gb, pi4-8gb"


def test_a_profile_of_ones_own_is_used_by_its_path_and_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "pillm" / "boards"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(PROFILE)
    assert devices.load("mine-3gb") == devices.load(str(folder / "mine.yaml"))
    assert "mine-3gb" in devices.names()
    assert "pi4-4gb" in devices.names()


def test_a_board_with_a_processor_of_its_own_is_predicted_from_its_figures_with_a_wide_interval(tmp_path):
    file = tmp_path / "other.yaml"
    file.write_text(OWN_SOC)
    board = devices.load(str(file))
    found = devices.predict(board, model("Llama-3.2-3B", "Q4_0"), depth=0)
    read = model("Llama-3.2-3B", "Q4_0").work.read_bytes
    assert found.decode < 7e9 / read
    assert found.rows == 0
    assert found.decode_low == pytest.approx(found.decode / 1.6)
    assert "no model's speed was ever published" in found.note


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        (PROFILE.replace("BCM2711", "BCM9999"), 4, "'BCM9999' is not known"),
        (PROFILE.replace("[3]", "[0]"), 5, "above 0"),
        (PROFILE.replace("reserved_mib: 200", "reserved_mib: much"), 6, "valid integer"),
        (PROFILE.replace("ram_gib: [3]\n", ""), 2, "ram_gib and ram_mib"),
        (PROFILE + "colour: red\n", 7, "Extra inputs"),
        (PROFILE + "  bad: [\n", 7, ""),
        ("- a list\n", 1, "keys of a board"),
        (OWN_SOC.replace("1: 5.0", "1: -5.0"), 12, "above 0"),
        (OWN_SOC.replace("{other: 3.0}", "{Q9_X: 3.0}"), 13, "`other`"),
        (OWN_SOC.replace("  cores: 4\n", "  cores: 0\n"), 9, "greater than or equal to 1"),
    ],
)
def test_a_bad_profile_is_told_with_file_and_line(tmp_path, text: str, line: int, told: str):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ProfileError) as error:
        devices.load(str(file))
    finding = error.value.findings[0]
    assert (finding.file, finding.line) == (str(file), line), finding
    assert told in finding.message


def test_a_profile_that_is_not_there_is_told():
    with pytest.raises(UsageError, match="cannot be read"):
        devices.load("nowhere/board.yaml")


def test_every_published_row_has_a_source_and_a_board():
    judged = [row for row in rows() if not row.further]
    assert len(judged) == 16
    for row in rows():
        assert row.source
        assert row.source != "same"
        assert row.setup
        assert row.soc in boards.socs()


def test_only_the_runtime_decides_which_rows_are_not_explained():
    assert {row.runtime for row in rows() if row.unexplained} == {"llamafile 0.7"}
    assert all(row.unexplained for row in rows() if row.runtime == "llamafile 0.7")


@pytest.mark.parametrize("soc", ["BCM2712", "BCM2711"])
def test_no_fitted_figure_has_seen_the_row_it_predicts(soc: str, monkeypatch):
    """A row's own figures are replaced by nonsense: what is predicted for it must not move."""
    from pillm.devices import published, speed

    before = {error.row: (error.decode, error.prefill) for error in left_out(soc)}
    for wrong in [row for row in rows() if row.soc == soc and not row.unexplained]:
        nonsense = msgspec.structs.replace(
            wrong, decode_tps=wrong.decode_tps * 3, prefill_tps=wrong.prefill_tps and wrong.prefill_tps / 5
        )
        changed = tuple(nonsense if row is wrong else row for row in rows())
        monkeypatch.setattr(speed, "rows", lambda changed=changed: changed)
        monkeypatch.setattr(published, "rows", lambda changed=changed: changed)
        speed.fit.cache_clear()
        speed.left_out.cache_clear()
        (after,) = [error for error in speed.left_out(soc) if error.row is nonsense]
        assert (after.decode, after.prefill) == before[wrong], wrong
    speed.fit.cache_clear()
    speed.left_out.cache_clear()


@pytest.mark.parametrize(
    "row", [row for row in rows() if not row.unexplained], ids=lambda row: f"{row.board}-{row.model}-{row.threads}"
)
def test_the_interval_holds_every_published_row_that_can_be_explained(row):
    board = next(board for board in boards.shipped().values() if board.family == row.board)
    found = devices.predict(board, model(row.model, row.quant), depth=0, threads=row.threads, threads_batch=row.threads)
    assert found.decode_low <= row.decode_tps <= found.decode_high
    if row.prefill_tps and row.repack:
        assert found.prefill_low <= row.prefill_tps <= found.prefill_high


def test_the_interval_is_no_narrower_than_the_worst_error_of_a_row_left_out():
    for soc in ("BCM2712", "BCM2711"):
        decode, prefill = spreads(soc, boards.socs()[soc])
        errors = [error for error in left_out(soc) if not error.row.unexplained]
        assert decode >= max(abs(error.decode_error) for error in errors)
        assert prefill >= max((abs(error.prefill_error or 0) for error in errors), default=0)


def test_repacking_speeds_up_prefill_on_a_pi_5_and_nothing_on_a_pi_4():
    pi4, pi5 = devices.load("pi4-4gb").soc, devices.load("pi5-4gb").soc
    for kind in ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL"):
        assert repacks(kind, pi5.features), kind
        assert not repacks(kind, pi4.features), kind
    for kind in ("Q5_0", "Q5_1", "Q4_1", "F16"):
        assert not repacks(kind, pi5.features), kind


def test_a_figure_outside_the_published_sizes_says_so_and_is_wider():
    small, known = (devices.predict(devices.load("pi5-4gb"), numbers(size), depth=0) for size in (0.05, 1.0))
    assert small.extrapolated
    assert "smaller than every published model" in small.note
    assert small.decode_low / small.decode < known.decode_low / known.decode
    assert devices.predict(devices.load("pi5-16gb"), numbers(8.0)).extrapolated


def test_the_zero_2_w_has_no_rows_and_says_so():
    found = devices.predict(devices.load("zero2w"), model("Qwen2.5-0.5B", "Q4_0"))
    assert found.rows == 0
    assert found.decode_high / found.decode_low >= 3
    assert "no model's speed was ever published" in found.note


def test_every_figure_carries_the_label():
    assert devices.predict(devices.load("pi4-2gb"), SMOLLM2).label == "predicted, not measured"


def test_a_model_that_is_too_big_does_not_fit_and_says_by_how_much():
    found = devices.predict(devices.load("pi4-1gb"), numbers(1.2))
    assert not found.fits
    assert found.free_bytes < 0
    assert devices.predict(devices.load("pi4-4gb"), numbers(1.2)).fits


def test_a_deeper_context_is_slower_and_a_longer_one_takes_more_memory():
    board = devices.load("pi5-4gb")
    near, far = (devices.predict(board, SMOLLM2, context=2048, depth=depth) for depth in (0, 2048))
    assert far.decode < near.decode
    assert devices.predict(board, SMOLLM2, context=8192).memory_bytes > near.memory_bytes


def test_threads_beyond_the_cores_count_for_no_more_than_the_cores():
    board = devices.load("pi5-4gb")
    assert devices.predict(board, SMOLLM2, threads=64).decode == devices.predict(board, SMOLLM2, threads=4).decode


def test_rough_numbers_come_near_what_the_tensors_give():
    board, whole = devices.load("pi5-8gb"), model("Llama-3.2-3B", "Q4_0")
    types: dict[str, int] = {}
    for tensor in whole.tensors:
        types[tensor.type] = types.get(tensor.type, 0) + tensor.bytes
    rough = devices.ModelNumbers(
        whole.weight_bytes, whole.work.read_bytes, devices.kv_bytes_per_token(28, 8, 128, 128), 128_256, 3072, types
    )
    exact, found = devices.predict(board, whole), devices.predict(board, rough)
    assert found.decode == pytest.approx(exact.decode, rel=0.02)
    assert found.prefill == pytest.approx(exact.prefill, rel=0.25)
    assert found.memory_bytes == pytest.approx(exact.memory_bytes, rel=0.15)


def run(ratio: float, size: float, threads: int = 2) -> devices.Measured:
    subject = numbers(size)
    known = devices.predict(devices.load("pi5-8gb"), subject, depth=0, threads=threads)
    return devices.Measured(
        numbers=subject,
        threads=threads,
        decode_tps=ratio * known.decode,
        threads_batch=4,
        prefill_tps=ratio * known.prefill,
    )


def test_measured_runs_move_the_prediction_towards_the_board_and_narrow_it():
    board, subject = devices.load("pi5-8gb"), numbers(1.0)
    before = devices.predict(board, subject, depth=0)
    one = devices.predict(board, subject, depth=0, measured=[run(0.8, 1.0)])
    runs = [run(0.8, size) for size in (0.6, 1.0, 2.0)]
    three = devices.predict(board, subject, depth=0, measured=runs)
    assert before.decode > one.decode > three.decode
    assert three.decode == pytest.approx(0.8 * before.decode, rel=0.01)
    # Prefill is moved by the planned model's own run alone: half of the way, as one model.
    assert three.prefill == one.prefill == pytest.approx(0.8**0.5 * before.prefill, rel=0.01)
    others = devices.predict(board, subject, depth=0, measured=[runs[0], runs[2]])
    assert (others.prefill, others.prefill_low, others.prefill_high) == (
        before.prefill,
        before.prefill_low,
        before.prefill_high,
    )
    assert others.decode < before.decode
    widths = [(item.decode_high - item.decode_low) / item.decode for item in (before, one, three)]
    assert widths[0] > widths[1] > widths[2]
    assert one.label == "predicted, from 1 model measured on this board"
    assert three.label == "predicted, from 3 models measured on this board"


FED_BACK = {
    "qwen2": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936,
    },
    "gemma3_text": {
        "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512,
    },
    "llama": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "qwen3_moe": {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    },
}  # fmt: skip
"""Shapes of Qwen2.5-0.5B, Gemma 3 270M, Llama 3.2 1B and Qwen3-30B-A3B by their model_type."""


def whole(name: str, quant: str) -> Model:
    made = from_config(json.dumps({"model_type": name, "tie_word_embeddings": True, **FED_BACK[name]}), "x", name)
    return msgspec.structs.replace(made, quant=quant, tensors=mixed(made.tensors, made.shape, quant))


def as_measured(board: devices.Device, subject: Model, prompt: int, depth: int) -> devices.Measured:
    """The predictor's own figures, with what a document tells of the model."""
    types: dict[str, int] = {}
    for tensor in subject.tensors:
        types[tensor.type] = types.get(tensor.type, 0) + tensor.bytes
    shape, work, known = subject.shape, subject.work, fit(board.soc_name)
    kv = 2 * sum(shape.kv_heads) * (shape.key_length + shape.value_length)
    return devices.Measured(
        numbers=devices.ModelNumbers(subject.weight_bytes, work.read_bytes, kv, shape.vocabulary, shape.width, types),
        threads=4,
        decode_tps=1 / decode_seconds(board.soc, known, work, 4, depth=depth),
        decode_depth=depth,
        prefill_tps=1 / prefill_seconds(board.soc, known, work, 4, prompt=prompt),
        prefill_tokens=prompt,
    )


@pytest.mark.parametrize("prompt", [128, 256, 512])
@pytest.mark.parametrize("quant", ["Q4_0", "Q4_K_M", "Q8_0"])
@pytest.mark.parametrize("name", ["pi5-8gb", "pi4-8gb"])
def test_the_predictor_s_own_figures_fed_back_leave_its_predictions_where_they_were(name: str, quant: str, prompt: int):
    board = devices.load(name)
    subjects = [whole(kind, quant) for kind in FED_BACK]
    runs = [as_measured(board, subject, prompt, depth=32) for subject in subjects]
    for subject, own in zip(subjects, runs, strict=True):
        before = devices.predict(board, subject)
        for measured in ([own], runs):
            after = devices.predict(board, subject, measured=measured)
            assert after.runs == len(measured)
            assert after.prefill == pytest.approx(before.prefill, rel=0.01)
            assert after.decode == pytest.approx(before.decode, rel=0.01)


def test_a_run_of_the_planned_model_moves_its_prefill():
    board, subject = devices.load("pi5-8gb"), whole("gemma3_text", "Q4_K_M")
    own = as_measured(board, subject, 256, depth=32)
    faster = msgspec.structs.replace(own, prefill_tps=1.44 * (own.prefill_tps or 0))
    before, after = devices.predict(board, subject), devices.predict(board, subject, measured=[faster])
    assert after.prefill == pytest.approx(1.2 * before.prefill)


def test_a_run_that_tells_nothing_of_the_planned_model_is_not_counted():
    board = devices.load("pi5-8gb")
    other = as_measured(board, whole("llama", "Q4_K_M"), 512, depth=0)
    prefill_alone = msgspec.structs.replace(other, decode_tps=None)
    found = devices.predict(board, whole("qwen2", "Q4_K_M"), measured=[prefill_alone])
    assert (found.runs, found.label) == (0, "predicted, not measured")


def test_many_runs_of_one_model_count_as_one_model():
    board, subject = devices.load("pi5-8gb"), numbers(1.0)
    once = devices.predict(board, subject, measured=[run(0.8, 1.0)])
    often = devices.predict(board, subject, measured=[run(0.8, 1.0)] * 50)
    assert often.decode == pytest.approx(once.decode)
    assert often.runs == 1


def test_leaving_out_rows_changes_the_fit():
    whole = fit("BCM2712")
    some = fit("BCM2712", tuple(row for row in rows() if row.model == "Qwen2.5-0.5B"))
    assert some.decode_rows == whole.decode_rows - 6
    assert "repacked Q4_0" in whole.prefill
    assert "repacked Q4_0" not in some.prefill
