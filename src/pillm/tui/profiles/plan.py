"""A profile as the UI shows it: its steps with what a run would do with each; changes to its text. No widgets."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pillm.core.artifacts import write_atomic
from pillm.core.command import Command
from pillm.core.errors import ProfileError, UsageError, writing
from pillm.core.findings import Finding
from pillm.core.options import InputFile, ModelReference, marks
from pillm.core.yaml_lines import Document
from pillm.pipeline import engine, profile, profiles
from pillm.pipeline.engine import RUNS
from pillm.pipeline.stages import STAGES, Stage
from pillm.tui.forms.values import from_yaml
from pillm.tui.profiles import edit
from pillm.tui.profiles.edit import put, renamed
from pillm.tui.profiles.graph import rails

SIGNS: dict[str, str] = {"cached": "✓", "resume": "…", "run": "▶", "skip": "-", "": "?"}
WORDS: dict[str, str] = {**engine.WORDS, "": ""}


class StepLine(msgspec.Struct, frozen=True):
    """One step of a plan: its rails in the graph, what it is, what it needs, and what a run would do with it."""

    id: str
    stage: str
    rails: str
    needs: tuple[str, ...]
    about: str
    action: str = ""
    """One of `SIGNS`; empty while that is not known yet."""
    command: str = ""


class Shown(msgspec.Struct, frozen=True):
    """A profile: its steps if it is right, what is wrong with it if it is not."""

    name: str
    description: str
    path: Path
    run_dir: Path
    steps: tuple[StepLine, ...] = ()
    findings: tuple[Finding, ...] = ()
    text: str = ""
    """What stood in the file, so that it can be told whether somebody else has changed it since."""


def text_of(path: Path) -> str:
    """A profile's text with its line ends as they are; what is not UTF-8 is a finding of `read`. Raises OSError."""
    return path.read_bytes().decode("utf-8", errors="replace")


def read(path: Path, table: Mapping[str, Stage] = STAGES) -> Shown:
    """A profile, without looking at what a run left. Raises UsageError or OSError if the file cannot be read."""
    text = text_of(path) if path.is_file() else ""
    try:
        plan = profile.load(path, table=table)
    except ProfileError as error:
        return Shown(path.stem, "", path, RUNS / path.stem, findings=error.findings, text=text)
    needs = {step.id: list(dict.fromkeys(need.step for need in step.needs.values())) for step in plan.steps}
    drawn = rails([step.id for step in plan.steps], needs)
    lines = [
        StepLine(step.id, step.stage.name, rail, tuple(needs[step.id]), step.stage.summary)
        for step, rail in zip(plan.steps, drawn, strict=True)
    ]
    return Shown(plan.name, plan.description, path, RUNS / plan.name, tuple(lines), text=text)


def judged(shown: Shown, table: Mapping[str, Stage] = STAGES) -> Shown:
    """The same with what a run would do with each step now. Hashes inputs, so it may take a while.

    Raises PillmError where that cannot be said.
    """
    actions = {item.id: item for item in engine.preview(profile.load(shown.path, table=table), shown.run_dir)}
    steps = tuple(
        msgspec.structs.replace(step, action=actions[step.id].action, command=str(actions[step.id].command))
        for step in shown.steps
        if step.id in actions
    )
    return msgspec.structs.replace(shown, steps=steps)


def run_command(shown: Shown, start: str = "", until: str = "") -> Command:
    """The command that runs the profile."""
    more = [f"--from={start}"] if start else []
    more += [f"--until={until}"] if until else []
    known = {item.name: item.path for item in profiles.known()}
    name = shown.path.stem if known.get(shown.path.stem) == shown.path else str(shown.path)
    return Command(("pillm", "run", name, *more))


def values_in(text: str, step: str) -> dict[str, Any]:
    """What a step's section says, as a form takes it."""
    return from_yaml(_section(text, step))


def references(shown: Shown, step: str, table: Mapping[str, Stage] = STAGES) -> list[tuple[str, str]]:
    """Outputs of the steps before this one, as a profile refers to them."""
    found = []
    for line in shown.steps:
        if line.id == step:
            break
        found += [(f"${{{line.id}.{output}}}", path) for output, path in table[line.stage].outputs.items()]
    return found


