"""`pi_bench.py` as a program with the real llama.cpp and the real SmolLM2, kept short. No figure itself is judged."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from pi_bench_program import SHORT, document

from pillm.bench.program import PATH
from pillm.core.host import cores
from pillm.history.document import Run

pytestmark = [pytest.mark.llamacpp, pytest.mark.model]


@pytest.fixture(scope="module")
def files(tools, smollm2_gguf, tmp_path_factory) -> Path:
    """The folder of one whole run."""
    folder = tmp_path_factory.mktemp("run")
    argv = [sys.executable, str(PATH), "--model", str(smollm2_gguf), "--llama-bin", str(tools.bin), *SHORT, "--depth=0,32",
            f"--out={folder / 'run.json'}", f"--csv={folder / 'run.csv'}", "--min-tps=0", "--max-rss=8GB"]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    (folder / "table.txt").write_text(done.stdout)
    (folder / "progress.txt").write_text(done.stderr)
    return folder


@pytest.fixture(scope="module")
def run(files) -> Run:
    return msgspec.json.decode((files / "run.json").read_bytes(), type=Run)


def test_speeds_are_measured_by_depth(run):
    assert {(speed.what, speed.tokens, speed.depth, speed.threads) for speed in run.speeds} == {
        ("prefill", 16, 0, 1), ("prefill", 16, 32, 1), ("decode", 4, 0, 1), ("decode", 4, 32, 1),
    }  # fmt: skip
    assert all(speed.mean_tps > 0 and len(speed.samples_tps) == 1 for speed in run.speeds)


def test_a_client_s_view_is_measured_on_a_streamed_answer(run):
    (row,) = run.latency
    assert (row.threads, row.threads_batch, row.prompt_tokens, row.answer_tokens) == (1, 1, 16, 4)
    assert (row.first_token.count, row.inter_token.count) == (1, 3)
    assert 0 < row.inter_token.p50_ms <= row.inter_token.p95_ms <= row.inter_token.p99_ms
    # The client waits at least as long as the server reckons for the prompt.
    assert row.prefill_tps
    assert row.first_token.p50_ms > row.prompt_tokens / row.prefill_tps * 1000


def test_load_memory_and_embeddings_are_measured(run, smollm2_gguf):
    assert run.load
    assert run.load.warm_s
    assert run.load.cold_s or "page cache" in run.absent["load.cold_s"]
    assert run.memory
    assert run.memory.peak_bytes
    # The weights are mapped, so they count, and the keys and values of 64 tokens with them.
    assert run.memory.peak_bytes > smollm2_gguf.stat().st_size
    assert run.memory.context == 64
    assert run.embeddings
    assert run.embeddings.per_second > 0


def test_the_board_and_the_tools_are_told(run, tools):
    assert run.board.cores == cores()
    assert run.board.ram_bytes == psutil.virtual_memory().total
    assert run.before.load is not None
    assert run.after
    assert run.after.at_s > run.before.at_s
    assert run.runtime.version
    assert run.runtime.commit
    assert run.runtime.commit in tools.version
    # pillm's own build for this machine has its CPU backend built in.
    assert run.runtime.cpu_variant is None
    assert "built in" in run.absent["runtime.cpu_variant"]


def test_every_null_of_the_document_has_its_reason(files):
    told = json.loads((files / "run.json").read_bytes())

    def nulls(value: Any, path: str) -> list[str]:
        if isinstance(value, dict):
            return [found for name, item in value.items() for found in nulls(item, f"{path}.{name}" if path else name)]
        return [path] if value is None else []

    # `emulated` is null where nothing was found; `during` is a list of states like `before`.
    missing = set(nulls(told, "")) - {"emulated"}
    assert missing <= set(told["absent"])
    for state in told["during"]:
        assert {f"during.{name}" for name, value in state.items() if value is None} <= set(told["absent"])


def test_csv_has_one_row_a_measurement(files, run):
    rows = list(csv.DictReader((files / "run.csv").read_text().splitlines()))
    assert {row["id"] for row in rows} == {run.id}
    assert [row["what"] for row in rows].count("decode") == 2
    assert {"first_token_p50", "inter_token_p99", "load_warm", "peak_memory", "embeddings"} <= {
        row["what"] for row in rows
    }
    found = next(row for row in rows if row["what"] == "peak_memory")
    assert run.memory
    assert (int(found["value"]), found["unit"]) == (run.memory.peak_bytes, "bytes")


def test_the_table_is_for_people_and_progress_is_on_stderr(files):
    table = (files / "table.txt").read_text()
    assert "SmolLM2-135M-Instruct.Q4_1.gguf" in table
    assert "gate min-tps 0: " in table
    assert "tokens/s" in table
    assert "llama-bench" in (files / "progress.txt").read_text()


def test_a_gate_fails_the_program_and_not_the_document(pi_bench, tools, smollm2_gguf):
    done = pi_bench("--model", smollm2_gguf, "--llama-bin", tools.bin, *SHORT, "--measure=speed", "--json",
                    "--min-tps=1e9", "--max-ttft-ms=1000")  # fmt: skip
    told = document(done)
    assert done.returncode == 1
    assert [(gate["name"], gate["passed"]) for gate in told["gates"]] == [("min-tps", False), ("max-ttft-ms", None)]
    assert told["absent"]["latency"] == told["absent"]["embeddings"] == "not asked for"
    assert len(told["speeds"]) == 2


def test_a_dry_run_names_the_commands_and_runs_nothing(pi_bench, tools, smollm2_gguf):
    done = pi_bench("--model", smollm2_gguf, "--llama-bin", tools.bin, "--dry-run", "--splits=1/2,2/2")
    assert done.returncode == 0
    assert done.stdout.count("llama-server --model") == 2
    assert "--threads 1 --threads-batch 2" in done.stdout
    assert "a guess" in done.stdout.splitlines()[-1]


def test_another_file_than_the_one_wanted_is_refused(pi_bench, tools, smollm2_gguf):
    done = pi_bench("--model", smollm2_gguf, "--llama-bin", tools.bin, "--sha256", "0" * 64, "--wait")
    assert done.returncode == 2
    assert "another file" in done.stderr


def test_a_throttled_board_makes_the_run_invalid(pi_bench, tools, smollm2_gguf, tmp_path):
    """`vcgencmd` is a stand-in: calm when first asked, under-voltage and throttled from then on."""
    script = tmp_path / "vcgencmd"
    script.write_text(
        '#!/bin/sh\n[ "$1" = get_throttled ] || exit 1\n'
        f"if [ -e {tmp_path}/asked ]; then echo throttled=0x50005; else touch {tmp_path}/asked; echo throttled=0x0; fi\n"
    )
    script.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = pi_bench("--model", smollm2_gguf, "--llama-bin", tools.bin, *SHORT, "--measure=speed", "--json", env=env)
    told = document(done)
    assert done.returncode == 0
    assert told["valid"] is False
    assert {"under-voltage now (seen during the run)", "throttled now (seen during the run)"} <= set(told["invalid"])
    assert "throttling has occurred" in told["throttling"]
    assert (told["before"]["throttled"], told["after"]["throttled"]) == (0, 0x50005)
    assert told["before"]["power_w"] is None
    assert "pmic_read_adc" in told["absent"]["before.power_w"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_program_behind(number, tools, smollm2_gguf, tmp_path):
    argv = [sys.executable, str(PATH), "--model", str(smollm2_gguf), "--llama-bin", str(tools.bin), *SHORT,
            "--gen-tokens=100000", "--measure=speed", f"--out={tmp_path / 'run.json'}"]  # fmt: skip
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        children = until(lambda: psutil.Process(process.pid).children(recursive=True), 300)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children), 30)
    assert process.returncode == (130 if number != signal.SIGKILL else -9)
    assert out == ""
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def until(found: Any, seconds: float) -> Any:
    """The first true answer. Fails when the time is up."""
    end = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return answer
