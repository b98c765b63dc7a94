"""`pillm bench compare`: two models or builds in interleaved pairs, or one run against its history."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pillm.bench.compare.against_history import by_history
from pillm.bench.compare.detector import Judgement, Verdict
from pillm.bench.compare.options import CompareOptions
from pillm.bench.compare.pairing import Comparison, Design, compare
from pillm.bench.compare.sampling import Lengths, Side, default_threads
from pillm.core.errors import GateError, MissingError, UsageError
from pillm.core.events import Emit, Log, Output
from pillm.core.host import cores
from pillm.core.stage import MetricValue, Result
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp, ensure, tool_version

_BUSY_SHARE = 0.5


def run(options: CompareOptions, emit: Emit) -> Result:
    """Tell the verdict, and why. Nothing is written, but a run that `--baseline` measures goes to the history.

    Raises UsageError (what is given cannot be compared), GateError with `fail_on_worse`, PillmError where llama-bench
    fails, ResourceError.
    """
    verdict, metrics, told = by_history(options, emit) if options.baseline else _pairs(options, emit)
    if verdict == "worse" and options.fail_on_worse:
        raise GateError(
            "the verdict is worse", "the lines above say by how much; without --fail-on-worse this is no failure"
        )
    return Result({}, {"verdict": verdict, **metrics}, msgspec.to_builtins(told))


def _pairs(options: CompareOptions, emit: Emit) -> tuple[Verdict, dict[str, MetricValue], Comparison]:
    a, b = _sides(options, emit)
    threads = options.threads or default_threads()
    prompt = 64 if options.prompt_tokens is None else options.prompt_tokens
    gen = 16 if options.gen_tokens is None else options.gen_tokens
    if not prompt and not gen:
        raise UsageError("nothing to measure: both lengths are 0", "give --prompt-tokens or --gen-tokens")
    lengths = Lengths(
        prompt_tokens=prompt, gen_tokens=gen, depth=options.depth, threads=threads,
        repetitions=options.repetitions,
    )  # fmt: skip
    design = Design(
        lengths=lengths, pairs=options.pairs, error=options.false_alarms / 100, least=1 + options.min_effect / 100,
        seed=options.seed, wait_s=options.wait,
    )  # fmt: skip
    if math.isinf(_widest(design)):
        emit(
            Log(
                f"{options.pairs} pairs cannot show any change with {options.false_alarms:g} % false alarms: "
                "give --pairs 10 or more",
                "warning",
            )
        )
    found = compare(a, b, design, emit)
    for line in _lines(a, b, found, design):
        emit(Output(line))
    metrics: dict[str, MetricValue] = {"pairs": len(found.pairs)}
    for name, judged in found.measures.items():
        metrics |= {f"{name}_verdict": judged.verdict, f"{name}_time_ratio": round(judged.ratio, 4)}
    return found.verdict, metrics, found


def _widest(design: Design) -> float:
    from pillm.bench.compare.detector import interval, walsh

    last = design.looks[-1]
    return interval(walsh([0.0] * last.pairs), last.pairs, last.alarm_tail)[1]


def _sides(options: CompareOptions, emit: Emit) -> tuple[Side, Side]:
    count = len(options.models)
    if count > 2:
        raise UsageError("these are more than two models", "give A and B")
    if count == 1 and options.tools_b is None:
        raise UsageError(
            "there is nothing to compare with",
            "give two GGUF files, or --tools-b with another llama.cpp, or --baseline to compare with the history",
        )
    for model in options.models:
        describe(model)
    tools = ensure(emit)
    other = tools_in(options.tools_b) if options.tools_b else tools
    first, second = options.models[0], options.models[-1]
    if options.tools_b is None and first.resolve() == second.resolve():
        emit(Log("A and B are the same file: this shows what the machine's noise does", "warning"))
    return Side("A", tools, first), Side("B", other, second)


def tools_in(folder: Path) -> LlamaCpp:
    """The llama-bench of another build. Raises MissingError."""
    places = (folder, folder / "bin", folder / "build" / "bin")
    where = next((place.resolve() for place in places if (place / "llama-bench").is_file()), None)
    if where is None:
        raise MissingError(
            f"{folder}: there is no llama-bench in this folder, bin/ or build/bin/", "give the folder of another build"
        )
    try:
        version = tool_version(where / "llama-bench")[1]
    except MissingError:
        # Builds from before llama-bench had --version; whether it starts shows when it measures.
        version = "of an unknown version"
    return LlamaCpp(where, where, version)


def _lines(a: Side, b: Side, found: Comparison, design: Design) -> Iterator[str]:
    yield f"A  {a.model}  (llama.cpp {a.tools.version})"
    yield f"B  {b.model}  (llama.cpp {b.tools.version})"
    for name, judged in found.measures.items():
        length = design.lengths.gen_tokens if name == "decode" else design.lengths.prompt_tokens
        yield f"{name:<8} {judged.verdict:<12} {_change(judged)}"
        yield (
            f"         {length} tokens, {_tps(found, name, length, 'a')} -> {_tps(found, name, length, 'b')} tokens/s, "
            f"noise of a pair {judged.noise:.1f} %, {judged.pairs} pairs"
        )
        if judged.needed and judged.needed > judged.pairs:
            yield f"         at this noise a change of {100 * (design.least - 1):g} % needs about --pairs {judged.needed}"
    yield (
        f"verdict  {found.verdict} (a change of {100 * (design.least - 1):g} % or more matters; chance of a false "
        f"better or worse at most {100 * design.error:g} %)"
    )
    if found.disturbed > _BUSY_SHARE * len(found.pairs):
        yield (
            f"this machine is busy: other programs kept {found.others:.1f} of {cores()} cores at work; "
            "end them, or give more --pairs or a longer --wait"
        )
    elif found.retaken:
        yield f"{found.retaken} pairs were disturbed by other programs and measured again"


def _change(judged: Judgement) -> str:
    if math.isinf(judged.high):
        return f"B takes {100 * (judged.ratio - 1):+.1f} % time (too few pairs for an interval)"
    low, high = (100 * (value - 1) for value in (judged.low, judged.high))
    return f"B takes {100 * (judged.ratio - 1):+.1f} % time ({low:+.1f} to {high:+.1f} %)"


def _tps(found: Comparison, name: str, tokens: int, side: str) -> str:
    import statistics

    samples = [getattr(pair, side) for pair in found.pairs]
    times = [min(each.decode_ns if name == "decode" else each.prefill_ns) for each in samples]
    return f"{tokens / statistics.median(times) * 1e9:.1f}"
