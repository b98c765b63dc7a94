"""What the tests of `pi_bench.py` share: short options, its document, stand-in programs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHORT = ("--prompt-tokens=16", "--gen-tokens=4", "--repetitions=1", "--requests=1", "--context=64", "--threads=1", "--splits=1/1",
         "--wait")  # fmt: skip
"""A run of seconds. It waits for other measurements of this machine, as several test runs may share it."""

Bench = Callable[..., subprocess.CompletedProcess[str]]


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What `--json` printed."""
    assert done.stdout.startswith("{"), done.stderr
    return json.loads(done.stdout)


def script(path: Path, text: str) -> Path:
    """An executable stand-in, written in this Python unless it begins with its own `#!`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.startswith("#!") else f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return path
