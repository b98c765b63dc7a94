"""What the screen of a run shows, as plain values: rows of stages, findings, artifacts, and lines of curves.

A picture is made in the thread that reads the run, and drawn by the screen's; it holds nothing that still changes.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
from pathlib import Path
from typing import NamedTuple

import msgspec

from pillm.core.amounts import amount, duration, figure, share
from pillm.core.command import Command
from pillm.core.errors import PillmError
from pillm.core.findings import Finding
from pillm.pipeline import manifest
from pillm.pipeline.pipeline_ops import parse
from pillm.tui.runs import folder
from pillm.tui.runs.curve import Curve
from pillm.tui.runs.find import RunState
from pillm.tui.runs.state import RunView, StageView

FULL, EMPTY = "█", "░"
MARKS = {
    "waiting": "·", "running": "▶", "ran": "✓", "done": "✓", "cached": "=", "failed": "✗", "stopped": "■", "dead": "✗",
}  # fmt: skip
"""Besides their colour and their word: a state must be seen without either."""

WORDS = {"ran": "done", "cached": "unchanged", "dead": "died"}


class StageRow(NamedTuple):
    """One stage. `share` is how much of its work is done, from 0 to 1; None where that is unknown."""

    id: str
    state: str
    share: float | None
    amount: str
    time: str


class ArtifactRow(NamedTuple):
    """A published file, its size for people, its hash, and where it is."""

    name: str
    size: str
    sha256: str
    path: Path


class Lines(NamedTuple):
    """A curve to draw."""

    title: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    last: str


class Picture(NamedTuple):
    """A run at one moment. `message` is what a person must know first: the error, a vanished folder."""

    state: RunState | None
    title: str
    summary: str
    message: str
    stages: tuple[StageRow, ...] = ()
    curves: tuple[Lines, ...] = ()
    findings: tuple[Finding, ...] = ()
    findings_in_all: int = 0
    artifacts: tuple[ArtifactRow, ...] = ()
    shown: str = ""
    """The stage whose curves these are."""


def vanished(run_dir: Path) -> Picture:
    """The picture of a run whose folder is not there (any more)."""
    return Picture(None, run_dir.name, "", f"{run_dir}: there is no such folder; it was moved or removed")


def picture(
    view: RunView,
    run_dir: Path,
    state: RunState,
    detail: str,
    now: datetime.datetime,
    *,
    shown: str = "",
    read: float = 1.0,
) -> Picture:
    """The picture of a run; `shown` names the stage whose curves are wanted (else the one at work, or the last one)."""
    # A profile that got another stage since does not make a run that is done a run of that stage.
    wanted = (stage for stage in view.stages.values() if state != "done" or stage.state != "waiting" or view.single)
    stages = tuple(_row(stage, view, state, now) for stage in wanted)
    chosen = view.stages.get(shown) or _busiest(view)
    return Picture(
        state=state,
        title=run_dir.name,
        summary=_summary(view, stages, read),
        message=_message(view, state, detail),
        stages=stages,
        curves=tuple(_lines(curve) for curve in first_of_each_kind(chosen)) if chosen else (),
        findings=tuple(view.findings),
        findings_in_all=view.findings_in_all,
        artifacts=tuple(
            ArtifactRow(name, amount(item.bytes, "B"), item.sha256, _found(run_dir, item.path))
            for name, item in view.artifacts.items()
        ),
        shown=chosen.id if chosen else "",
    )  # fmt: skip


def first_of_each_kind(stage: StageView) -> list[Curve]:
    """The curves of a stage with two points or more: figures and rates by turns, so that two plots show one of each."""
    found = [curve for curve in stage.curves.values() if len(curve.steps) > 1]
    rates = [curve for curve in found if curve.is_rate]
    others = [curve for curve in found if not curve.is_rate]
    return [curve for pair in itertools.zip_longest(others, rates) for curve in pair if curve]


def seed(view: RunView, run_dir: Path) -> None:
    """Take in what files say at once, before the journal is read: stages that are planned and those that are done."""
    if folder.is_single(run_dir):
        command = folder.command(run_dir)
        view.single = _words_of(command) if command else run_dir.name
        view.stage(view.single).command = str(command or "")
        return
    for name in planned(run_dir):
        view.stage(name)
    with contextlib.suppress(PillmError):
        for record in manifest.read(run_dir).stages:
            stage = view.stage(record.id)
            stage.state, stage.seconds, stage.command = "ran", record.seconds, record.command
            stage.metrics = dict(record.metrics)
            for name, artifact in record.outputs.items():
                view.artifacts.setdefault(
                    f"{record.id}/{name}", msgspec.structs.replace(artifact, path=str(run_dir / artifact.path))
                )


def _words_of(command: Command) -> str:
    with contextlib.suppress(PillmError):
        return " ".join(parse(command.argv)[0].words)
    return " ".join(command.argv[1:2])


def planned(run_dir: Path) -> tuple[str, ...]:
    """The stages of the run's profile in their order; none where the profile is not known or broken."""
    from pillm.pipeline import profiles
    from pillm.pipeline.profile import load

    with contextlib.suppress(PillmError, OSError):
        command = folder.command(run_dir)
        name = command.argv[2] if command and len(command.argv) > 2 else manifest.read(run_dir).profile
        return tuple(step.id for step in load(profiles.find(name)).steps)
    return ()


