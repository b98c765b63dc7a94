"""A real terminal: tmux runs a program, keys are sent, the screen is read."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

PILLM = "import runpy; runpy.run_module('pillm', run_name='__main__', alter_sys=True)"
"""`-m pillm`, for tests that put something before it."""


class Terminal:
    """One tmux session of a server of its own."""

    def __init__(
        self, words: list[str], folder: Path, env: Mapping[str, str], size: tuple[int, int] = (80, 24)
    ) -> None:
        if shutil.which("tmux") is None:
            pytest.skip("tmux is not installed")
        self._server = f"pillm-{uuid.uuid4().hex[:12]}"
        line = shlex.join([sys.executable, "-m", "pillm", *words])
        # What the program leaves on the screen stays readable after its end.
        line = f"{line}; echo ended with $?; sleep 600"
        width, height = map(str, size)
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", width, "-y", height, "-c", str(folder), line, env=env)

    def keys(self, *names: str) -> None:
        """Send keys by tmux's names (`Down`, `Enter`, `F5`)."""
        self._tmux("send-keys", *names)

    def text(self, words: str) -> None:
        """Type words."""
        self._tmux("send-keys", "-l", "--", words)

    def screen(self) -> str:
        """What stands on the screen."""
        return self._tmux("capture-pane", "-p")

    def resize(self, width: int, height: int) -> None:
        """Give the window another size."""
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def wait(self, words: str, seconds: float = 60) -> str:
        """Wait until the words stand on the screen."""
        end = time.monotonic() + seconds
        while words not in (seen := self.screen()):
            if time.monotonic() > end:
                raise AssertionError(f"{words!r} did not come; the screen:\n{seen}")
            time.sleep(0.1)
        return seen

    def close(self) -> None:
        """End it, with what runs in it."""
        self._tmux("kill-server")

    def _tmux(self, *words: str, env: Mapping[str, str] | None = None) -> str:
        whole = {**os.environ, **(env or {}), "TERM": "screen-256color"}
        whole.pop("TMUX", None)
        done = subprocess.run(
            ["tmux", "-L", self._server, *words], capture_output=True, text=True, check=True, env=whole
        )
        return done.stdout
