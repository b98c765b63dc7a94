"""`pillm bench`: measure a GGUF file here or on a board with `pi_bench.py`, publish it, keep it in the history."""

from __future__ import annotations

import json
import sys

import msgspec

from pillm.bench.options import BenchOptions
from pillm.bench.pi_bench import rows_of, table_of
from pillm.bench.program import PATH, arguments, document_of
from pillm.core.artifacts import artifact_of, clear_partials, write_atomic
from pillm.core.command import Command
from pillm.core.errors import GateError, PillmError, UsageError, writing
from pillm.core.events import Emit, Log, Made, Output
from pillm.core.follow import follow
from pillm.core.stage import MetricValue, Result
from pillm.history.document import Run, best
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import ensure


def run(options: BenchOptions, emit: Emit) -> Result:
    """Publish `bench.json` in `options.out` and add it to the history.

    Raises UsageError (nothing to measure, not a GGUF file), PillmError where nothing could be measured, GateError
    (after publishing) where a gate failed, and for a host what `bench.remote` raises.
    """
    if not options.prompt_tokens and not options.gen_tokens:
        raise UsageError("nothing to measure: both lengths are 0", "give --prompt-tokens or --gen-tokens")
    describe(options.model)
    with writing(options.out):
        # Before minutes of measuring, not after them.
        options.out.mkdir(parents=True, exist_ok=True)
        clear_partials(options.out)
    if options.host:
        from pillm.bench.remote import measure

        document, forget = measure(options, emit)
    else:
        forget = _nothing
        tools = ensure(emit)
        argv = (sys.executable, str(PATH), "--model", str(options.model), "--llama-bin", str(tools.bin))
        document = document_of(follow(Command((*argv, *arguments(options))), emit))
    try:
        told = msgspec.json.decode(document, type=Run)
    except msgspec.MsgspecError as error:
        emit(Output(document.decode("utf-8", "replace").rstrip()))
        forget()
        raise PillmError(
            f"pi_bench gave no document that can be read: {error}", "update pillm here and there"
        ) from error
    path = options.out / "bench.json"
    measured = rows_of(json.loads(document))
    # The history first: if the disk of `out` is full, the run is not lost.
    kept = options.history and bool(measured) and _keep(told, emit)
    try:
        with writing(options.out):
            write_atomic(path, document)
    except (PillmError, OSError) as error:
        if kept:
            forget()
            where = "it is in the history (pillm bench history)"
        else:
            emit(Output(document.decode("utf-8", "replace").rstrip()))
            where = "its document is what was printed"
            where += f", and the same command fetches it from {options.host}" if options.host else ""
        if isinstance(error, PillmError):
            error.hint += f"; the run itself is not lost: {where}"
        raise
    # A host's own copy goes last: until here it was the only one that is on a disk.
    forget()
    emit(Made("report", artifact_of(path)))
    for line in table_of(json.loads(document)).splitlines():
        emit(Output(line))
    if not measured:
        reasons = "; ".join(sorted({told.absent.get(name, "") for name in ("speeds", "latency", "embeddings")} - {""}))
        raise PillmError(f"nothing could be measured: {reasons}", f"the reasons are in {path}, under `absent`")
    for reason in told.invalid:
        emit(Log(f"these figures do not count: {reason}", "warning"))
    if failed := [gate for gate in told.gates if not gate.passed]:
        words = [
            f"{gate.name} {gate.limit:g} (measured: {'nothing' if gate.measured is None else f'{gate.measured:g}'})"
            for gate in failed
        ]
        raise GateError(f"failed: {', '.join(words)}", f"everything that was measured is in {path}")
    return Result({"report": path}, _metrics(told))


def _nothing() -> None:
    """What there is to delete elsewhere after a run on this machine."""


def _keep(told: Run, emit: Emit) -> bool:
    """Add the run to the history; whether it is there now. A history that fails is no reason to fail."""
    from pillm.history.store import add

    try:
        add(told)
    except (PillmError, OSError) as error:
        emit(
            Log(
                f"the run was not added to the history: {error}; `pillm bench history` can import bench.json", "warning"
            )
        )
        return False
    return True


def _metrics(told: Run) -> dict[str, MetricValue]:
    metrics: dict[str, MetricValue] = {"valid": told.valid}
    for what in ("prefill", "decode"):
        if speed := best(told, what):
            metrics |= {f"{what}_tokens_per_second": speed.mean_tps, f"{what}_stddev": speed.stddev_tps}
            metrics[f"{what}_threads"] = speed.threads
    if told.latency:
        quickest = min(told.latency, key=lambda row: row.first_token.p50_ms)
        metrics |= {"first_token_ms": quickest.first_token.p50_ms, "inter_token_ms": quickest.inter_token.p50_ms}
        metrics["split"] = f"{quickest.threads}/{quickest.threads_batch}"
    if told.memory and told.memory.peak_bytes:
        metrics["peak_memory_bytes"] = told.memory.peak_bytes
    return metrics
