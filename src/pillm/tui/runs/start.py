"""Start, stop and resume commands that go on without the terminal UI."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from pillm.core.artifacts import write_atomic
from pillm.core.command import Command
from pillm.core.errors import PillmError, UsageError, writing
from pillm.pipeline import manifest
from pillm.pipeline.pipeline_ops import PROGRAM, launcher, parse
from pillm.tui.runs import folder
from pillm.tui.runs.alive import held, holder, worker

_RUN, _RUN_DIR, _FROM, _JSON = "run", "--run-dir", "--from", "--json"


def start(command: Command, *, name: str) -> Path:
    """Start a command of the table, or `pillm run PROFILE ...`, on its own; returns its run's folder.

    It lives in a session of its own and goes on when the terminal is closed. Raises UsageError (the line cannot be
    run, or a run is at work in its folder), ResourceError (the folder cannot be written).
    """
    # Resumed from anywhere, it must mean the same files.
    command = msgspec.structs.replace(command, cwd=str(Path(command.cwd or "").absolute()))
    if _is_run(command):
        run_dir = _below_us(_run_folder(command))
        place = run_dir / folder.INSIDE
    else:
        run_dir = place = _fresh(name)
    _launch(command, run_dir, place)
    return run_dir


def stop(run_dir: Path, *, hard: bool = False) -> bool:
    """Ask a run to stop as Ctrl-C does (`hard`: as an end of the session does); False if nothing is at work there.

    Raises UsageError if somebody is at work there, but it is not sure who.
    """
    number = holder(run_dir / folder.LOCK) or worker(folder.own(run_dir) / folder.PID)
    if number is None:
        if held(run_dir / folder.LOCK):
            raise UsageError(
                f"{run_dir}: a run is at work here, but its number may be another process's, so nothing was stopped",
                "stop it where it was started",
            )
        return False
    sign = signal.SIGTERM if hard else signal.SIGINT
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # A run that shares its group with a script or a shell must not take those along.
        if os.getpgid(number) == number:
            os.killpg(number, sign)
        else:
            os.kill(number, sign)
    return True


def resume(run_dir: Path) -> Path:
    """Start the command of a run again, in the same folder: it goes on where it was.

    Raises UsageError if it is still at work, or if nothing tells how it was started.
    """
    command = folder.command(run_dir)
    if command is None:
        command = _from_manifest(run_dir)
    elif command.cwd and not Path(command.cwd).is_dir():
        raise UsageError(f"{command.cwd}: the folder it was started in is gone", "start it again from another")
    if _is_run(command):
        command = msgspec.structs.replace(command, argv=tuple(_without_from(command.argv)))
    _launch(command, run_dir, folder.own(run_dir))
    return run_dir


def at_work(run_dir: Path) -> bool:
    """Whether a process works in this folder, whoever started it."""
    # Who watches over a command writes its code just before he ends: then nothing is at work any more.
    ended = folder.exit_code(run_dir) is not None
    return held(run_dir / folder.LOCK) or (not ended and worker(folder.own(run_dir) / folder.PID) is not None)


def _launch(command: Command, run_dir: Path, place: Path) -> None:
    if at_work(run_dir):
        raise UsageError(f"{run_dir}: a run is at work here", "watch it, or stop it first")
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        (place / folder.ENDED).unlink(missing_ok=True)
        write_atomic(place / folder.COMMAND, msgspec.json.encode(command) + b"\n")
        if place.name == folder.INSIDE:
            # The engine keeps the journal; what it prints is only needed where it ends before its journal begins.
            (place / folder.EVENTS).write_bytes(b"")
        asked = launcher(_with_events(command))
        write_atomic(place / folder.ASKED, msgspec.json.encode(asked) + b"\n")
        with (place / folder.LOG).open("ab") as log:
            # It forks and leaves its number, so this is over at once and nobody has to wait for it later.
            done = subprocess.run(
                (sys.executable, "-m", "pillm.tui.runs.worker", str(place.absolute())),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, check=False,
            )  # fmt: skip
    if done.returncode:
        raise PillmError(f"{place}: the command could not be started", f"see {place / folder.LOG}")


def _with_events(command: Command) -> Command:
    """The command with `--json`, but where that would change what it prints from text for people to one document."""
    if _JSON in command.argv:
        return command
    if not _is_run(command):
        stage, _ = parse(command.argv)
        if stage.document:
            return command
    return msgspec.structs.replace(command, argv=(*command.argv, _JSON))


def _is_run(command: Command) -> bool:
    return command.argv[:2] == (PROGRAM, _RUN)


def _run_folder(command: Command) -> Path:
    """Where `pillm run` will work: as it says, or as the profile is called."""
    words = command.argv[2:]
    base = Path(command.cwd or "")
    for place, word in enumerate(words):
        head, equals, value = word.partition("=")
        if head == _RUN_DIR:
            if not equals and place + 1 == len(words):
                break
            return base / (value if equals else words[place + 1])
    if not words or words[0].startswith("-"):
        raise UsageError(f"{command}: there is no profile", f"see: {PROGRAM} {_RUN} --help")
    from pillm.pipeline import profiles
    from pillm.pipeline.profile import load

    return base / folder.RUNS / load(profiles.find(words[0])).name


def _below_us(path: Path) -> Path:
    """A folder as people call it: relative to where we are, if it is below."""
    here = Path().absolute()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _without_from(argv: Iterable[str]) -> Iterator[str]:
    """The line without the stage that was to run afresh: what it has done since is to be kept."""
    words = iter(argv)
    for word in words:
        if word == _FROM:
            next(words, None)
        elif not word.startswith(f"{_FROM}="):
            yield word


def _from_manifest(run_dir: Path) -> Command:
    try:
        found = manifest.read(run_dir)
    except PillmError as error:
        raise UsageError(f"{run_dir}: nothing here tells how it was started", "start its profile again") from error
    sets = (f"--set={text}" for text in found.overrides)
    return Command((PROGRAM, _RUN, found.profile, f"{_RUN_DIR}={run_dir}", *sets))


def _fresh(name: str) -> Path:
    """A new folder for a single command; two that start in the same second get two."""
    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name).strip(".") or "command"
    stamp = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    with writing(folder.SINGLE):
        folder.SINGLE.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            place = folder.SINGLE / (f"{name}-{stamp}" if number == 1 else f"{name}-{stamp}-{number}")
            with contextlib.suppress(FileExistsError):
                place.mkdir()
                return place
    raise UsageError(f"{folder.SINGLE}/{name}-{stamp}: too many at once", "wait a second")
