"""Watches over a command that must outlive the terminal UI: python -m pillm.tui.runs.worker FOLDER

The command is in FOLDER (see `folder`). Its stdout and stderr go to files, its exit code is left beside them. Ctrl-C
is passed on. A worker that is killed takes the command with it, where the system is Linux.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from pillm.core.artifacts import write_atomic
from pillm.core.command import Command
from pillm.core.errors import EXIT_INTERRUPTED, PillmError
from pillm.core.events import Failed, encode
from pillm.core.process import child
from pillm.tui.runs import alive, folder


def watch(place: Path) -> int:
    """Run the command of the folder to its end; returns its exit code."""
    command = msgspec.json.decode((place / folder.ASKED).read_bytes(), type=Command)
    asked: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def on_signal(number: int, _: object) -> None:
        asked.append(number)
        if running and running[0].poll() is None:
            os.killpg(running[0].pid, number)

    # Handlers, not "ignore": a command started by us begins with the usual ways of both.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    with (place / folder.EVENTS).open("ab") as out, (place / folder.LOG).open("ab") as log:
        try:
            with child(command, stdout=out, stderr=log) as process:
                running.append(process)
                if asked:  # it came before there was anybody to pass it on to
                    os.killpg(process.pid, asked[-1])
                code = process.wait()
        except (PillmError, OSError) as error:
            message, hint = (error.message, error.hint) if isinstance(error, PillmError) else (str(error), "")
            out.write(encode(Failed(message, hint, getattr(error, "exit_code", 1))) + b"\n")
            code = getattr(error, "exit_code", 1)
    return EXIT_INTERRUPTED if code < 0 and asked else code


def main() -> int:
    """Run the command of the folder on the command line in a process of its own, and leave how it ended."""
    place = Path(sys.argv[1])
    # Whoever started us waits for the parent alone, and finds the number when it has ended.
    if number := os.fork():
        write_atomic(place / folder.PID, alive.mark(number))
        return 0
    code = watch(place)
    write_atomic(place / folder.ENDED, f"{code}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
