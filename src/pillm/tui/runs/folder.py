"""Where the files of a run are.

A run of a profile is the engine's folder; what was started from here leaves its own files in `.ui` inside it. A single
command has a folder of its own, `runs/ui/NAME-TIME`, with the same files right in it:

    command.json  the command as a person would type it, to start it again
    asked.json    the same as it is executed
    pid           the process that watches over it, and when that began (see `alive`)
    events.jsonl  what it says on stdout: its events
    log.txt       what it says on stderr
    ended         its exit code, once it has one
"""

from __future__ import annotations

from pathlib import Path

from pillm.core.command import Command
from pillm.pipeline import journal, manifest
from pillm.pipeline.engine import RUNS
from pillm.tui.runs import decoded

SINGLE = RUNS / "ui"
INSIDE = ".ui"
COMMAND, ASKED, PID, EVENTS, LOG, ENDED = "command.json", "asked.json", "pid", "events.jsonl", "log.txt", "ended"
LOCK = ".lock"
"""The engine's: holds the number of the process at work (see pipeline.engine)."""


def own(run_dir: Path) -> Path:
    """Where the files stand of what was started from here."""
    return run_dir if (run_dir / COMMAND).is_file() else run_dir / INSIDE


def is_single(run_dir: Path) -> bool:
    """Whether the folder is that of a single command."""
    return (run_dir / COMMAND).is_file()


def is_run(folder: Path) -> bool:
    """Whether the folder is one of a run of any kind."""
    names = (journal.NAME, manifest.NAME, COMMAND, LOCK, INSIDE)
    return any((folder / name).exists() for name in names)


def command(run_dir: Path) -> Command | None:
    """The command that was started here; None if it was started elsewhere, or the file is damaged."""
    try:
        return decoded.value((own(run_dir) / COMMAND).read_bytes(), Command)
    except OSError:
        return None


def exit_code(run_dir: Path) -> int | None:
    """How the command started here ended; None while it has not, or if nobody could write it down."""
    try:
        return int((own(run_dir) / ENDED).read_text("ascii"))
    except (OSError, ValueError):
        return None


def logs(run_dir: Path) -> list[Path]:
    """The text files of a run that may be read: its events, what it said on stderr, the logs of its stages."""
    found = [run_dir / EVENTS, own(run_dir) / LOG, *sorted(run_dir.glob("*/*.log"))]
    return [path for path in found if path.is_file() and (path.name == EVENTS or path.stat().st_size)]
