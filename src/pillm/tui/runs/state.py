"""What a run's events say up to now: stages, bars, curves, findings, artifacts. Its size does not follow the log's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from pillm.core.artifacts import Artifact
from pillm.core.events import (
    Failed,
    Finished,
    Found,
    Made,
    Metric,
    Output,
    Progress,
    StageEnded,
    StageStarted,
)
from pillm.core.findings import Finding
from pillm.tui.runs import decoded
from pillm.tui.runs.curve import Curve
from pillm.tui.runs.row import Where

MOST_FINDINGS = 1000
_MOST_NAMES = 64
"""Curves, bars and artifacts of a stage at most: a stage that invents names must not fill the memory."""


@dataclass
class StageView:
    """One stage. `state` is waiting, running, or as it ended: ran, cached, failed, stopped, dead."""

    id: str
    state: str = "waiting"
    command: str = ""
    began: str = ""
    """When it was started, as the journal has it (UTC); empty where there is no journal."""
    seconds: float = 0.0
    bars: dict[str, Progress] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    metrics: dict[str, object] = field(default_factory=dict)
    error: str = ""
    hint: str = ""

    @property
    def bar(self) -> Progress | None:
        """The work that was told of last."""
        return next(reversed(self.bars.values()), None)


@dataclass
class RunView:
    """A run. `lines` counts what was read of its journal, `words` those of them that the log shows."""

    stages: dict[str, StageView] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    findings_in_all: int = 0
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    lines: int = 0
    warnings: int = 0
    errors: int = 0
    began: str = ""
    at: str = ""
    single: str = ""
    """The name of the one stage, where the run is a single command."""

    def stage(self, name: str) -> StageView:
        """The view of a stage, made where there is none."""
        return self.stages.setdefault(name, StageView(name))


_PLACED = re.compile(
    r"(?P<file>[^\s].*?):(?P<line>[0-9]+):(?P<byte>[0-9]+) (?P<path>\$\S*) (?P<code>[a-z][a-z0-9-]*) (?P<message>.+)"
)
_LOG = b'"event":"log"'
_WARNING, _ERROR = b'"level":"warning"', b'"level":"error"'


def add(view: RunView, lines: Iterable[bytes]) -> None:
    """Take lines of the journal in. A line that is no event counts as one and says nothing else."""
    for line in lines:
        view.lines += 1
        # Nearly all lines of a large journal are words, which only the log shows.
        if _LOG in line[:160]:
            tail = line[-40:]
            if _WARNING in tail:
                view.warnings += 1
            elif _ERROR in tail:
                view.errors += 1
            continue
        if not line.startswith(b"{"):
            continue
        event, place = decoded.event(line), decoded.value(line, Where)
        if event is None or place is None:
            continue
        if place.at:
            view.began = view.began or place.at
            view.at = place.at
        _event(view, event, place.stage or view.single)


def _event(view: RunView, event: object, name: str) -> None:
    match event:
        case StageStarted():
            # A stage that goes on keeps its curves: they are those of the same training.
            stage = view.stage(event.stage)
            stage.state, stage.command, stage.began = "running", event.command, view.at
            stage.error = stage.hint = ""
            stage.bars.clear()
        case StageEnded():
            stage = view.stage(event.stage)
            stage.state, stage.seconds = event.status, event.seconds
        case Progress() if name:
            bars = view.stage(name).bars
            bars.pop(event.label, None)
            if len(bars) >= _MOST_NAMES:
                bars.pop(next(iter(bars)))
            bars[event.label] = event
        case Metric() if name:
            curves = view.stage(name).curves
            if event.name in curves or len(curves) < _MOST_NAMES:
                curves.setdefault(event.name, Curve(event.name, event.unit)).add(event.step, event.value)
        case Found():
            _found(view, event.finding)
        case Output():
            if finding := finding_of(event.line):
                _found(view, finding)
        case Made():
            key = f"{name}/{event.name}" if name else event.name
            if key in view.artifacts or len(view.artifacts) < _MOST_NAMES * 8:
                view.artifacts[key] = event.artifact
        case Failed():
            view.errors += 1
            if name:
                stage = view.stage(name)
                stage.error, stage.hint = event.message, event.hint
        case Finished() if name:
            view.stage(name).metrics = dict(event.metrics)
        case _:
            pass


def _found(view: RunView, finding: Finding) -> None:
    view.findings_in_all += 1
    if len(view.findings) < MOST_FINDINGS and finding not in view.findings:
        view.findings.append(finding)


def finding_of(line: str) -> Finding | None:
    """The finding in a line that a command printed as a result: as JSON, or `FILE:LINE:BYTE PATH CODE WORDS; HINT`."""
    if line.startswith("{"):
        return decoded.value(line, Finding)
    if not (parts := _PLACED.match(line)):
        return None
    from pillm.data.validation.codes import CODES

    known = CODES.get(parts["code"])
    message, _, hint = parts["message"].partition("; ")
    return Finding(
        file=parts["file"], line=int(parts["line"]), byte=int(parts["byte"]), path=parts["path"], code=parts["code"],
        severity=known.severity if known else "warning", message=message, hint=hint,
    )  # fmt: skip
