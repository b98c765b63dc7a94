"""Programs of ours that are one file and travel alone: how they tell progress, here or at the other end of ssh.

A line of stderr is one JSON object: `{"progress": label, "done", "total", "unit"}` or `{"log": text, "level"}`.
stdout is their answer.
"""

from __future__ import annotations

import json
import subprocess
import threading
from typing import IO

import msgspec

from pillm.core.command import Command
from pillm.core.events import Emit, Log, Progress
from pillm.core.process import child


class Ended(msgspec.Struct, frozen=True):
    """What is left when the program is gone: `errors` are its own words, `noise` what else came on stderr."""

    code: int
    stdout: bytes
    errors: tuple[str, ...]
    noise: tuple[str, ...]


def follow(command: Command, emit: Emit) -> Ended:
    """Run such a program to its end, and tell its progress as it comes."""
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
