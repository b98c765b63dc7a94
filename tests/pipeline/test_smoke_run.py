"""The whole road on the real model and the real llama.cpp, in its smallest steps. It says nothing of quality."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pillm.core import events
from pillm.pipeline import manifest

pytestmark = [pytest.mark.model, pytest.mark.llamacpp, pytest.mark.train]


def smoke(run_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pillm", "run", "smoke", f"--run-dir={run_dir}", *words]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(argv, capture_output=True, text=True, env=env, check=False, timeout=900)


def ended(output: str) -> dict[str, str]:
    told = [events.decode(line) for line in output.splitlines()]
    return {event.stage: event.status for event in told if isinstance(event, events.StageEnded)}


def test_a_smoke_run_makes_every_artifact_once(smoke_run: Path, tmp_path: Path) -> None:
    # Others use the run too, so what is tampered with here is a copy.
    run_dir = shutil.copytree(smoke_run, tmp_path / "run")
    told = manifest.read(run_dir)
    assert told.complete
    assert [record.id for record in told.stages] == [
        "label",
        "card",
        "train",
        "before",
        "export",
        "quantize",
        "evaluate",
        "bench",
    ]
    by_id = {record.id: record for record in told.stages}
    assert by_id["train"].models["student"].license == "Apache-2.0"
    # The card of what it learned from stands beside the model, and its hash in both records.
    card = by_id["card"].outputs["card"]
    assert hashlib.sha256((run_dir / "train/model/dataset_card.json").read_bytes()).hexdigest() == card.sha256
    assert json.loads((run_dir / "train/train.json").read_text())["dataset_card"] == card.sha256
    assert by_id["train"].inputs["card"].sha256 == card.sha256
    assert (run_dir / by_id["quantize"].outputs["gguf"].path).read_bytes()[:4] == b"GGUF"
    assert by_id["quantize"].inputs["model"].sha256 == by_id["export"].outputs["gguf"].sha256
    assert by_id["evaluate"].inputs["reference"].sha256 == by_id["export"].outputs["gguf"].sha256
    assert all(record.peak_memory_bytes > 20_000_000 and record.seconds > 0 for record in told.stages)
    page = (run_dir / "report.html").read_text()
    assert "<svg" in page
    assert by_id["quantize"].outputs["gguf"].sha256[:12] in page

    again = smoke(run_dir, "--json")
    assert again.returncode == 0, again.stderr
    assert set(ended(again.stdout).values()) == {"cached"}

    # A tampered file is made again, to the byte; what it feeds need not run.
    gguf = run_dir / by_id["quantize"].outputs["gguf"].path
    with gguf.open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"tampered")
    mended = smoke(run_dir, "--json")
    assert mended.returncode == 0, mended.stderr
    assert {stage for stage, status in ended(mended.stdout).items() if status == "ran"} == {"quantize"}
    after = {record.id: record for record in manifest.read(run_dir).stages}
    assert after["quantize"].outputs["gguf"].sha256 == by_id["quantize"].outputs["gguf"].sha256
