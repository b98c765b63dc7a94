"""What all wrappers of llama.cpp's tools share: running one, and saying what it died of."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pillm.core.command import Command
from pillm.core.errors import PillmError, ResourceError
from pillm.core.process import SHORT_SPIN, child
from pillm.llamacpp.install import LlamaCpp

_NO_ROOM_BYTES = 2**20

# `0.00.026.546 E srv    load_model: text`: seconds, level, component.
_PREFIX = re.compile(r"^(?:\d+\.\d+\.\d+\.\d+ )?(?:([EWIDT]) )?")
_STRONG = re.compile(r"\berror\b|exception|failed to|requires|terminate|assert|illegal|abort", re.IGNORECASE)
_WEAK = re.compile(r"not |unable|unknown|invalid|missing|fail", re.IGNORECASE)
_VAGUE = re.compile(
    r"^(?:\w+\s+)?\w+\s*: (?:failed to load model|exiting due to|error: unable to load model|cleaning up)"
    r"|failed to (?:quantize|load) model|main : failed to init|fit params to free device memory",
    re.IGNORECASE,
)


def telling_line(text: str) -> str:
    """The line of a tool's output that says most of why it failed: the first error that is not a consequence."""
    if "Traceback (most recent call last):" in text:
        return text.strip().splitlines()[-1]
    errors: list[str] = []
    strong: list[str] = []
    weak: list[str] = []
    last = ""
    for line in text.splitlines():
        prefix = _PREFIX.match(line)
        level = prefix[1] if prefix else None
        bare = line[prefix.end() :].strip() if prefix else line.strip()
        if not bare:
            continue
        last = bare
        if level == "E":
            errors.append(bare)
        elif level is None and _STRONG.search(bare):
            strong.append(bare)
        elif level is None and _WEAK.search(bare):
            weak.append(bare)
    for group in (errors, strong, weak):
        if clear := [line for line in group if not _VAGUE.search(line)]:
            return clear[0]
    return (errors or strong or weak or [last or "it said nothing"])[0]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _PREFIX.sub("", lines[-1]) if lines else "none"


def call(
    tools: LlamaCpp,
    name: str,
    arguments: Sequence[str],
    *,
    cwd: Path | None = None,
    on_output: Callable[[str], None] | None = None,
    stdout: Path | None = None,
) -> str:
    """Run a tool to the end; returns its output, stdout and stderr as they came (or to the file `stdout`).

    `on_output` gets each new piece of output as it comes (lines may be cut). A tool writes the names it
    was given into its results, so `cwd` and relative names keep temporary paths out of them.

    Raises ResourceError (disk full, killed for memory) or PillmError with the line that says why and
    the log's path; the log of a run that went well is deleted.
    """
    command = Command((str(tools.tool(name)), *arguments), SHORT_SPIN, str(cwd) if cwd else None)
    return watch(command, name, on_output, stdout)


def watch(
    command: Command, name: str, on_output: Callable[[str], None] | None = None, stdout: Path | None = None
) -> str:
    """Run any command as `call` does; `name` is what errors call it."""
    handle, path = tempfile.mkstemp(prefix=f"{name}-", suffix=".log")
    log, seen, kept = Path(path), 0, False
    try:
        with contextlib.ExitStack() as stack:
            sink = stack.enter_context(os.fdopen(handle, "wb"))
            results = stack.enter_context(stdout.open("wb")) if stdout else sink
            process = stack.enter_context(child(command, stdout=results, stderr=sink))
            ended = False
            while not ended:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)
                    ended = True
                if on_output and (size := log.stat().st_size) > seen:
                    with log.open("rb") as source:
                        source.seek(seen)
                        on_output(source.read(size - seen).decode("utf-8", "replace"))
                    seen = size
        text = log.read_text("utf-8", "replace")
        if process.returncode:
            kept = True
            raise failure(name, process.returncode, text, log, Path(command.cwd) if command.cwd else None)
        return text
    finally:
        if not kept:
            log.unlink(missing_ok=True)


def no_room(folder: Path) -> bool:
    """Whether the disk is full. llama.cpp's tools do not say, and some end as if all were well."""
    return shutil.disk_usage(folder).free < _NO_ROOM_BYTES


def failure(name: str, code: int, text: str, log: Path, folder: Path | None = None) -> PillmError:
    """The error for a tool that ended with `code` (negative: a signal); `folder` is where it wrote."""
    if "No space left on device" in text or "Disk quota exceeded" in text or (folder and no_room(folder)):
        return ResourceError(f"{name}: the disk is full", f"free some space, then run again; its log is {log}")
    if code == -9 or "std::bad_alloc" in text or "failed to allocate" in text:
        return ResourceError(f"{name} ran out of memory", f"use a smaller model or a shorter context; its log is {log}")
    if code < 0:
        how = signal.strsignal(-code) or f"signal {-code}"
        return PillmError(f"{name} crashed ({how}); its last line: {_last_line(text)}", f"its log is {log}")
    return PillmError(f"{name} failed (exit code {code}): {telling_line(text)}", f"its log is {log}")
