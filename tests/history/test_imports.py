"""Measurements from elsewhere. llama-bench's output and the older bench.json are real files of real runs."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import msgspec
import pytest
from history_runs import made

from pillm.core.errors import FindingsError, PillmError, UsageError
from pillm.history import store
from pillm.history.imports import Imported, import_file

OLD = {
    "host": {
        "cpu": "Cortex-A76", "cores": 4, "memory_bytes": 8589934592, "os": "Linux 6.12", "architecture": "aarch64",
        "load_before": 0.1, "governor": "ondemand", "board": "Raspberry Pi 5 Model B Rev 1.0",
    },
    "model": {
        "file": "model-Q4_0.gguf", "bytes": 91726304, "sha256": "ab" * 32, "name": "SmolLM2", "architecture": "llama",
        "parameters": 134515008, "types": {"Q4_0": 210, "F32": 61},
        "numbers": {
            "weight_bytes": 90000000, "read_bytes": 90000000, "kv_bytes_per_token": 23040, "vocabulary": 49152,
            "width": 576,
        },
    },
    "speeds": [
        {"what": "prefill", "tokens": 256, "depth": 0, "threads": 4, "mean": 300.5, "stddev": 2.5, "repetitions": 3},
        {"what": "decode", "tokens": 64, "depth": 0, "threads": 4, "mean": 40.25, "stddev": 0.5, "repetitions": 3},
    ],
    "llamacpp": "0.3.36 (832db06)",
    "version": 1,
}  # fmt: skip


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


def written(path: Path, *values: object) -> Path:
    path.write_bytes(b"\n".join(msgspec.json.encode(value) for value in values))
    return path


def test_a_document_is_kept_once(tmp_path, history):
    path = written(tmp_path / "bench.json", made(1))
    assert import_file(path, history) == Imported(1, 1)
    assert import_file(path, history) == Imported(1, 0)
    assert list(store.runs(path=history)) == [made(1)]


def test_a_document_on_many_lines_is_one_document(tmp_path, history):
    path = tmp_path / "bench.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(made(1)), indent=2))
    assert import_file(path, history) == Imported(1, 1)


def test_a_list_and_lines_of_documents(tmp_path, history):
    assert import_file(written(tmp_path / "list.json", [made(1), made(2)]), history) == Imported(2, 2)
    assert import_file(written(tmp_path / "lines.jsonl", made(2), made(3)), history) == Imported(2, 1)


def test_another_history_is_merged(tmp_path, history):
    other = tmp_path / "pi.sqlite"
    for number in range(5):
        store.add(made(number), other)
    store.add(made(4), history)
    assert import_file(other, history) == Imported(5, 4)
    assert list(store.documents(path=history)) == list(store.documents(path=other))


def test_a_damaged_history_gives_what_can_be_read(tmp_path, history):
    damaged = tmp_path / "damaged.sqlite"
    for number in range(200):
        store.add(made(number), damaged)
    data = bytearray(damaged.read_bytes())
    place = len(data) // 3 // 4096 * 4096
    data[place : place + 4096] = os.urandom(4096)
    damaged.write_bytes(data)
    try:
        kept = import_file(damaged, history).new
    except FindingsError:
        kept = sum(1 for _ in store.runs(path=history))
    assert 190 <= kept < 201
    assert damaged.read_bytes() == bytes(data)


def test_a_damaged_first_page_is_told(tmp_path, history):
    damaged = tmp_path / "damaged.sqlite"
    store.add(made(1), damaged)
    data = bytearray(damaged.read_bytes())
    data[100:4096] = os.urandom(3996)
    damaged.write_bytes(data)
    with pytest.raises(PillmError, match=r"damaged\.sqlite: (this history is damaged|nothing of this damaged history)"):
        import_file(damaged, history)


def test_the_older_bench_json(tmp_path, history):
    path = written(tmp_path / "bench.json", OLD)
    os.utime(path, (1760000000, 1760000000))
    assert import_file(path, history) == Imported(1, 1)
    os.utime(path, (1770000000, 1770000000))
    assert import_file(path, history) == Imported(1, 0)
    (run,) = store.runs(path=history)
    assert run.started == "2025-10-09T08:53:20Z"
    assert (run.board.model, run.board.governor, run.runtime.commit) == (
        "Raspberry Pi 5 Model B Rev 1.0",
        "ondemand",
        "832db06",
    )
    assert [(speed.what, speed.mean_tps, speed.threads) for speed in run.speeds] == [
        ("prefill", 300.5, 4),
        ("decode", 40.25, 4),
    ]
    assert run.model.read_bytes == 90000000
    assert "before.throttled" in run.absent
    (row,) = store.summaries(path=history)
    assert (row.quant, row.decode_tps) == ("Q4_0", 40.25)


@pytest.mark.llamacpp
@pytest.mark.model
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_what_llama_bench_writes_is_one_run(tools, smollm2_gguf, tmp_path, history, form):
    argv = [tools.tool("llama-bench"), "-m", smollm2_gguf, "-p", "8", "-n", "2", "-r", "1", "-t", "1,2", "-o", form]
    path = tmp_path / f"out.{form}"
    path.write_bytes(subprocess.run(argv, capture_output=True, check=True, timeout=300).stdout)
    assert import_file(path, history) == Imported(1, 1)
    assert import_file(path, history) == Imported(1, 0)
    (run,) = store.runs(path=history)
    assert {(speed.what, speed.tokens, speed.threads) for speed in run.speeds} == {
        (what, tokens, threads) for what, tokens in (("prefill", 8), ("decode", 2)) for threads in (1, 2)
    }
    assert run.model.parameters == 134515008
    assert run.runtime.build is not None
    assert all(speed.mean_tps > 0 and len(speed.samples_tps) == 1 for speed in run.speeds)


def test_bad_lines_are_listed_and_the_others_are_added(tmp_path, history):
    path = written(
        tmp_path / "lines.jsonl", made(1), {"id": "x"}, made(2), {**msgspec.to_builtins(made(3)), "started": "noon"}
    )
    path.write_bytes(path.read_bytes() + b'\n{"version": 1, "id": "cut')
    with pytest.raises(FindingsError, match=r"3 of 5 could not be read; 2 new") as raised:
        import_file(path, history)
    assert [finding.line for finding in raised.value.findings] == [2, 4, 5]
    assert {run.id for run in store.runs(path=history)} == {made(1).id, made(2).id}


def test_a_document_of_a_later_version_is_refused(tmp_path, history):
    path = written(tmp_path / "bench.json", {**msgspec.to_builtins(made(1)), "version": 2})
    with pytest.raises(FindingsError, match="1 of 1") as raised:
        import_file(path, history)
    assert "version 2" in raised.value.findings[0].message


@pytest.mark.parametrize("content", [b"", b"[]", b"\n\n"])
def test_a_file_without_runs_is_told(tmp_path, history, content):
    path = tmp_path / "empty.json"
    path.write_bytes(content)
    with pytest.raises((UsageError, FindingsError)):
        import_file(path, history)


@pytest.mark.parametrize(
    "content", [b"PNG\x00\xff", b'{"a": [1, 2', b"[" * 100_000, b'"text"', b"[1, 2]", b"\xff\xfe{"]
)
def test_what_is_no_measurement_is_told_with_its_place(tmp_path, history, content):
    path = tmp_path / "what.json"
    path.write_bytes(content)
    with pytest.raises(FindingsError) as raised:
        import_file(path, history)
    assert raised.value.findings[0].file == str(path)
    assert list(store.runs(path=history)) == []


def test_a_file_that_is_not_there_is_told(tmp_path, history):
    with pytest.raises(UsageError, match="cannot be read"):
        import_file(tmp_path / "none.json", history)
    with pytest.raises(UsageError, match="cannot be read"):
        import_file(tmp_path, history)


def test_a_database_of_another_program_is_refused(tmp_path, history):
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(UsageError, match="another program"):
        import_file(other, history)


def test_a_test_of_prefill_and_decode_together_is_named(tmp_path, history):
    test = {
        "build_commit": "abc", "build_number": 1, "cpu_info": "Cortex-A76", "model_filename": "m.gguf",
        "model_type": "llama 1B Q4_0", "model_size": 10, "model_n_params": 10, "n_threads": 4, "n_prompt": 8, "n_gen": 8,
        "n_depth": 0, "test_time": "2025-01-01T00:00:00Z", "avg_ts": 5.0, "stddev_ts": 0.1,
    }  # fmt: skip
    path = tmp_path / "out.json"
    path.write_text(json.dumps([test, {**test, "n_gen": 0}]))
    with pytest.raises(FindingsError, match="1 of 2") as raised:
        import_file(path, history)
    assert "neither prefill nor decode" in raised.value.findings[0].message
    (run,) = store.runs(path=history)
    assert [speed.what for speed in run.speeds] == ["prefill"]


def test_a_gpu_and_another_cache_are_series_of_their_own(tmp_path, history):
    test = {
        "build_commit": "abc", "build_number": 1, "cpu_info": "A CPU", "model_filename": "m-Q4_0.gguf", "backends": "CPU",
        "model_type": "llama 1B Q4_0", "model_size": 10, "model_n_params": 10, "n_threads": 4, "n_prompt": 0, "n_gen": 8,
        "n_depth": 0, "test_time": "2025-01-01T00:00:00Z", "avg_ts": 5.0, "stddev_ts": 0.1,
    }  # fmt: skip
    path = tmp_path / "out.json"
    path.write_text(json.dumps([test, {**test, "gpu_info": "A GPU", "backends": "CUDA"}, {**test, "type_k": "q8_0"}]))
    import_file(path, history)
    found = list(store.summaries(path=history))
    assert len({(row.board, row.quant) for row in found}) == 3
    assert {row.board for row in found} == {"A CPU", "A CPU with CUDA on A GPU"}
    assert sum("KV q8_0" in row.quant for row in found) == 1


def test_copies_of_one_history_can_be_imported_into_themselves(tmp_path, history):
    store.add(made(1), history)
    copy = shutil.copy(history, tmp_path / "copy.sqlite")
    assert import_file(Path(copy), history) == Imported(1, 0)
    assert import_file(history, history) == Imported(1, 0)
