"""llama-bench on the real SmolLM2 on this machine, kept short. The figures themselves are not judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from pillm import devices
from pillm.bench.host import cores
from pillm.bench.options import BenchOptions
from pillm.bench.report import load
from pillm.bench.run import numbers, run
from pillm.core.errors import UsageError
from pillm.core.events import Made, silent
from pillm.llamacpp.gguf_file import GgufFile, Tensor, describe


@pytest.mark.llamacpp
@pytest.mark.model
def test_prefill_and_decode_by_threads_and_depth_are_published_with_host_and_model(tools, smollm2_gguf, tmp_path):
    options = BenchOptions(
        model=smollm2_gguf, out=tmp_path, prompt_tokens=16, gen_tokens=4, repetitions=2, threads=(1, 2), depth=(0, 8)
    )
    events: list[object] = []
    result = run(options, events.append)
    report = load(result.outputs["report"])
    assert {(speed.what, speed.threads, speed.depth) for speed in report.speeds} == {
        (what, threads, depth) for what in ("prefill", "decode") for threads in (1, 2) for depth in (0, 8)
    }
    assert all(speed.mean > 0 and speed.stddev >= 0 and speed.repetitions == 2 for speed in report.speeds)
    assert {speed.tokens for speed in report.speeds if speed.what == "decode"} == {4}
    assert report.host.cores == cores()
    assert report.host.cpu
    assert report.model.bytes == smollm2_gguf.stat().st_size
    assert report.model.types["Q4_1"] == 210
    assert report.llamacpp == tools.version
    decode = [speed.mean for speed in report.speeds if speed.what == "decode" and speed.depth == 0]
    assert result.metrics["decode_tokens_per_second"] == max(decode)
    assert any(isinstance(event, Made) for event in events)


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_length_of_zero_skips_that_test(tools, smollm2_gguf, tmp_path):
    run(BenchOptions(model=smollm2_gguf, out=tmp_path, prompt_tokens=0, gen_tokens=2, repetitions=1), silent)
    report = load(tmp_path / "bench.json")
    assert [(speed.what, speed.threads) for speed in report.speeds] == [("decode", cores())]


def test_nothing_to_measure_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="nothing to measure"):
        run(BenchOptions(model=tmp_path / "x.gguf", out=tmp_path, prompt_tokens=0, gen_tokens=0), silent)


def test_a_file_that_is_not_gguf_is_a_usage_error(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK not a model")
    with pytest.raises(UsageError, match="not a GGUF file"):
        run(BenchOptions(model=path, out=tmp_path), silent)


@pytest.mark.model
def test_the_numbers_of_smollm2_are_what_llamacpp_reserves(smollm2_gguf):
    found = numbers(describe(smollm2_gguf))
    # llama.cpp prints: 4096 cells, 30 layers: 90.00 MiB of keys and values.
    assert found.kv_bytes_per_token * 4096 == 90 * 2**20
    # The embedding is the output head too: everything is read.
    assert found.read_bytes == found.weight_bytes == describe(smollm2_gguf).tensor_bytes
    assert devices.predict(devices.load("pi4-1gb"), found).fits


def made(names: dict[str, tuple[int, ...]], **metadata: int) -> GgufFile:
    tensors = tuple(Tensor(name, "F16", shape, 2 * shape[0] * shape[1], 0) for name, shape in names.items())
    values = {"general.architecture": "x", **{f"x.{key.replace('__', '.')}": value for key, value in metadata.items()}}
    return GgufFile(
        path=Path("x.gguf"),
        bytes=0,
        metadata=values,
        lengths={"tokenizer.ggml.tokens": 10},
        tensors=tensors,
        special={},
    )


def test_an_input_embedding_of_its_own_is_not_read():
    both = made({"token_embd.weight": (4, 10), "output.weight": (4, 10), "blk.0.attn_k.weight": (4, 2)})
    assert numbers(both).weight_bytes - numbers(both).read_bytes == 80
    assert numbers(both).kv_bytes_per_token == 4


def test_of_a_mixture_only_the_experts_in_use_are_read():
    mixture = made(
        {"blk.0.ffn_up_exps.weight": (4, 80), "output_norm.weight": (4, 1)}, expert_count=8, expert_used_count=2
    )
    assert numbers(mixture).read_bytes == 8 + 640 // 4


def test_fused_projections_fall_back_on_the_header():
    fused = made(
        {"blk.0.attn_qkv.weight": (64, 192)}, block_count=3, embedding_length=64, attention__head_count=8,
        attention__head_count_kv=2,
    )  # fmt: skip
    assert numbers(fused).kv_bytes_per_token == 3 * 2 * (8 + 8) * 2
