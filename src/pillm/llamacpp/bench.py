"""llama-bench: tokens a second, as typed records."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pillm.core.errors import PillmError
from pillm.core.events import Emit, Progress, silent
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.tool import call, telling_line

_STEP = re.compile(r"benchmark (\d+)/(\d+): \S+ run (\d+)/(\d+)")


class BenchTest(msgspec.Struct, frozen=True):
    """One test as llama-bench reports it: prefill of `n_prompt` or decoding of `n_gen` tokens at `n_depth`.

    `avg_ts` and `stddev_ts` are tokens/s over the repetitions in `samples_ts`; `model_size` is in bytes.
    """

    n_prompt: int
    n_gen: int
    n_depth: int
    n_threads: int
    avg_ts: float
    stddev_ts: float
    samples_ts: tuple[float, ...]
    samples_ns: tuple[int, ...]
    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_batch: int
    n_ubatch: int
    type_k: str
    type_v: str
    build_commit: str
    build_number: int
    cpu_info: str
    gpu_info: str
    backends: str
    test_time: str


def bench(
    tools: LlamaCpp,
    model: Path,
    *,
    prompt_tokens: int,
    gen_tokens: int,
    repetitions: int,
    threads: Sequence[int] = (),
    depths: Sequence[int] = (0,),
    emit: Emit = silent,
) -> list[BenchTest]:
    """Run every combination of prefill and decode (0 tokens skips either), threads and depths.

    Raises UsageError (not a whole GGUF file), PillmError with what the tool says, ResourceError (memory).
    """
    describe(model)  # llama-bench does not say what is wrong with a file

    def told(piece: str) -> None:
        if found := _STEP.findall(piece):
            test, tests, run, runs = (int(number) for number in found[-1])
            emit(Progress(f"bench {model.name}", (test - 1) * runs + run, tests * runs, "runs"))

    arguments = [
        "--model", str(model), "--n-prompt", str(prompt_tokens), "--n-gen", str(gen_tokens),
        "--n-depth", ",".join(map(str, depths)), "--repetitions", str(repetitions), "--output", "json", "--progress",
    ]  # fmt: skip
    if threads:
        arguments += ["--threads", ",".join(map(str, threads))]
    with tempfile.TemporaryDirectory(prefix="llama-bench-") as folder:
        results = Path(folder) / "results.json"
        said = call(tools, "llama-bench", arguments, on_output=told, stdout=results)
        try:
            return msgspec.json.decode(results.read_bytes(), type=list[BenchTest])
        except msgspec.MsgspecError as error:
            raise PillmError(
                f"llama-bench gives no results that can be read: {error}; {telling_line(said)}",
                "use the llama.cpp that pillm builds",
            ) from error
