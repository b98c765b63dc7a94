"""The real packages on emulated boards: one life in a root of Debian 12, one machine that boots and is deployed to.

`benchmarks/board_vm.py` and `benchmarks/emulated/cycle.py` do the same for both cores and both Debians, with power cuts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pillm.core.events import silent
from pillm.core.paths import cache_dir

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import board_vm
from emulated import cycle, rootfs
from emulated import machine as machines

pytestmark = [pytest.mark.board, pytest.mark.model]
NAME = "tutor"


@pytest.fixture(scope="module")
def packages(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runtime for arm64 (cross-built once into the cache) and the model's package."""
    from pillm.deploy.package import model, runtime

    if reason := machines.lacking():
        pytest.skip(reason)
    made = model.build(smollm2_gguf, NAME, tmp_path_factory.mktemp("model"), silent)
    return runtime.build("arm64", cache_dir() / "packages" / "runtime", silent), made


@pytest.mark.timeout(2400)
def test_the_packages_live_and_leave_nothing_behind(packages, tmp_path):
    if reason := rootfs.lacking():
        pytest.skip(reason)
    steps = [what for what, _, _ in cycle.cycle("bookworm", *packages, tmp_path)]
    assert steps == ["install", "use (cortex-a72)", "use (cortex-a76)", "helpers", "upgrade", "downgrade", "remove", "purge", "left after purge"]  # fmt: skip


@pytest.mark.timeout(2400)
def test_a_board_that_boots_is_deployed_to_and_answers(packages, tmp_path):
    runtime, model = packages
    with machines.machine(tmp_path, "bookworm", "cortex-a72") as board:
        _, first = board_vm.deploy(board, runtime, model)
        assert "installed" in first.stdout
        assert "Paris" in first.stdout
        seen = board_vm.looked_at(board, NAME)
        assert (seen["active"], seen["failed"].strip()) == ("active", "")
        assert seen["backend"].strip() == "libggml-cpu-armv8.0_1.so"
        assert seen["limit"] != "infinity"
        _, second = board_vm.deploy(board, runtime, model)
        assert "unchanged" in second.stdout
        wanted = board_vm.questions(2)
        board_vm.drop(board, NAME, "batch.jsonl", wanted)
        # Its power goes while the job waits or is computed.
        board.cut()
        board.on()
        assert [line["id"] for line in board_vm.results(board, NAME, "batch.jsonl", 900)] == [
            line["id"] for line in wanted
        ]
        assert board_vm.stop(board, NAME) == "success, inactive, 0 processes left"
