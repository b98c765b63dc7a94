"""`pillm bench compare`: two models or builds in interleaved pairs, or one run against its history."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pillm.bench.compare.baseline import AgainstHistory, against
from pillm.bench.compare.detector import Judgement, Verdict
from pillm.bench.compare.options import CompareOptions
from pillm.bench.compare.pairing import Comparison, Design, compare
from pillm.bench.compare.sampling import Lengths, Side, default_threads
from pillm.core.errors import GateError, MissingError, UsageError
from pillm.core.events import Emit, Log, Output
from pillm.core.host import cores
from pillm.core.stage import MetricValue, Result
from pillm.history import document, store
from pillm.history.document import Run
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp, ensure, tool_version

_BUSY_SHARE = 0.5


def run(options: CompareOptions, emit: Emit) -> Result:
    """Tell the verdict, and why. Nothing is written, but a run that `--baseline` measures goes to the history.

    Raises UsageError (what is given cannot be compared), GateError with `fail_on_worse`, PillmError where llama-bench
    fails, ResourceError.
    """
    verdict, metrics, told = _baseline(options, emit) if options.baseline else _pairs(options, emit)
    if verdict == "worse" and options.fail_on_worse:
        raise GateError(
            "the verdict is worse", "the lines above say by how much; without --fail-on-worse this is no failure"
        )
    return Result({}, {"verdict": verdict, **metrics}, msgspec.to_builtins(told))


def _pairs(options: CompareOptions, emit: Emit) -> tuple[Verdict, dict[str, MetricValue], Comparison]:
    a, b = _sides(options, emit)
    threads = options.threads or default_threads()
    if not options.prompt_tokens and not options.gen_tokens:
        raise UsageError("nothing to measure: both lengths are 0", "give --prompt-tokens or --gen-tokens")
    lengths = Lengths(
        prompt_tokens=options.prompt_tokens, gen_tokens=options.gen_tokens, depth=options.depth, threads=threads,
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
    if len(options.models) == 1 and options.tools_b is None:
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


def _baseline(options: CompareOptions, emit: Emit) -> tuple[Verdict, dict[str, MetricValue], AgainstHistory]:
    if len(options.models) != 1 or options.tools_b is not None:
        raise UsageError("--baseline compares one run with its history", "give one GGUF file or one bench.json")
    new = _new_run(options, emit)
    found = against(
        new,
        store.runs(),
        build=options.baseline_build,
        needed=options.baseline_runs,
        error=options.false_alarms / 100,
        least=1 + options.min_effect / 100,
    )
    count = (
        "1 earlier run of this series counts"
        if found.earlier == 1
        else f"{found.earlier} earlier runs of this series count"
    )
    emit(Output(f"{count} ({found.build})"))
    for reason, runs in found.left_out.items():
        emit(Output(f"  left out: {runs} {reason}"))
    for name, test in found.tests.items():
        low, high = (100 * (value - 1) for value in (test.low, test.high))
        emit(
            Output(
                f"{test.verdict:<12} {name}: {test.before_tps:.2f} -> {test.tps:.2f} tokens/s, "
                f"{100 * (test.ratio - 1):+.1f} % time ({low:+.1f} to {high:+.1f} %), {test.spread:.1f} % from run to run"
            )
        )
    for reason in found.reasons:
        emit(Output(f"cannot tell: {reason}"))
    emit(Output(f"verdict  {found.verdict}"))
    return found.verdict, {"earlier_runs": found.earlier}, found


def _new_run(options: CompareOptions, emit: Emit) -> Run:
    """The run to judge: a document as it is, a model as `pillm bench` measures its speed."""
    given = options.models[0]
    if given.suffix == ".json":
        return document.load(given)
    from pillm.bench import run as bench
    from pillm.bench.options import BenchOptions

    with tempfile.TemporaryDirectory(prefix="pillm-compare-") as folder:
        wanted = {
            "model": given,
            "out": Path(folder),
            "measure": ("speed",),
            "prompt_tokens": options.prompt_tokens,
            "gen_tokens": options.gen_tokens,
            "depth": (options.depth,),
            "repetitions": max(options.repetitions, 3),
            "threads": (options.threads,) if options.threads else (),
        }
        return document.load(bench.run(BenchOptions.model_validate(wanted), emit).outputs["report"])
