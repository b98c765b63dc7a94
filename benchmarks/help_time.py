"""How long `pillm --help` takes, against an empty interpreter, in turns. Prints medians and the ratio of pairs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

PAIRS = 11


def seconds(argv: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(argv, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    ours, empty = [sys.executable, "-m", "pillm", "--help"], [sys.executable, "-c", "pass"]
    seconds(ours), seconds(empty)
    pairs = [(seconds(ours), seconds(empty)) for _ in range(PAIRS)]
    print(f"pillm --help     median {statistics.median(a for a, _ in pairs):.3f} s, fastest {min(pairs)[0]:.3f} s")
    print(f"python -c pass   median {statistics.median(b for _, b in pairs):.3f} s")
    print(f"ratio            median {statistics.median(a / b for a, b in pairs):.1f} ({PAIRS} pairs)")


if __name__ == "__main__":
    main()