def bar(done: float | None, width: int) -> str:
    """A bar of `width` cells; empty where the share is unknown."""
    if done is None:
        return " " * width
    full = round(min(max(done, 0.0), 1.0) * width)
    return FULL * full + EMPTY * (width - full)


def _row(stage: StageView, view: RunView, state: RunState, now: datetime.datetime) -> StageRow:
    told = stage.state
    if stage.id == view.single:
        told = state
    elif told == "running" and state != "running":
        told = "dead" if state == "done" else state
    progress = stage.bar
    done, text = None, ""
    if told in ("ran", "done", "cached"):
        done, text = 1.0, _figures(stage)
    elif progress:
        done = min(progress.done / progress.total, 1.0) if progress.total else None
        text = f"{progress.label}: {share(progress.done, progress.total, progress.unit)}"
    seconds = stage.seconds
    if told == "running" and (began := moment(stage.began or view.began)):
        seconds = max((now - began).total_seconds(), 0.0)
    return StageRow(stage.id, told, done, text, duration(seconds) if seconds else "")


def moment(text: str) -> datetime.datetime | None:
    """RFC 3339 as a moment; None for anything else."""
    with contextlib.suppress(ValueError):
        found = datetime.datetime.fromisoformat(text)
        return found if found.tzinfo else None
    return None


def _figures(stage: StageView) -> str:
    return ", ".join(f"{name} {figure(value)}" for name, value in stage.metrics.items() if value is not None)


def _busiest(view: RunView) -> StageView | None:
    with_curves = [stage for stage in view.stages.values() if first_of_each_kind(stage)]
    at_work = [stage for stage in view.stages.values() if stage.state == "running"]
    return next((stage for stage in [*at_work, *reversed(with_curves)] if stage in with_curves), None)


def _summary(view: RunView, stages: tuple[StageRow, ...], read: float) -> str:
    parts = []
    if len(stages) > 1:
        parts.append(f"{sum(row.share == 1.0 and row.state != 'running' for row in stages)} of {len(stages)} stages")
    parts.append(f"{view.lines:,} events")
    for count, word in ((view.warnings, "warning"), (view.errors, "error")):
        if count:
            parts.append(f"{count:,} {word}{'s' if count > 1 else ''}")
    if read < 1.0:
        parts.append(f"reading: {read:.0%}")
    return ", ".join(parts)


def _message(view: RunView, state: RunState, detail: str) -> str:
    if state == "dead":
        return f"Its process is gone and nothing says how it ended ({detail}). Resume it: it goes on where it was."
    if state != "failed":
        return ""
    wrong = next((stage for stage in reversed(view.stages.values()) if stage.error), None)
    if wrong is None:
        return detail or "It failed; its log says more."
    # The engine's own message may begin with the stage's name already.
    head = "" if len(view.stages) == 1 or wrong.error.startswith(f"{wrong.id}:") else f"{wrong.id}: "
    return f"{head}{wrong.error}\n{wrong.hint}".rstrip()


def _lines(curve: Curve) -> Lines:
    return Lines(curve.title, tuple(curve.steps), tuple(curve.values), figure(float(curve.last)))


def _found(run_dir: Path, path: str) -> Path:
    """An artifact's file: journals have paths as the stage knew them, manifests those below the run's folder."""
    for place in (Path(path), run_dir / path):
        if place.exists():
            return place
    return Path(path)
