"""Time from starting `pillm ui` to its first whole screen, and from a key to what it changes, in a real terminal.

    python benchmarks/tui_paint.py [--starts=7] [--keys=40] [--size=120x40]

The program runs in a pseudo-terminal, as it does in a terminal window, in an empty folder with an empty cache. The
first screen is whole when its last line, the footer, has come. A key counts as answered with the first bytes that come
back. Prints medians and the slowest, as JSON.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import select
import signal
import statistics
import struct
import sys
import tempfile
import termios
import time
from pathlib import Path

LAST = b"palette"


def spawn(size: str, folder: str) -> tuple[int, int]:
    width, height = map(int, size.split("x"))
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        env = {**os.environ, "TERM": "xterm-256color", "PILLM_CACHE": folder, "PYTHONSAFEPATH": "1"}
        os.execve(sys.executable, [sys.executable, "-m", "pillm", "ui"], env)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    return pid, terminal


def read_until(terminal: int, word: bytes, seconds: float = 20) -> float:
    """The moment at which `word` has come."""
    got, end = b"", time.perf_counter() + seconds
    while word not in got:
        left = end - time.perf_counter()
        if left <= 0 or not select.select([terminal], [], [], left)[0]:
            raise SystemExit(f"nothing like {word!r} came; the last was {got[-300:]!r}")
        got += os.read(terminal, 65536)
    return time.perf_counter()


def drain(terminal: int, quiet: float) -> None:
    while select.select([terminal], [], [], quiet)[0]:
        os.read(terminal, 65536)


def cpu_seconds(pid: int) -> float:
    """What the program has used of the processor: what the first paint takes where nothing else is at work."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def end(pid: int, terminal: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(terminal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--keys", type=int, default=40)
    parser.add_argument("--size", default="120x40")
    asked = parser.parse_args()
    paints, cpu, answers = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(asked.starts + 1):
            before = time.perf_counter()
            pid, terminal = spawn(asked.size, folder)
            paint = read_until(terminal, LAST) - before
            used = cpu_seconds(pid)
            if turn:  # the first one reads everything from disk and writes byte code
                paints.append(paint)
                cpu.append(used)
            if turn == asked.starts:
                drain(terminal, 1.5)
                for key in range(asked.keys):
                    pressed = time.perf_counter()
                    os.write(terminal, b"\x1b[B" if key % 8 < 4 else b"\x1b[A")
                    answers.append(
                        read_until(terminal, b"", 5) - pressed if select.select([terminal], [], [], 5)[0] else 5.0
                    )
                    drain(terminal, 0.15)
            end(pid, terminal)
    answers.sort()
    print(json.dumps({
        "size": asked.size,
        "load": os.getloadavg()[0],
        "first_paint_s": {"median": round(statistics.median(paints), 3), "slowest": round(max(paints), 3), "starts": len(paints),
                          "cpu_median": round(statistics.median(cpu), 2)},
        "key_ms": {"median": round(1e3 * statistics.median(answers), 1), "p99": round(1e3 * answers[int(0.99 * (len(answers) - 1))], 1),
                   "slowest": round(1e3 * answers[-1], 1), "keys": len(answers)},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
