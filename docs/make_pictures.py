"""The pictures of the terminal UI in docs/pictures: python docs/make_pictures.py [--run runs/quickstart] [--history FILE]

    home.svg       what there is to begin with
    run.svg        a run at work
    dashboard.svg  what the run measured, quality against size

The application itself draws them, without a terminal, in an empty folder that has nothing but this run. The run must
be a finished one of this checkout. For run.svg its journal and its manifest are cut at the half of its time, the
clock is stopped there, and this program holds the run's lock as the engine would: what is shown is what the screen
showed then.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from textual.pilot import Pilot
from textual.screen import Screen

from pillm.core.artifacts import write_atomic
from pillm.history import store
from pillm.pipeline import journal, manifest
from pillm.tui.app import PillmApp
from pillm.tui.dashboard.quality import QualityTab
from pillm.tui.dashboard.screen import DashboardScreen
from pillm.tui.home.screen import EntryList
from pillm.tui.runs import folder
from pillm.tui.runs.list import RunList
from pillm.tui.runs.screen import RunScreen

SIZE = (132, 40)
PICTURES = Path(__file__).resolve().parent / "pictures"
_SECONDS = 60.0
_DRAWN_SECONDS = 2.0
"""Curves are drawn one after the other, a while after the run was read."""


class _Line(msgspec.Struct):
    at: datetime.datetime


def cut(run: Path, copy: Path) -> datetime.datetime:
    """Make `copy` what the run's folder was at the half of the run's time; that moment."""
    lines = (run / journal.NAME).read_bytes().splitlines(keepends=True)
    times = [msgspec.json.decode(line, type=_Line).at for line in lines]
    now = times[0] + (times[-1] - times[0]) / 2
    copy.mkdir(parents=True)
    (copy / journal.NAME).write_bytes(b"".join(line for line, at in zip(lines, times, strict=True) if at <= now))
    whole = manifest.read(run)
    stages = [stage for stage in whole.stages if datetime.datetime.fromisoformat(stage.ended) <= now]
    half = msgspec.structs.replace(whole, stages=stages, complete=False)
    write_atomic(copy / manifest.NAME, msgspec.json.encode(half))
    return now


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Hold a run's lock, as the engine does."""
    with (run_dir / folder.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


async def until(pilot: Pilot[None], seen: Callable[[], object]) -> None:
    """Wait until something is there, and drawn."""
    end = time.monotonic() + _SECONDS
    while not seen():
        if time.monotonic() > end:
            raise SystemExit("a screen did not come to show its data")
        await pilot.pause(0.1)
    await pilot.pause(_DRAWN_SECONDS)


def draw(name: str, make: Callable[[], Screen[None]] | None, seen: Callable[[PillmApp], object]) -> None:
    """Write the picture of a screen (home, if nothing makes another), once `seen` says that its data are there."""

    async def whole() -> None:
        app = PillmApp()
        async with app.run_test(size=SIZE) as pilot:
            if make:
                await app.push_screen(make())
            await until(pilot, lambda: seen(app))
            write_atomic(PICTURES / name, app.export_screenshot(title="pillm ui").encode())

    asyncio.run(whole())


def _home(app: PillmApp) -> bool:
    """Whether home is filled."""
    home = app.home
    runs = home.query(RunList) if home else []
    lists = home.query(EntryList) if home else []
    return bool(lists and runs) and all(each.entries for each in lists) and all(each.runs for each in runs)


def _running(app: PillmApp) -> bool:
    """Whether the run is read."""
    screen = app.screen
    return isinstance(screen, RunScreen) and bool(screen.picture and screen.picture.curves)


def _measured(app: PillmApp) -> bool:
    """Whether the history and the reports are read; shows the tab of quality."""
    screen = app.screen
    if not isinstance(screen, DashboardScreen) or screen.speeds is None or not screen.query_one(QualityTab).points:
        return False
    screen.action_tab("quality")
    return True


def make(run: Path) -> None:
    """All pictures of a run, in the current folder, which is empty; the half of the run stands beside that."""
    there, half = folder.RUNS / run.name, Path("..") / "half" / run.name
    there.parent.mkdir()
    there.symlink_to(run)
    now = cut(run, half)
    draw("home.svg", None, _home)
    with held(half):
        draw("run.svg", lambda: RunScreen(half, lambda: now), _running)
    draw("dashboard.svg", DashboardScreen, _measured)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=folder.RUNS / "quickstart", help="a finished run")
    parser.add_argument("--history", type=Path, default=store.location(), help="the history of benchmarks")
    options = parser.parse_args()
    run = options.run.resolve()
    if not (run / journal.NAME).is_file():
        parser.error(f"{options.run} is no run: make quickstart makes one")
    PICTURES.mkdir(exist_ok=True)
    os.environ[store.VARIABLE] = str(options.history.resolve())
    with tempfile.TemporaryDirectory() as name:
        # Nothing of this user, and times as the journal has them.
        os.environ.update(PILLM_CACHE=f"{name}/cache", XDG_CONFIG_HOME=f"{name}/config", TZ="UTC")
        os.environ.pop("NO_COLOR", None)
        time.tzset()
        place = Path(name) / "work"
        place.mkdir()
        os.chdir(place)
        make(run)
    sys.stdout.writelines(f"{path}\n" for path in sorted(PICTURES.glob("*.svg")))


if __name__ == "__main__":
    main()
