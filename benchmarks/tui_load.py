"""The terminal UI under load: python benchmarks/tui_load.py [--seconds 20] [--gigabytes 1] [--runs 20000]

keys      a run's screen in a real pty while a process writes 10,000 log lines a second into its journal: milliseconds
          from a key to the bytes that answer it, and lines that were read against lines that were written
log       a journal of 1 GB: seconds from the start of the process to the last line on the screen, peak of memory
history   20,000 runs: seconds from the start of the process to the trend on the screen, peak of memory

Each is a process of its own in a pty, so that start and memory are its own.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import random
import re
import resource
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

LINE = '{"at":"2026-01-02T03:04:05Z","stage":"train","event":"log","message":"step %09d of a training-like writer, with words to fill the line","level":"info"}\n'
METRIC = '{"at":"2026-01-02T03:04:05Z","stage":"train","event":"metric","name":"loss","value":%.4f,"step":%d,"unit":"nats/token"}\n'
START = (
    '{"at":"2026-01-02T03:04:05Z","stage":"train","event":"stage-started","stage":"train","command":"pillm train"}\n'
)
ANSWER = 100
"""Milliseconds within which a key is to be answered."""
_CODES = re.compile(rb"\x1b\[[0-9;?<>=]*[A-Za-z~]|\x1b[\]P_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.")


def write(path: Path, rate: int, seconds: float) -> None:
    """`rate` lines a second in bursts of a hundredth, one in a hundred a metric; prints how many."""
    count, began = 0, time.perf_counter()
    with path.open("a", buffering=1 << 16) as file:
        while (now := time.perf_counter() - began) < seconds:
            while count < now * rate:
                file.write(METRIC % (2.0 / (1 + count / 1e5), count // 100) if count % 100 == 0 else LINE % count)
                count += 1
            file.flush()
            time.sleep(0.01)
    print(count)


def screen(kind: str, place: Path) -> None:
    """The application on one screen; at its end it leaves what it read and its peak of memory beside the run."""
    from textual.app import App

    class Alone(App[None]):
        def on_mount(self) -> None:
            self.animation_level = "none"
            if kind == "history":
                from pillm.tui.dashboard.screen import DashboardScreen

                self.push_screen(DashboardScreen(place))
            else:
                from pillm.tui.runs.screen import RunScreen

                self.push_screen(RunScreen(place))

        def on_key(self, event) -> None:
            if event.key == "f9":
                self.screen_stack[-1].query("*")
                read = getattr(self.screen, "lines_read", 0)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                Path(os.environ["TUI_LOAD_SAID"]).write_text(json.dumps({"read": read, "peak": peak}))
                self.exit()

    Alone().run()


class Terminal:
    """A process in a pty of 120x40; what it draws is kept as text without codes."""

    def __init__(self, kind: str, place: Path, said: Path) -> None:
        self.began, self.said = time.perf_counter(), said
        self.pid, self.handle = pty.fork()
        if not self.pid:
            os.environ.update(TERM="xterm-256color", TUI_LOAD_SAID=str(said), COLUMNS="120", LINES="40")
            os.execv(sys.executable, [sys.executable, __file__, f"--screen={kind}", f"--place={place}"])
        fcntl.ioctl(self.handle, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.seen = b""

    def pump(self, seconds: float) -> bytes:
        """What is drawn within this time, or the first of it."""
        ready, _, _ = select.select([self.handle], [], [], seconds)
        if not ready:
            return b""
        try:
            data = os.read(self.handle, 1 << 16)
        except OSError:
            return b""
        self.seen = (self.seen + data)[-(1 << 20) :]
        return data

    def until(self, *words: bytes, seconds: float = 60.0) -> float:
        """Seconds since the process began until all of this stood on the screen."""
        while any(word not in _CODES.sub(b"", self.seen) for word in words):
            if time.perf_counter() - self.began > seconds:
                raise SystemExit(f"{words!r} did not come: {_CODES.sub(b'', self.seen)[-2000:]!r}")
            self.pump(0.05)
        return time.perf_counter() - self.began

    def key(self, keys: bytes, answer: re.Pattern[bytes], seconds: float = 5.0) -> float:
        """Seconds from a key to the bytes that answer it."""
        self.seen = b""
        began = time.perf_counter()
        os.write(self.handle, keys)
        while not answer.search(self.seen):
            self.pump(0.005)
            if time.perf_counter() - began > seconds:
                return float("inf")
        return time.perf_counter() - began

    def end(self) -> dict[str, int]:
        """End it; what it said of itself."""
        os.write(self.handle, b"\x1b[20~")
        until = time.perf_counter() + 20
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            self.pump(0.05)
            if time.perf_counter() > until:
                os.kill(self.pid, signal.SIGKILL)
        os.close(self.handle)
        return json.loads(self.said.read_text())


def keys(folder: Path, seconds: float, rate: int) -> None:
    run_dir = folder / "run"
    run_dir.mkdir()
    (run_dir / "events.jsonl").write_text(START)
    lock = (run_dir / ".lock").open("w")  # held until this process ends, as the engine does
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    terminal = Terminal("run", run_dir, folder / "keys.json")
    terminal.until(b"events.jsonl")
    argv = [
        sys.executable,
        __file__,
        "--write",
        f"--place={run_dir / 'events.jsonl'}",
        f"--seconds={seconds}",
        f"--rate={rate}",
    ]
    writer = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    # The screen stands and lines arrive before the first key: starting has a figure of its own (tui_paint.py).
    settled = time.perf_counter() + 2
    while time.perf_counter() < settled:
        terminal.pump(0.01)
    took: list[float] = []
    chance, level = random.Random(1), 0
    while writer.poll() is None:
        # The level's word below the log answers each press of its key.
        level = (level + 1) % 4
        words = (b"follows *\x1b|follows\x1b|follows$", b"info and graver", b"warning and graver", b"error and graver")
        if level:
            took.append(terminal.key(b"l", re.compile(words[level].split(b" and")[0])))
        else:
            terminal.key(b"l", re.compile(b"training-like"))
        pause = time.perf_counter() + chance.uniform(0.05, 0.15)
        while time.perf_counter() < pause:
            terminal.pump(0.01)
    written = int(writer.communicate()[0]) + 1
    done = time.perf_counter() + 2
    while time.perf_counter() < done:
        terminal.pump(0.05)
    said = terminal.end()
    times = sorted(1000 * value for value in took)
    p99 = times[min(round(0.99 * len(times)), len(times) - 1)]
    print(
        f"keys: {len(times)} keys while {rate:,} lines/s arrive: p50 {statistics.median(times):.0f} ms, p99 {p99:.0f} ms, longest {times[-1]:.0f} ms"
    )
    slow = sum(value > ANSWER for value in times)
    print(f"      {slow} later than {ANSWER} ms; the slowest: {', '.join(f'{value:.0f}' for value in times[-5:])} ms")
    print(f"      {written:,} lines written, {said['read']:,} read; peak {said['peak'] / 1024:.0f} MiB")


def log(folder: Path, gigabytes: float) -> None:
    run_dir = folder / "large"
    run_dir.mkdir()
    path = run_dir / "events.jsonl"
    with path.open("w") as file:
        file.write(START)
        number = 0
        while file.tell() < gigabytes * 1e9:
            file.write("".join(LINE % (number + count) for count in range(20_000)))
            file.write(METRIC % (1.0, number))
            number += 20_000
        last = b"step %09d" % (number - 1)
    for name in ("cold", "again"):
        terminal = Terminal("run", run_dir, folder / "log.json")
        opened = terminal.until(last)
        whole = terminal.until(f"{number + number // 20_000 + 1:,} events".encode(), seconds=180)
        said = terminal.end()
        print(
            f"log: {path.stat().st_size / 1e9:.2f} GB, {name}: last line after {opened:.2f} s, all of it read after {whole:.1f} s; peak {said['peak'] / 1024:.0f} MiB"
        )


def history(folder: Path, runs: int) -> None:
    import history_speed

    from pillm.history import store

    path, chance = folder / "history.sqlite", random.Random(1)
    store.add_all(((history_speed.made(number, chance), None) for number in range(runs)), path)
    terminal = Terminal("history", path, folder / "history.json")
    opened = terminal.until(f"{runs:,} runs".encode())
    verdicts = terminal.until(b"tokens/s, ")
    said = terminal.end()
    print(
        f"history: {runs:,} runs: series after {opened:.2f} s, verdicts after {verdicts:.2f} s; peak {said['peak'] / 1024:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--only", choices=("keys", "log", "history"))
    parser.add_argument("--screen", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.screen:
        screen(options.screen, options.place)
    elif options.write:
        write(options.place, options.rate, options.seconds)
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if options.only in (None, "keys"):
                keys(folder, options.seconds, options.rate)
            if options.only in (None, "log"):
                log(folder, options.gigabytes)
            if options.only in (None, "history"):
                history(folder, options.runs)


if __name__ == "__main__":
    main()
