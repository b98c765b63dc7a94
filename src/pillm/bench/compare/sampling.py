"""What is measured: one sample is one fresh llama-bench process, and pairs of them in an order that a coin decides.

Why a process of its own for each sample: two processes of the same file differ by 3 to 5 % for as long as they live
(where their pages lie in memory), and so do a file and its copy that are mapped from the page cache. Repeating inside
of a process cannot see that; a comparison of two long-lived servers would call it a change. So each sample starts
anew and reads the file into memory of its own (no mmap), which draws that luck again for every sample. The figures
are in docs/bench-history.md.

Inside of a process the test is repeated and the fastest repetition is the sample: what disturbs a repetition only ever
adds time. The warm-up is left out, since the fastest of several is not the first.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

import msgspec
import psutil

from pillm.core.errors import PillmError
from pillm.core.host import cores
from pillm.llamacpp.bench import BenchTest
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.tool import call, telling_line


class Side(msgspec.Struct, frozen=True):
    """A model file and the llama.cpp that runs it."""

    label: str
    tools: LlamaCpp
    model: Path


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """One sample's work: tokens, threads, repetitions. A length of 0 leaves that test out."""

    prompt_tokens: int
    gen_tokens: int
    depth: int
    threads: int
    repetitions: int


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One process. Nanoseconds of each repetition; none where that test was left out."""

    prefill_ns: tuple[int, ...]
    decode_ns: tuple[int, ...]
    seconds: float
    """How long the process lived."""
    others: float
    """Cores that other programs kept busy meanwhile."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A sample of each side; `b_first` is what the coin said."""

    a: Sample
    b: Sample
    b_first: bool


def default_threads() -> int:
    """All cores but one: with every core in use, any other program stalls all threads at their next barrier."""
    return max(cores() - 1, 1)


def pair(a: Side, b: Side, lengths: Lengths, coin: random.Random) -> Pair:
    """One sample of each side. The coin says which comes first, independent of all other pairs.

    ABBA would balance drift better, but it would tie the signs of pairs together, on whose independence the detector's
    error rate rests; a drift within one pair is small.
    """
    b_first = coin.random() < 0.5
    if b_first:
        second = sample(b, lengths)
        first = sample(a, lengths)
    else:
        first = sample(a, lengths)
        second = sample(b, lengths)
    return Pair(a=first, b=second, b_first=b_first)


def sample(side: Side, lengths: Lengths) -> Sample:
    """One process of llama-bench. Raises PillmError with what the tool says, ResourceError (memory)."""
    arguments = [
        "--model", str(side.model), "--n-prompt", str(lengths.prompt_tokens), "--n-gen", str(lengths.gen_tokens),
        "--n-depth", str(lengths.depth), "--threads", str(lengths.threads),
        "--repetitions", str(lengths.repetitions), "--no-warmup", *_no_mmap(side.tools), "--output", "json",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="llama-bench-") as folder:
        results = Path(folder) / "results.json"
        busy, own, began = _busy_s(), _children_s(), time.monotonic()
        said = call(side.tools, "llama-bench", arguments, stdout=results)
        seconds = time.monotonic() - began
        others = max((_busy_s() - busy) - (_children_s() - own), 0.0) / seconds
        try:
            tests = msgspec.json.decode(results.read_bytes(), type=list[BenchTest])
        except msgspec.MsgspecError as error:
            raise PillmError(
                f"{side.tools.bin}: llama-bench gives no results that can be read: {error}; {telling_line(said)}",
                "use the llama.cpp that pillm builds, or one of about its age",
            ) from error
    return Sample(
        prefill_ns=next((test.samples_ns for test in tests if test.n_prompt), ()),
        decode_ns=next((test.samples_ns for test in tests if test.n_gen), ()),
        seconds=round(seconds, 3),
        others=round(others, 3),
    )


_flags: dict[Path, tuple[str, ...]] = {}


def _no_mmap(tools: LlamaCpp) -> tuple[str, ...]:
    """How this build is told to read the file instead of mapping it; builds differ."""
    program = tools.tool("llama-bench")
    if program not in _flags:
        text = call(tools, "llama-bench", ["--help"])
        _flags[program] = ("--load-mode", "none") if "--load-mode" in text else ("--mmap", "0")
    return _flags[program]


def others_now(seconds: float = 0.5) -> float:
    """Cores that other programs keep busy, seen over so many seconds."""
    busy, own = _busy_s(), _children_s()
    time.sleep(seconds)
    return max((_busy_s() - busy) - (_children_s() - own), 0.0) / seconds


def _busy_s() -> float:
    """Seconds that all cores together have worked since boot, for whomever."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _children_s() -> float:
    """Seconds that ended children of this process have worked, and itself."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
