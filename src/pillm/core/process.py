"""Child processes that never outlive us, with their output line by line."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from pillm.core.command import Command
from pillm.core.errors import MissingError

SHORT_SPIN = {"GOMP_SPINCOUNT": "20000"}
"""Environment for programs with worker threads of GNU OpenMP (torch, llama.cpp); read when they start.

Idle workers wait in a loop before they sleep. By default that is so long that two programs on one
machine slow each other down many times (8 tokens in 18 s instead of 2, on 2 busy cores); at once to
sleep (OMP_WAIT_POLICY=passive) costs 37 % of the training speed on an idle machine. This is neither.
"""

HUGE_PAGES = {} if "GLIBC_TUNABLES" in os.environ else {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Environment for the processes of a run, which glibc reads as they start: their heaps are made of 2 MiB pages where
Linux has them. Training is 11 % faster so. A stage that is started by hand goes without."""

_PR_SET_PDEATHSIG = 1
# Loaded here, since loading a library between fork and exec can deadlock beside other threads.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """Ask Linux to kill this child when the thread that started it ends, however it ends."""
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def child(
    command: Command, *, stdout: int | IO[bytes] | None = subprocess.PIPE, stderr: int | IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A running child in a process group of its own; it is ended (TERM, then KILL) with the block.

    A group of its own keeps the terminal's Ctrl-C from the child: we get it, and end the child.
    Raises MissingError if the program is not there.
    """
    try:
        process = subprocess.Popen(
            command.argv,
            env={**os.environ, **command.env},
            cwd=command.cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            process_group=0,
            preexec_fn=_die_with_parent,
        )
    except FileNotFoundError as error:
        raise MissingError(f"{command.argv[0]}: no such program", "run: pillm doctor") from error
    try:
        yield process
    finally:
        if process.poll() is None:
            _signal_group(process, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                _signal_group(process, signal.SIGKILL)
                process.wait()
        if process.stdout:
            process.stdout.close()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def run(command: Command, *, log: Path | None = None, on_line: Callable[[str], None] | None = None) -> int:
    """Run to the end; stdout and stderr go to `log` and, line by line, to `on_line`. Returns the exit code.

    A carriage return ends a line too, so that progress bars arrive as they are drawn.
    """
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(log.open("ab")) if log else None
        process = stack.enter_context(child(command, stderr=subprocess.STDOUT))
        stream, pending = process.stdout, b""
        if stream is None:
            raise AssertionError("the child was started with a pipe")
        while block := os.read(stream.fileno(), 65536):
            if sink:
                sink.write(block)
                sink.flush()
            if on_line:
                *ready, pending = (pending + block).replace(b"\r", b"\n").split(b"\n")
                for line in ready:
                    if line:
                        on_line(line.decode("utf-8", "replace"))
        if on_line and pending:
            on_line(pending.decode("utf-8", "replace"))
        return process.wait()