def changed(text: str, step: str, stage: Stage, values: Mapping[str, Any]) -> str:
    """The profile's text with a step's options being what a form says; a new step is added. Raises UsageError.

    What the form says as the text does stays as it is written there.
    """
    model = stage.options
    # Options as the model reads them, so that numbers are written as numbers; the rest stays text.
    made = model.model_validate({**values, **({"out": "out"} if "out" in model.model_fields else {})})
    dumped = made.model_dump(mode="json")
    stood = _section(text, step)
    said = from_yaml(stood)
    names = [name for name in stood if name in values] + [name for name in values if name not in stood]
    same = {name for name in names if name in said and _plain(said[name]) == _plain(values[name])}
    wanted = {name: stood[name] if name in same else dumped[name] for name in names}
    return put(text, step, wanted, uses="" if step == stage.name else stage.name)


def removed(shown: Shown, step: str) -> str:
    """The profile's text without a step. Raises UsageError, also where another step reads its outputs."""
    if readers := [line.id for line in shown.steps if step in line.needs]:
        raise UsageError(f"{step} feeds {' and '.join(readers)}", "let them read something else first")
    if len(shown.steps) == 1:
        raise UsageError(f"{step} is the only stage, and a profile has one at least", "add another one first")
    return edit.removed(shown.text, step)


def free_id(shown: Shown, stage: Stage) -> str:
    """An id for a new step of a stage: the stage's name, with a number if that is taken."""
    taken = {line.id for line in shown.steps}
    return next(
        name for n in itertools.count(1) if (name := stage.name if n == 1 else f"{stage.name}-{n}") not in taken
    )


def save(shown: Shown, text: str, path: Path) -> Path:
    """Write a profile's text to a file: as it is over its own, under the file's name elsewhere.

    Paths that were relative to the old folder are written relative to the new one; links stay, and what they lead to is
    written. Raises UsageError, also if the file is not any more as it was read, and ResourceError.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{path}: a profile's name ends in .yaml")
    real = path.resolve()
    if real == shown.path.resolve():
        if real.is_file() and text_of(real) != shown.text:
            raise UsageError(
                f"{path}: was changed by somebody else since it was read",
                "save under another name, or leave and open it again",
            )
    else:
        if path.exists():
            raise UsageError(f"{path}: is there already", "choose another name")
        text = renamed(_moved(text, shown, path.parent), path.stem)
    with writing(path):
        write_atomic(real, text)
    return path


def is_shipped(path: Path) -> bool:
    """Whether the profile came with the tool, so that an upgrade would write over changes to it."""
    return path.is_relative_to(profiles.folders()[-1])


def target(path: Path) -> Path:
    """Where changes to a profile are saved if nobody says otherwise: not over one that came with the tool."""
    return profiles.HERE / f"my-{path.stem}.yaml" if is_shipped(path) else path


def _section(text: str, step: str) -> dict[str, Any]:
    data = Document("", text.encode()).data
    data = data if isinstance(data, dict) else {}
    return (data.get("stages") or {}).get(step) or {}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _moved(text: str, shown: Shown, folder: Path) -> str:
    """The text with paths relative to another folder."""
    data = Document("", text.encode()).data or {}
    for step, section in (data.get("stages") or {}).items():
        stage = STAGES.get(str((section or {}).get("uses", step)))
        if stage is None or not section:
            continue
        files = {*marks(stage.options, InputFile), *marks(stage.options, ModelReference)}
        new = {
            name: _relative(value, shown.path.parent, folder) if name in files else value
            for name, value in section.items()
        }
        if new != section:
            new.pop("uses", None)
            text = put(text, step, new)
    return text


def _relative(value: Any, old: Path, new: Path) -> Any:
    if isinstance(value, list):
        return [_relative(item, old, new) for item in value]
    if isinstance(value, str) and "${" not in value and not Path(value).is_absolute() and (old / value).exists():
        return os.path.relpath(old / value, new)
    return value
