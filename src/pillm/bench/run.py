"""`pillm bench`: prefill and decode speed of a GGUF file on this machine, by llama-bench."""

from __future__ import annotations

from collections import Counter

import msgspec

from pillm.bench.host import host
from pillm.bench.options import BenchOptions
from pillm.bench.report import Bench, Model, Speed, best
from pillm.core.artifacts import artifact_of, clear_partials, sha256_file, write_atomic
from pillm.core.errors import UsageError, writing
from pillm.core.events import Emit, Log, Made
from pillm.core.host import cores
from pillm.core.stage import MetricValue, Result
from pillm.devices import ModelNumbers, kv_bytes_per_token
from pillm.llamacpp.bench import BenchTest, bench
from pillm.llamacpp.gguf_file import GgufFile, describe
from pillm.llamacpp.install import ensure


def run(options: BenchOptions, emit: Emit) -> Result:
    """Publish `bench.json` in `options.out`.

    Raises UsageError (nothing to measure, not a GGUF file), PillmError where llama-bench fails.
    """
    if not options.prompt_tokens and not options.gen_tokens:
        raise UsageError("nothing to measure: both lengths are 0", "give --prompt-tokens or --gen-tokens")
    described = describe(options.model)
    tools = ensure(emit)
    machine = host()
    if machine.load_before > machine.cores / 2:
        emit(Log(f"this machine is busy (load {machine.load_before}): the figures will be too low", "warning"))
    tests = bench(
        tools,
        options.model,
        prompt_tokens=options.prompt_tokens,
        gen_tokens=options.gen_tokens,
        repetitions=options.repetitions,
        threads=options.threads or (cores(),),
        depths=options.depth,
        emit=emit,
    )
    report = Bench(machine, _model(described), tuple(map(_speed, tests)), tools.version)
    path = options.out / "bench.json"
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        clear_partials(options.out)
        write_atomic(path, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    emit(Made("report", artifact_of(path)))
    return Result({"report": path}, _metrics(report))


def _model(file: GgufFile) -> Model:
    return Model(
        file=file.path.name,
        bytes=file.bytes,
        sha256=sha256_file(file.path),
        name=file.name,
        architecture=file.architecture,
        parameters=file.parameters,
        types=dict(Counter(tensor.type for tensor in file.tensors).most_common()),
        numbers=numbers(file),
    )


def numbers(file: GgufFile) -> ModelNumbers:
    """What of a GGUF file decides memory and speed on a board.

    A token reads all tensors but an input embedding that is not the output head too, and of a
    mixture's experts those that are used. The cache is as wide as the key and value projections.
    """
    sizes = {tensor.name: tensor.bytes for tensor in file.tensors}
    unread = sizes.get("token_embd.weight", 0) if "output.weight" in sizes else 0
    experts, used = _number(file, "expert_count"), _number(file, "expert_used_count")
    if experts:
        unread += sum(size for name, size in sizes.items() if "_exps." in name) * (experts - used) // experts
    layers, width, heads = (_number(file, key) for key in ("block_count", "embedding_length", "attention.head_count"))
    # Keys and values of every layer, in f16. Counted by their tensors, since layers may differ.
    wide = sum(tensor.shape[1] for tensor in file.tensors if tensor.name.endswith((".attn_k.weight", ".attn_v.weight")))
    head = width // heads if heads else 0
    fused = kv_bytes_per_token(
        layers,
        _number(file, "attention.head_count_kv") or heads,
        _number(file, "attention.key_length") or head,
        _number(file, "attention.value_length") or head,
    )
    return ModelNumbers(
        weight_bytes=file.tensor_bytes,
        read_bytes=file.tensor_bytes - unread,
        kv_bytes_per_token=2 * wide or fused,
        vocabulary=file.vocabulary,
        width=width,
    )


def _number(file: GgufFile, key: str) -> int:
    return int(file.metadata.get(f"{file.architecture}.{key}", 0))


def _speed(test: BenchTest) -> Speed:
    return Speed(
        what="prefill" if test.n_prompt else "decode",
        tokens=test.n_prompt or test.n_gen,
        depth=test.n_depth,
        threads=test.n_threads,
        mean=round(test.avg_ts, 3),
        stddev=round(test.stddev_ts, 3),
        repetitions=len(test.samples_ts),
    )


def _metrics(report: Bench) -> dict[str, MetricValue]:
    metrics: dict[str, MetricValue] = {}
    for what in ("prefill", "decode"):
        if speed := best(report, what):
            metrics |= {f"{what}_tokens_per_second": speed.mean, f"{what}_stddev": speed.stddev}
            metrics[f"{what}_threads"] = speed.threads
    return metrics
