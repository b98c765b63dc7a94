"""`pillm bench compare --baseline`: get the new runs, judge them against the history, tell it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from pillm.bench.compare.baseline import NEW, AgainstHistory, against
from pillm.bench.compare.detector import Verdict
from pillm.bench.compare.options import CompareOptions
from pillm.core.errors import UsageError
from pillm.core.events import Emit, Output
from pillm.core.stage import MetricValue
from pillm.history import document, store
from pillm.history.document import Run


def by_history(options: CompareOptions, emit: Emit) -> tuple[Verdict, dict[str, MetricValue], AgainstHistory]:
    """Judge the runs of documents, or measure a model: once if that run is the same as before, else three times."""
    documents = [path for path in options.models if path.suffix == ".json"]
    if options.tools_b is not None or (len(documents) != len(options.models) and len(options.models) != 1):
        raise UsageError(
            "--baseline compares new runs of one model with its history", "give one GGUF file, or bench.json files"
        )
    new = [document.load(path) for path in documents] or [_measured(options, emit)]
    found = _against(new, options)
    while not documents and len(new) < NEW and found.tests and found.verdict != "same":
        new.append(_measured(options, emit))
        found = _against(new, options)
    for line in _lines(found):
        emit(Output(line))
    return found.verdict, {"new_runs": found.new, "earlier_runs": found.earlier}, found


def _against(new: list[Run], options: CompareOptions) -> AgainstHistory:
    return against(
        new,
        store.runs(),
        build=options.baseline_build,
        needed=options.baseline_runs,
        error=options.false_alarms / 100,
        least=1 + options.min_effect / 100,
    )


def _lines(found: AgainstHistory) -> Iterator[str]:
    earlier = (
        "1 earlier run of this series counts"
        if found.earlier == 1
        else f"{found.earlier} earlier runs of this series count"
    )
    yield f"{found.new} new run{'s' if found.new > 1 else ''}, {earlier} ({found.build})"
    for reason, runs in found.left_out.items():
        yield f"  left out: {runs} {reason}"
    for name, test in found.tests.items():
        low, high = (100 * (value - 1) for value in (test.low, test.high))
        yield (
            f"{test.verdict:<12} {name}: {test.before_tps:.2f} -> {test.tps:.2f} tokens/s, "
            f"{100 * (test.ratio - 1):+.1f} % time ({low:+.1f} to {high:+.1f} %), {test.spread:.1f} % from run to run"
        )
    for reason in found.reasons:
        yield f"cannot tell: {reason}"
    yield f"verdict  {found.verdict}"


def _measured(options: CompareOptions, emit: Emit) -> Run:
    """A run of the model as `pillm bench` measures its speed; it goes to the history as any."""
    from pillm.bench import run as bench
    from pillm.bench.options import BenchOptions

    with tempfile.TemporaryDirectory(prefix="pillm-compare-") as folder:
        wanted = {
            "model": options.models[0],
            "out": Path(folder),
            "measure": ("speed",),
            "depth": (options.depth,),
            "repetitions": max(options.repetitions, 3),
            "threads": (options.threads,) if options.threads else (),
        }
        # Lengths that were not given are those of `pillm bench`: a test is compared with the same test.
        for name in ("prompt_tokens", "gen_tokens"):
            if (length := getattr(options, name)) is not None:
                wanted[name] = length
        return document.load(bench.run(BenchOptions.model_validate(wanted), emit).outputs["report"])
