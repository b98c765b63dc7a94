"""`pillm bench` on the real SmolLM2 on this machine, kept short. The figures themselves are not judged."""

from __future__ import annotations

import json
import shutil

import pytest
from pi_bench_program import script

from pillm.bench.options import BenchOptions
from pillm.bench.run import run
from pillm.core.errors import GateError, MissingError, PillmError, ResourceError, UsageError
from pillm.core.events import Log, Made, Output, Progress, silent
from pillm.core.host import cores
from pillm.history import store
from pillm.history.document import best, load

SMALL = {"prompt_tokens": 16, "gen_tokens": 4, "repetitions": 1, "requests": 1, "context": 64}


def options(model, out, **more) -> BenchOptions:
    return BenchOptions.model_validate({"model": model, "out": out, **SMALL, **more})


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_run_is_published_told_and_kept_in_the_history(tools, smollm2_gguf, tmp_path, own_history):
    events: list[object] = []
    result = run(options(smollm2_gguf, tmp_path, threads=(1,), splits=("1/1",), depth=(0, 8)), events.append)
    told = load(result.outputs["report"])
    assert {(speed.what, speed.depth) for speed in told.speeds} == {
        (what, depth) for what in ("prefill", "decode") for depth in (0, 8)
    }
    assert (told.model.file, told.model.bytes) == (smollm2_gguf.name, smollm2_gguf.stat().st_size)
    assert told.runtime.path == str(tools.bin)
    decode = best(told, "decode")
    assert decode
    assert result.metrics["decode_tokens_per_second"] == decode.mean_tps
    assert result.metrics["first_token_ms"] == told.latency[0].first_token.p50_ms
    assert any(isinstance(event, Made) for event in events)
    labels = {event.label for event in events if isinstance(event, Progress)}
    assert {"llama-bench", "answers with 1/1 threads", "embeddings"} <= labels
    assert any(isinstance(event, Output) and event.line.startswith("decode") for event in events)
    assert [kept.id for kept in store.runs()] == [told.id]


@pytest.mark.llamacpp
@pytest.mark.model
def test_without_history_nothing_is_kept(tools, smollm2_gguf, tmp_path, own_history):
    run(options(smollm2_gguf, tmp_path, measure=("speed",), prompt_tokens=0, history=False), silent)
    report = load(tmp_path / "bench.json")
    # A length of 0 skips that test; the default is all cores.
    assert {speed.what for speed in report.speeds} == {"decode"}
    assert cores() in {speed.threads for speed in report.speeds}
    assert report.absent["memory"] == "not asked for"
    assert not own_history.exists()


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_history_that_fails_is_a_warning_and_costs_nothing(tools, smollm2_gguf, tmp_path, own_history):
    own_history.write_bytes(b"this is no database" * 100)
    events: list[object] = []
    run(options(smollm2_gguf, tmp_path / "out", measure=("speed",), threads=(1,)), events.append)
    assert load(tmp_path / "out" / "bench.json").speeds
    warnings = [event.message for event in events if isinstance(event, Log) and event.level == "warning"]
    assert any("was not added to the history" in message for message in warnings)


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_gate_fails_after_publishing(tools, smollm2_gguf, tmp_path, own_history):
    with pytest.raises(GateError, match=r"failed: min-tps 1e\+09 \(measured: [\d.]+\)"):
        run(options(smollm2_gguf, tmp_path, measure=("speed",), threads=(1,), min_tps=1e9), silent)
    assert load(tmp_path / "bench.json").gates[0].passed is False
    assert len(list(store.runs())) == 1


@pytest.mark.model
def test_tools_that_do_not_work_are_an_error_with_the_reason(smollm2_gguf, tmp_path, monkeypatch):
    """The tools are stand-ins that fail at once."""
    from pillm.bench import run as room
    from pillm.llamacpp.install import LlamaCpp

    for name in ("llama-bench", "llama-server"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'error: wrong processor' >&2\nexit 9\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(room, "ensure", lambda emit: LlamaCpp(tmp_path, tmp_path, "0.5.0"))
    with pytest.raises(PillmError, match=r"nothing could be measured: .*wrong processor"):
        run(options(smollm2_gguf, tmp_path / "out"), silent)
    told = json.loads((tmp_path / "out" / "bench.json").read_bytes())
    assert told["absent"]["speeds"] == "llama-bench ended with exit code 9: error: wrong processor"
    assert not list(store.runs())
    for name in ("llama-bench", "llama-server"):
        (tmp_path / name).unlink()
    with pytest.raises(MissingError, match="there is no llama-bench in this folder"):
        run(options(smollm2_gguf, tmp_path / "out"), silent)


@pytest.mark.model
def test_a_folder_that_cannot_be_written_to_is_said_before_any_work(smollm2_gguf, read_only_folder):
    events: list[object] = []
    with pytest.raises(ResourceError, match="cannot be written to"):
        run(options(smollm2_gguf, read_only_folder / "out"), events.append)
    assert events == []


@pytest.mark.llamacpp
@pytest.mark.model
def test_on_a_full_disk_the_run_is_in_the_history_all_the_same(tools, smollm2_gguf, small_disk, own_history):
    out = small_disk / "out"
    out.mkdir()
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(ResourceError, match="the disk is full") as caught:
        run(options(smollm2_gguf, out, measure=("speed",), threads=(1,)), silent)
    assert "it is in the history" in caught.value.hint
    assert len(list(store.runs())) == 1
    assert list(out.iterdir()) == []


def test_a_run_that_nothing_could_keep_is_printed(small_disk, tmp_path, monkeypatch, own_history):
    """llama-bench is a stand-in that is done at once."""
    from pillm.bench import run as room
    from pillm.bench.pi_bench import _sample_gguf
    from pillm.llamacpp.install import LlamaCpp

    line = '{"n_prompt": 16, "n_gen": 0, "n_threads": 1, "avg_ts": 5.5, "stddev_ts": 0.1, "samples_ts": [5.5]}'
    script(tmp_path / "llama-bench", f"#!/bin/sh\necho '{line}'\n")
    monkeypatch.setattr(room, "ensure", lambda emit: LlamaCpp(tmp_path, tmp_path, "0.5.0"))
    own_history.write_bytes(b"this is no database" * 100)
    model = tmp_path / "model.gguf"
    model.write_bytes(_sample_gguf())
    out = small_disk / "out"
    out.mkdir()
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    events: list[object] = []
    with pytest.raises(ResourceError, match="the disk is full") as caught:
        run(options(model, out, measure=("speed",), threads=(1,)), events.append)
    assert "its document is what was printed" in caught.value.hint
    (printed,) = [json.loads(event.line) for event in events if isinstance(event, Output)]
    assert printed["speeds"][0]["mean_tps"] == 5.5


def test_nothing_to_measure_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="nothing to measure"):
        run(options(tmp_path / "x.gguf", tmp_path, prompt_tokens=0, gen_tokens=0), silent)


def test_a_file_that_is_not_gguf_is_a_usage_error(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK not a model")
    with pytest.raises(UsageError, match="not a GGUF file"):
        run(options(path, tmp_path), silent)
