"""Which runs there are, and how each stands."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from pillm.core.errors import EXIT_INTERRUPTED, PillmError
from pillm.core.events import Failed, Finished, StageEnded, StageStarted
from pillm.pipeline import journal, manifest
from pillm.tui.runs import decoded, folder
from pillm.tui.runs.start import at_work

RunState = Literal["running", "stopped", "failed", "done", "dead"]
"""`dead`: its process is gone, and nothing says how it ended (kill -9, a crash, a lost machine)."""

_TAIL_BYTES = 64 * 1024
_ENDS = {"failed": "failed", "stopped": "stopped"}


class RunInfo(msgspec.Struct, frozen=True):
    """A run as a list shows it. `changed` is when its journal last grew, as seconds since 1970."""

    run_dir: Path
    name: str
    state: RunState
    changed: float
    detail: str = ""
    """The stage at work or the error, in a few words."""


def runs(root: Path = folder.RUNS) -> list[RunInfo]:
    """Every run below `root`, those at work first, then the latest first. No folder: no runs."""
    found = []
    for run_dir in _folders(root):
        with contextlib.suppress(OSError):  # it vanished while we looked
            found.append(info(run_dir, root))
    return sorted(found, key=lambda run: (run.state != "running", -run.changed, run.name))


def info(run_dir: Path, root: Path = folder.RUNS) -> RunInfo:
    """How one run stands. Raises OSError if its folder is not there."""
    changed = max((path.stat().st_mtime for path in _signs(run_dir)), default=run_dir.stat().st_mtime)
    state, detail = state_of(run_dir)
    name = str(run_dir.relative_to(root)) if run_dir.is_relative_to(root) else run_dir.name
    return RunInfo(run_dir, name, state, changed, detail)


def state_of(run_dir: Path) -> tuple[RunState, str]:
    """The state of a run and a few words on it, from its last events and its files."""
    last = list(_last_events(run_dir / journal.NAME))
    stage = next((event.stage for event in reversed(last) if isinstance(event, StageStarted | StageEnded)), "")
    code = _own_end(run_dir)
    if at_work(run_dir):
        return "running", stage
    if code is not None:
        return _by_code(code), _words(run_dir, last) if code else ""
    if folder.is_single(run_dir):
        return "dead", "its process is gone"
    end = next((event for event in reversed(last) if isinstance(event, StageStarted | StageEnded)), None)
    if isinstance(end, StageStarted):
        return "dead", f"{end.stage}: its process is gone"
    if end and end.status in _ENDS:
        return ("failed" if end.status == "failed" else "stopped"), _words(run_dir, last) or end.stage
    with contextlib.suppress(PillmError):
        if manifest.read(run_dir).complete:
            return "done", ""
    if end is None and (inside := _inside(run_dir / journal.NAME)):
        return "dead", f"{inside}: its process is gone"
    return "stopped", f"after {stage}" if stage else ""


def ago(seconds: float) -> str:
    """A moment as text in local time."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _folders(root: Path) -> Iterator[Path]:
    for base in (root, root / folder.SINGLE.name):
        with contextlib.suppress(OSError):
            for path in sorted(base.iterdir()):
                if path.is_dir() and not path.name.startswith(".") and folder.is_run(path):
                    yield path


def _signs(run_dir: Path) -> Iterator[Path]:
    for path in (run_dir / journal.NAME, run_dir / manifest.NAME, folder.own(run_dir) / folder.ENDED):
        if path.is_file():
            yield path


def _own_end(run_dir: Path) -> int | None:
    """The exit code of what was started here, unless somebody went on elsewhere after that."""
    ended, events = folder.own(run_dir) / folder.ENDED, run_dir / journal.NAME
    code = folder.exit_code(run_dir)
    if code is None or folder.is_single(run_dir) or not events.is_file():
        return code
    return code if ended.stat().st_mtime >= events.stat().st_mtime else None


def _by_code(code: int) -> RunState:
    return "done" if code == 0 else "stopped" if code == EXIT_INTERRUPTED else "failed"


def _words(run_dir: Path, last: list[object]) -> str:
    """The message of the last failure: the journal's, else what the command said itself."""
    own = folder.own(run_dir) / folder.EVENTS
    for events in (reversed(last), _last_events(own)):
        for event in events:
            if isinstance(event, Failed):
                return event.message.partition("\n")[0]
    return ""


class _Place(msgspec.Struct):
    stage: str = ""


def _inside(path: Path) -> str:
    """The stage that the last whole line of a journal was written in: more lines followed its start than we read."""
    last = next((line for line in reversed(_tail(path)) if line.endswith(b"}")), b"{}")
    place = decoded.value(last, _Place)
    return place.stage if place else ""


def _tail(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).split(b"\n")
    except OSError:
        return []


def _last_events(path: Path) -> Iterator[object]:
    """The events at the end of a journal that say where it stands."""
    for line in _tail(path):
        if any(word in line for word in (b'"stage-', b'"failed"', b'"finished"')):
            event = decoded.event(line)
            if isinstance(event, StageStarted | StageEnded | Failed | Finished):
                yield event
