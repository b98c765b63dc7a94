"""The parts of llama-server's memory, against what the real one says of itself."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import psutil
import pytest

from pillm.core.events import silent
from pillm.devices.here import features
from pillm.devices.memory import compute, kv_cache, memory
from pillm.devices.model import Model
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.server import serve
from pillm.llamacpp.tool import call
from pillm.plan.source import source

MIB = 2**20


def told(log: str, what: str) -> float:
    """Sum of the buffers of a kind that the server names, in MiB."""
    return sum(float(size) for size in re.findall(rf"{what} buffer size =\s+([\d.]+) MiB", log))


@pytest.fixture(scope="module")
def q4_0(tools: LlamaCpp, smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "smollm2-Q4_0.gguf"
    call(tools, "llama-quantize", ["--allow-requantize", str(smollm2_gguf), str(path), "Q4_0"])
    return path


def model_of(path: Path) -> Model:
    return source(str(path), silent).model


@pytest.mark.llamacpp
@pytest.mark.model
@pytest.mark.parametrize(
    ("context", "kv_type", "ubatch"), [(2048, "f16", 512), (4096, "q8_0", 128), (1000, "f16", 512), (512, "q4_0", 512)]
)
def test_peak_memory_and_its_parts_are_those_of_the_real_server(
    tools: LlamaCpp, q4_0: Path, context: int, kv_type: str, ubatch: int
):
    model = model_of(q4_0)
    found = memory(model, features(), context, kv_type=kv_type, ubatch=ubatch, threads=2)  # type: ignore[arg-type]
    before = {child.pid for child in psutil.Process().children()}
    extra = ["-lv", "4", "-ub", str(ubatch), "-fa", "on", "-ctk", kv_type, "-ctv", kv_type]
    with serve(tools, q4_0, context=context, threads=2, extra=extra) as server:
        (process,) = [child for child in psutil.Process().children() if child.pid not in before]
        answer = httpx.post(
            server.url.removesuffix("/v1") + "/completion",
            json={"prompt": list(range(1000, 1450)), "n_predict": 4},
            headers={"Authorization": f"Bearer {server.api_key}"},
            timeout=300,
        )
        answer.raise_for_status()
        status = Path(f"/proc/{process.pid}/status").read_text()
        log = server.log.read_text()
    # The server counts from the first to the last tensor that stays in the file; ours is all tensors.
    assert found.weight_bytes / MIB == pytest.approx(told(log, "CPU_Mapped model"), rel=0.01)
    assert found.repacked_bytes / MIB == pytest.approx(told(log, "CPU_REPACK model"), abs=0.1)
    assert found.kv_bytes / MIB == pytest.approx(told(log, "KV"), abs=0.1)
    assert found.compute_bytes / MIB == pytest.approx(told(log, "compute"), rel=0.1, abs=0.1)
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    assert found.peak_bytes == pytest.approx(int(peak) * 1024, rel=0.05)


@pytest.mark.model
def test_without_a_repacked_kernel_there_is_no_copy(q4_0: Path):
    model = model_of(q4_0)
    pi4, pi5 = memory(model, ["neon"], 2048), memory(model, ["neon", "dotprod", "fp16"], 2048)
    assert pi4.repacked_bytes == pi4.reclaimable_bytes == 0
    assert pi5.repacked_bytes > 0.5 * model.weight_bytes
    # The tied embedding is looked up by rows, so it stays as it is; the copies replace the file's pages.
    assert pi5.needed_bytes == pi4.needed_bytes
    assert pi5.peak_bytes == pi4.peak_bytes + pi5.repacked_bytes


def test_sliding_layers_keep_a_window_and_a_batch():
    from pillm.devices.architecture import from_config

    config = (
        '{"model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, '
        '"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512}'
    )
    shape = from_config(config, "config.json", "gemma").shape
    # What llama-server says of Gemma 3 270M with 4096 tokens: 12 MiB in 3 layers, 15 MiB in 15 sliding ones.
    cache, snapshots = kv_cache(shape, 4096, kv_type="f16", ubatch=512, slots=1)
    assert cache == 27 * MIB
    assert snapshots == 2 * 512 * 15 * 2 * 256 * 2
    assert kv_cache(shape, 32_768, kv_type="f16", ubatch=512, slots=1)[0] == (96 + 15) * MIB
    assert compute(shape, 4096, ubatch=512, slots=1) / MIB == pytest.approx(22.77, rel=0.02)


@pytest.mark.model
def test_the_cache_grows_with_slots_and_shrinks_with_its_type(smollm2_gguf: Path):
    shape = model_of(smollm2_gguf).shape
    plain = kv_cache(shape, 4096, kv_type="f16", ubatch=512, slots=1)[0]
    assert plain == 90 * MIB
    assert kv_cache(shape, 4096, kv_type="f16", ubatch=512, slots=3)[0] == 3 * plain
    assert kv_cache(shape, 4096, kv_type="q8_0", ubatch=512, slots=1)[0] == plain * 17 // 32
    assert kv_cache(shape, 4096, kv_type="q4_0", ubatch=512, slots=1)[0] == plain * 9 // 32
