"""Every test of this room has a history of its own, and runs `pi_bench.py` as on a board."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pi_bench_program import Bench

from pillm.bench.program import PATH


@pytest.fixture(autouse=True)
def own_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "history.sqlite"
    monkeypatch.setenv("PILLM_HISTORY", str(path))
    return path


@pytest.fixture
def pi_bench() -> Bench:
    """Run the program as on a board: `pi_bench("--self-test", env={...})`."""

    def run(
        *words: object, env: dict[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, str(PATH), *map(str, words)]
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}, check=False
        )

    return run
