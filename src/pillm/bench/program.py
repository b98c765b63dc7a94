"""`pi_bench.py` as a child: its arguments, its progress as events, its document, its errors as ours."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

from pillm.bench.options import BenchOptions
from pillm.core.command import Command
from pillm.core.errors import MissingError, NetworkError, PillmError, ResourceError, UsageError
from pillm.core.events import Emit, Log, Progress
from pillm.core.process import child

PATH = Path(__file__).with_name("pi_bench.py")
_KINDS: dict[int, type[PillmError]] = {2: UsageError, 3: MissingError, 4: NetworkError, 5: ResourceError}
_MEASURED = (0, 1, 5)
"""Exit codes that a document may come with: all is well; a gate failed or nothing was measured; it could not be kept there."""


class Ended(msgspec.Struct, frozen=True):
    """What is left when the program is gone: `errors` are its own words, `noise` what else came on stderr."""

    code: int
    stdout: bytes
    errors: tuple[str, ...]
    noise: tuple[str, ...]


def arguments(options: BenchOptions) -> list[str]:
    """The part of the command line that says what to measure and how."""
    said = [
        "--json", "--progress=json", "--wait",
        f"--measure={','.join(options.measure)}", f"--prompt-tokens={options.prompt_tokens}",
        f"--gen-tokens={options.gen_tokens}", f"--depth={_listed(options.depth)}", f"--repetitions={options.repetitions}",
        f"--requests={options.requests}", f"--context={options.context}", f"--type-k={options.type_k}",
        f"--type-v={options.type_v}", f"--limit={options.limit}",
    ]  # fmt: skip
    for name in ("threads", "splits"):
        if values := getattr(options, name):
            said.append(f"--{name}={_listed(values)}")
    for name in ("min_tps", "max_rss", "max_ttft_ms"):
        if (value := getattr(options, name)) is not None:
            said.append(f"--{name.replace('_', '-')}={value}")
    return said


def _listed(values: Iterable[object]) -> str:
    return ",".join(map(str, values))


def follow(command: Command, emit: Emit) -> Ended:
    """Run pi_bench to its end, here or at the other end of ssh, and tell its progress as it comes."""
    with child(command, stderr=subprocess.PIPE) as process:
        if process.stdout is None or process.stderr is None:
            raise AssertionError("the child was started with pipes")
        document: list[bytes] = []
        # The document may be longer than a pipe holds, so it is read beside the progress.
        reader = threading.Thread(target=_read_all, args=(process.stdout, document), daemon=True)
        reader.start()
        errors: list[str] = []
        noise: list[str] = []
        with process.stderr as stream:
            for raw in stream:
                _told(raw.decode("utf-8", "replace").rstrip(), emit, errors, noise)
        code = process.wait()
        reader.join()
    return Ended(code, b"".join(document), tuple(errors), tuple(noise[-50:]))


def _read_all(stream: IO[bytes], into: list[bytes]) -> None:
    into.append(stream.read())


def _told(line: str, emit: Emit, errors: list[str], noise: list[str]) -> None:
    """One line of stderr: an event, or what ssh or Python said."""
    try:
        told = json.loads(line)
        if "progress" in told:
            emit(Progress(told["progress"], told["done"], told["total"], told["unit"]))
        elif told["level"] == "error":
            errors.append(told["log"])
        else:
            emit(Log(told["log"], told["level"]))
    except (ValueError, TypeError, LookupError):
        if line:
            noise.append(line)


def document_of(ended: Ended) -> bytes:
    """The document. Raises the error that the program ended with, in its own words."""
    if ended.code in _MEASURED and ended.stdout.lstrip().startswith(b"{"):
        return ended.stdout
    kind = _KINDS.get(ended.code, PillmError)
    message = "; ".join(ended.errors) or (ended.noise[-1] if ended.noise else "it did not say why")
    text, _, hint = message.partition("; ")
    raise kind(text if ended.errors else f"pi_bench ended with exit code {ended.code}: {text}", hint)
