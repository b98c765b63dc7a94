"""Time and memory of the history with many runs: python benchmarks/history_speed.py [--runs 20000]

The runs are made up (the form of pi_bench's documents, with 60 states of the board in each): what is measured is the
store and the page. Each step is a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BEGIN = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)


def made(number: int, chance: random.Random):
    from pillm.history.document import Board, Model, Run, Runtime, Speed, State

    def state(second: float) -> State:
        return State(at_s=second, temperature_c=50.0, clock_mhz=2400.0, load=1.0, free_bytes=10**9, throttled=0)

    decode = (20.0, 30.0, 7.0)[number % 3] * chance.gauss(1, 0.03)
    speeds = tuple(
        Speed(what=what, tokens=64, depth=0, threads=4, mean_tps=tps, stddev_tps=0.1, samples_tps=(tps, tps, tps))
        for what, tps in (("decode", decode), ("prefill", decode * 5))
    )
    return Run(
        id=f"{number:036d}",
        started=(BEGIN + datetime.timedelta(minutes=30 * number)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=60.0,
        tool="made up",
        valid=chance.random() > 0.03,
        board=Board(model=f"Board {number // 3 % 4}", ram_bytes=2**33, architecture="aarch64", kernel="6.12"),
        before=state(0.0),
        during=tuple(state(float(second)) for second in range(60)),
        runtime=Runtime(kind="llama.cpp", commit=f"{number // 2000:07d}"),
        model=Model(
            file=f"model-{number % 3}.Q4_0.gguf", parameters=10**8, weight_bytes=10**8 * (1 + number % 3),
            read_bytes=10**8 * (1 + number % 3),
        ),
        speeds=speeds,
    )  # fmt: skip


def step(name: str, count: int, folder: Path) -> None:
    from pillm.bench.history.options import HistoryOptions
    from pillm.bench.history.run import run as history
    from pillm.bench.trends.options import ReportOptions
    from pillm.bench.trends.run import run as report
    from pillm.core.events import silent
    from pillm.history import store
    from pillm.history.imports import import_file

    def runs() -> Iterator[tuple[object, None]]:
        chance = random.Random(1)
        for number in range(count):
            yield made(number, chance), None

    began = time.perf_counter()
    match name:
        case "add in one transaction":
            store.add_all(runs())  # type: ignore[arg-type]
        case "add 200 one by one":
            for number in range(count, count + 200):
                store.add(made(number, random.Random(number)))
        case "read every document":
            assert sum(1 for _ in store.runs()) == count + 200
        case "read every summary":
            assert sum(1 for _ in store.summaries()) == count + 200
        case "list with lines":
            history(HistoryOptions.model_validate({}), silent)
        case "export jsonl":
            history(HistoryOptions.model_validate({"export": "jsonl", "output": folder / "x.jsonl"}), silent)
        case "import it again":
            import_file(folder / "x.jsonl")
        case "page":
            report(ReportOptions.model_validate({"out": folder / "bench.html"}), silent)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(f"{name:<24} {seconds:7.2f} s  {peak:6.0f} MiB")


STEPS = (
    "add in one transaction", "add 200 one by one", "read every document", "read every summary", "list with lines",
    "export jsonl", "import it again", "page",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.step:
        step(options.step, options.runs, options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "PILLM_HISTORY": str(folder / "history.sqlite")}
        for each in STEPS:
            argv = [sys.executable, __file__, f"--runs={options.runs}", f"--step={each}", f"--folder={folder}"]
            subprocess.run(argv, check=True, env=environment)
        for path in ("history.sqlite", "x.jsonl", "bench.html"):
            print(f"{path:<24} {(folder / path).stat().st_size / 1e6:7.2f} MB")


if __name__ == "__main__":
    main()
