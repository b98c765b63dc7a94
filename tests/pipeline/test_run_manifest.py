"""`manifest.json` and the pieces around it: what it holds, and what it must not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import fake_stages
import pytest

from pillm import __version__
from pillm.core.errors import UsageError
from pillm.core.events import Log, Progress, decode, silent
from pillm.pipeline import manifest
from pillm.pipeline.journal import Journal
from pillm.pipeline.memory import PeakMemory

TOKEN = "hf_" + "abcdefghijklmnopqrstuvwxyz012345"


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("PILLM_LLAMACPP_DIR", raising=False)
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    (tmp_path / "p.yaml").write_text(
        "profile: 1\nname: p\ndescription: d\nstages:\n"
        f"  copy: {{data: lines.txt, prefix: '{TOKEN}'}}\n"
        '  join: {left: "${copy.copied}"}\n'
    )
    fake_stages.run(tmp_path / "p.yaml", tmp_path / "run", silent, sets=["copy.pause=0.001"])
    return tmp_path / "run"


def test_it_tells_inputs_outputs_options_commands_times_and_machine(run_dir: Path) -> None:
    told = manifest.read(run_dir)
    copy, join = told.stages
    assert (told.name, told.description, told.overrides, told.complete) == ("p", "d", ("copy.pause=0.001",), True)
    assert told.profile_sha256 == hashlib.sha256((run_dir.parent / "p.yaml").read_bytes()).hexdigest()
    assert told.versions["pillm"] == __version__
    assert told.versions["llama.cpp"]
    assert told.hardware.cores == len(os.sched_getaffinity(0))
    assert told.hardware.memory_bytes > 2**28
    assert copy.inputs["data"].sha256 == hashlib.sha256(b"one\ntwo\n").hexdigest()
    assert copy.inputs["data"].bytes == 8
    output = run_dir / copy.outputs["copied"].path
    assert copy.outputs["copied"].sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    # What one stage made is what the next one read.
    assert join.inputs["left"].sha256 == copy.outputs["copied"].sha256
    assert (copy.options["pause"], copy.metrics) == (0.001, {"lines": 2})
    assert join.command.startswith("pillm join --out=")
    assert "rest" not in join.outputs
    assert copy.seconds > 0
    assert copy.peak_memory_bytes > 5_000_000
    assert copy.started <= copy.ended <= told.updated


def test_no_file_of_a_run_but_its_data_holds_the_token(run_dir: Path) -> None:
    told = [
        path for path in run_dir.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl", ".log", ".key")
    ]
    assert {path.name for path in told} >= {"manifest.json", "events.jsonl", "stage.json", "stage.log"}
    assert [path for path in told if TOKEN in path.read_text()] == []
    # The option really was that text.
    assert TOKEN in (run_dir / "copy/copied.txt").read_text()


def test_reading_what_is_no_manifest_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        manifest.read(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1, "stages": []')
    with pytest.raises(UsageError, match="not a manifest"):
        manifest.read(tmp_path)


def test_the_journal_keeps_every_event_but_progress_that_comes_too_fast(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for index in range(100):
            journal.add(Progress("a", index))
            journal.add(Log(f"line {index}"))
    kept = [decode(line) for line in (tmp_path / "events.jsonl").read_bytes().splitlines()]
    assert [event.message for event in kept if isinstance(event, Log)] == [f"line {i}" for i in range(100)]
    assert 1 <= sum(isinstance(event, Progress) for event in kept) < 10


def test_the_peak_counts_a_childs_child() -> None:
    grown = "import time\nx = bytearray(150_000_000)\nprint('ready', flush=True)\ntime.sleep(30)"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {grown!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, process_group=0)
    try:
        with PeakMemory(process.pid) as memory:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(1.2)
        assert 150_000_000 < memory.bytes < 400_000_000
    finally:
        os.killpg(process.pid, 9)
        process.communicate()
