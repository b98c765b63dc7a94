"""Boards and predictions, against the published rows. Nothing here was measured on a board."""

from __future__ import annotations

import csv
import statistics
from importlib import resources

import pytest

from pillm import devices
from pillm.core.errors import UsageError
from pillm.devices.predictor import fit, published

SMOLLM2 = devices.ModelNumbers(
    weight_bytes=96_570_000,
    read_bytes=96_570_000,
    kv_bytes_per_token=devices.kv_bytes_per_token(30, 3, 64, 64),
    vocabulary=49_152,
    width=576,
)


def numbers(gigabytes: float) -> devices.ModelNumbers:
    size = int(gigabytes * 1e9)
    return devices.ModelNumbers(size, size, devices.kv_bytes_per_token(24, 2, 64, 64), 151_936, 896)


def test_every_memory_size_of_both_boards_has_a_profile():
    assert set(devices.names()) >= {
        *(f"pi4-{ram}gb" for ram in (1, 2, 4, 8)),
        *(f"pi5-{ram}gb" for ram in (2, 4, 8, 16)),
    }
    assert devices.load("PI5-8GB").ram_bytes == 8 * 2**30


def test_an_unknown_board_names_those_there_are():
    with pytest.raises(UsageError, match="pi6-1gb") as error:
        devices.load("pi6-1gb")
    assert "pi5-16gb" in error.value.hint


def test_every_published_row_has_a_source_and_a_plausible_size():
    assert len(published()) == 16
    for row in published():
        assert row.source
        assert row.source != "same"
    text = resources.files("pillm.devices").joinpath("published.csv").read_text()
    for line in csv.DictReader(text.splitlines()):
        bits = float(line["read_gb"]) * 8 / float(line["params_b"])
        assert 4 <= bits <= 8.7, line


@pytest.mark.parametrize(("family", "largest"), [("pi5", 0.13), ("pi4", 0.16)])
def test_leave_one_model_out_error_is_within_what_is_shown(family: str, largest: float):
    known = fit(family, 4)
    assert len(known.errors) == len(known.rows) > 1
    assert max(map(abs, known.errors)) < largest
    assert known.spread >= max(map(abs, known.errors))
    # The mean error says whether the fit leans to one side.
    assert abs(statistics.mean(known.errors)) < 0.03


@pytest.mark.parametrize(
    "row", [row for row in published() if row.threads == 4], ids=lambda row: f"{row.model}-{row.quant}"
)
def test_the_interval_holds_every_published_row(row):
    name = f"{row.board}-4gb"
    predicted = devices.predict(devices.load(name), numbers(row.read_gb), depth=0)
    assert predicted.decode_low <= row.decode_tps <= predicted.decode_high
    assert not predicted.extrapolated


def test_a_figure_outside_the_published_sizes_says_so_and_is_wider():
    small, known = (devices.predict(devices.load("pi5-4gb"), numbers(size), depth=0) for size in (0.1, 1.0))
    assert small.extrapolated
    assert "smaller than every published model" in small.note
    assert small.decode_low / small.decode < known.decode_low / known.decode
    assert devices.predict(devices.load("pi5-16gb"), numbers(8.0)).extrapolated


def test_every_figure_carries_the_label():
    assert devices.predict(devices.load("pi4-2gb"), SMOLLM2).label == "predicted, not measured"


def test_buffers_and_cache_are_what_llamacpp_reserves_for_smollm2():
    # llama.cpp 0.5.0-dev with -c 4096 prints: KV 90.00 MiB, compute buffer 98.25 MiB.
    predicted = devices.predict(devices.load("pi4-1gb"), SMOLLM2, context=4096)
    assert predicted.kv_bytes == 90 * 2**20
    assert predicted.buffer_bytes == int(98.25 * 2**20)
    assert predicted.memory_bytes == SMOLLM2.weight_bytes + predicted.kv_bytes + predicted.buffer_bytes


def test_a_model_that_is_too_big_does_not_fit_and_says_by_how_much():
    predicted = devices.predict(devices.load("pi4-1gb"), numbers(1.2))
    assert not predicted.fits
    assert predicted.free_bytes < 0
    assert devices.predict(devices.load("pi4-4gb"), numbers(1.2)).fits


def test_a_deeper_context_is_slower_and_a_longer_one_takes_more_memory():
    board = devices.load("pi5-4gb")
    near, far = (devices.predict(board, SMOLLM2, context=2048, depth=depth) for depth in (0, 2048))
    assert far.decode < near.decode
    assert devices.predict(board, SMOLLM2, context=8192).memory_bytes > near.memory_bytes
