"""Runs a plan: each stage in a process of its own, and only if its outputs are not there already.

    runs/NAME/
      manifest.json  events.jsonl  report.html
      STAGE/         the stage's outputs, stage.json (written last), stage.log, its resume state

A stage that was killed goes on where it was, as long as its inputs are what they were: `.key` in
its folder names them. Inputs that changed, a finished stage whose outputs were touched, and `--from`
give it an empty folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from pillm.core.artifacts import clear_partials
from pillm.core.command import Command
from pillm.core.errors import PillmError, UsageError, writing
from pillm.core.events import Emit, Event, Log, StageEnded, silent
from pillm.core.options import ModelReference, StageOptions, marks
from pillm.llamacpp import install, pin
from pillm.models import refs
from pillm.models.redact import redact
from pillm.pipeline import cache, manifest
from pillm.pipeline.execute import Launch, execute, prepare, started_with
from pillm.pipeline.journal import Journal
from pillm.pipeline.manifest import RunManifest, StageRecord
from pillm.pipeline.pipeline_ops import build, launcher
from pillm.pipeline.problems import did_you_mean
from pillm.pipeline.profile import Plan, Step

LOCK = ".lock"
REPORT = "report.html"
_LITTLE_SPACE = 5 * 2**30

Action = Literal["cached", "resume", "run", "skip"]
RUNS = Path("runs")
"""Where runs are kept, unless they are told otherwise."""
WORDS: dict[Action, str] = {
    "cached": "unchanged, would be skipped", "resume": "would go on", "run": "would run", "skip": "not asked for",
}  # fmt: skip


class Outcome(msgspec.Struct, frozen=True):
    """What a run did: its records in order, which steps ran, and its report if the plan is complete."""

    run_dir: Path
    records: tuple[StageRecord, ...]
    ran: tuple[str, ...]
    report: Path | None


class Preview(msgspec.Struct, frozen=True):
    """What a run would do with one step, and the paths it would write."""

    id: str
    command: Command
    action: Action
    writes: dict[str, Path]


def run(
    plan: Plan,
    run_dir: Path,
    emit: Emit,
    *,
    start: str | None = None,
    until: str | None = None,
    launch: Launch = launcher,
    report: Callable[[Path, Emit], Path] | None = None,
) -> Outcome:
    """Run a plan in `run_dir`; `report` makes the page of a run whose plan is complete.

    `start` forces that step and those after it, `until` ends after a step. Raises the error of the
    first step that fails, with its exit code; UsageError if another run holds the folder.
    """
    first, last = _window(plan, start, until)
    records: list[StageRecord] = []
    ran: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing(run_dir))
        run_dir.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_alone(run_dir))
        journal = stack.enter_context(Journal(run_dir))

        def tell(event: Event) -> None:
            journal.add(event)
            emit(event)

        clear_partials(run_dir)
        version = llamacpp_version()
        resolved = plan.resolved(run_dir)[: last + 1]
        for index, (step, options) in enumerate(resolved):
            journal.stage = step.id
            _check_needs(step, options)
            _fetch_branches(options, tell)
            options = _pinned(options)
            key = cache.key_of(step.stage, options, version, tell)
            record = cache.finished(step.stage, options, key.key, tell) if index < first else None
            if record:
                tell(StageEnded(step.id, "cached", record.seconds))
            else:
                if not ran:
                    _warn_of_space(run_dir, tell)
                prepare(options.out, key.key, fresh=index >= first)
                record = execute(step, options, key, tell, launch)
                ran.append(step.id)
            records.append(record)
            _write_manifest(plan, run_dir, records, version, again=bool(ran))
        journal.stage = ""
        page = run_dir / REPORT
        if last + 1 < len(plan.steps):
            return Outcome(run_dir, tuple(records), tuple(ran), None)
        # A run that was stopped before its page leaves that of an earlier one.
        stale = page.is_file() and page.stat().st_mtime_ns < (run_dir / manifest.NAME).stat().st_mtime_ns
        if report and (ran or stale or not page.is_file()):
            page = report(run_dir, tell)
        if ran:
            # Files that had just been written were hashed but not remembered; now they have settled.
            for (step, options), record in zip(resolved, records, strict=True):
                cache.finished(step.stage, options, record.key, tell)
        return Outcome(run_dir, tuple(records), tuple(ran), page if page.is_file() else None)


def preview(plan: Plan, run_dir: Path, *, start: str | None = None, until: str | None = None) -> list[Preview]:
    """What `run` would do now. Reads and hashes inputs; writes, fetches and starts nothing."""
    first, last = _window(plan, start, until)
    version = llamacpp_version()
    result: list[Preview] = []
    stale: set[str] = set()
    for index, (step, options) in enumerate(plan.resolved(run_dir)):
        action: Action = "skip" if index > last else "run"
        if index < first and index <= last and not any(need.step in stale for need in step.needs.values()):
            action = _action(step, options, version)
        if action != "cached":
            stale.add(step.id)
        result.append(Preview(step.id, build(step.stage, options), action, step.stage.output_paths(options)))
    return result


def _action(step: Step, options: StageOptions, version: str) -> Action:
    try:
        key = cache.key_of(step.stage, options, version, silent).key
    except PillmError:
        return "run"  # an input is missing or broken: running it will tell
    if cache.finished(step.stage, options, key, silent):
        return "cached"
    unfinished = started_with(options.out) == key and cache.read_record(options.out) is None
    return "resume" if unfinished else "run"


def llamacpp_version() -> str:
    """The version that the stages will use: the one that is there, else the one that will be built."""
    if found := install.locate():
        return found.version
    return ".".join(map(str, pin.VERSION)) + f" ({pin.COMMIT})"


def _window(plan: Plan, start: str | None, until: str | None) -> tuple[int, int]:
    """Index of the first forced step (past the end: none) and of the last step to run."""
    ids = [step.id for step in plan.steps]
    for flag, name in (("--from", start), ("--until", until)):
        if name is not None and name not in ids:
            raise UsageError(
                f"{flag} {name}: the profile has no such stage{did_you_mean(name, ids)}", f"stages: {', '.join(ids)}"
            )
    first = ids.index(start) if start is not None else len(ids)
    last = ids.index(until) if until is not None else len(ids) - 1
    if start is not None and first > last:
        raise UsageError(f"--from {start} comes after --until {until}", f"stages run in this order: {', '.join(ids)}")
    return first, last


@contextlib.contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Hold the run's folder; the kernel gives it back however this process ends."""
    with (run_dir / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UsageError(
                f"{run_dir}: another run is at work here (process {holder})",
                "wait for it, or choose another folder with --run-dir",
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            # A number that is left behind may be another process's one day.
            file.truncate(0)


def _check_needs(step: Step, options: StageOptions) -> None:
    for (option, index), need in step.needs.items():
        value = getattr(options, option)
        path = Path(str(value if index is None else value[index]))
        if not path.exists():
            raise UsageError(
                f"{step.id}: ${{{need.step}.{need.output}}} is not there: {need.step} did not make it",
                f"give {need.step} the options that make it, or leave {option} out",
            )


def _fetch_branches(options: StageOptions, tell: Emit) -> None:
    """Fetch hub models that are named by a branch and were never fetched.

    Their commit becomes part of the cache key; a key with a branch's name would not be the key of the
    same run a minute later.
    """
    for name in marks(type(options), ModelReference):
        value = getattr(options, name)
        if value and isinstance(refs.parse(value), refs.HubRef):
            known = refs.parse(refs.identity(value))
            if isinstance(known, refs.HubRef) and known.commit is None:
                refs.resolve(value, tell)


def _pinned(options: StageOptions) -> StageOptions:
    """The options with branches as the commits that the cache key names, so that a stage cannot get another one."""
    commits = {
        name: refs.identity(value)
        for name in marks(type(options), ModelReference)
        if (value := getattr(options, name)) and isinstance(refs.parse(value), refs.HubRef)
    }
    return options.model_copy(update=commits) if commits else options


def _write_manifest(plan: Plan, run_dir: Path, records: list[StageRecord], version: str, *, again: bool) -> None:
    """Write the manifest after something ran, or where it does not tell of the same steps."""
    with contextlib.suppress(UsageError):
        before = manifest.read(run_dir).stages
        told = before if len(records) == len(plan.steps) else before[: len(records)]
        if not again and told == tuple(records):
            return
    manifest.write(
        run_dir,
        RunManifest(
            name=plan.name,
            description=plan.description,
            profile=str(plan.path),
            profile_sha256=plan.sha256,
            overrides=tuple(map(redact, plan.overrides)),
            versions=manifest.versions(version),
            hardware=manifest.hardware(),
            stages=tuple(records),
            complete=len(records) == len(plan.steps),
        ),
    )


def _warn_of_space(run_dir: Path, tell: Emit) -> None:
    free = shutil.disk_usage(run_dir).free
    if free < _LITTLE_SPACE:
        message = f"only {free / 2**30:.1f} GiB are free in {run_dir}; models and checkpoints may need more"
        tell(Log(message, "warning"))
