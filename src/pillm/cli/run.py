"""`pillm run` and `pillm report`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pillm.cli.screen import Screen
from pillm.cli.stages import DryRun, Json, Verbose
from pillm.core.amounts import amount, duration
from pillm.core.artifacts import artifact_of
from pillm.core.events import Emit, Made
from pillm.models.redact import redact
from pillm.pipeline import engine, profiles
from pillm.pipeline.profile import Plan, load


def run(screen: Screen) -> Callable[..., None]:
    """The command `pillm run`."""

    def command(
        profile: Annotated[str, Parameter(help="Name of a profile, or a YAML file", metavar="PROFILE")],
        *,
        run_dir: Annotated[Path | None, Parameter(help="Folder of the run [default: runs/NAME]")] = None,
        start: Annotated[
            str | None, Parameter(name="--from", metavar="STAGE", help="Run this stage and those after it again")
        ] = None,
        until: Annotated[str | None, Parameter(metavar="STAGE", help="Stop after this stage")] = None,
        set_: Annotated[
            tuple[str, ...],
            Parameter(name="--set", negative="", metavar="STAGE.OPTION=VALUE", help="Change an option of the profile"),
        ] = (),
        dry_run: DryRun = False,
        json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        screen.json, screen.verbose = json, verbose
        plan = load(profiles.find(profile), set_)
        folder = run_dir or engine.RUNS / plan.name
        if dry_run:
            _show(plan, folder, start, until, screen)
            return
        outcome = engine.run(plan, folder, screen.emit, start=start, until=until, report=_report)
        screen.finish({"ran": len(outcome.ran), "run_dir": str(folder)})
        if not json:
            _tell(outcome, screen)

    return command


def report(screen: Screen) -> Callable[..., None]:
    """The command `pillm report`."""

    def command(
        run_dir: Annotated[Path, Parameter(help="Folder of a run, such as runs/quickstart")],
        *,
        json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        screen.json, screen.verbose = json, verbose
        page = _report(run_dir, screen.emit)
        if json:
            screen.emit(Made("report", artifact_of(page)))
        screen.finish({"report": str(page)})
        if not json:
            screen.result(str(page))

    return command


def _report(run_dir: Path, emit: Emit) -> Path:
    # The page's plots import matplotlib; a run with nothing to do must not wait for it.
    from pillm.pipeline.report import build

    return build(run_dir, emit)


def _tell(outcome: engine.Outcome, screen: Screen) -> None:
    for record in outcome.records:
        state = "ran" if record.id in outcome.ran else "unchanged"
        memory = amount(record.peak_memory_bytes, "B") if record.peak_memory_bytes else ""
        screen.result(f"{record.id:<12} {state:<10} {duration(record.seconds):>12} {memory:>10}")
    screen.result()
    if outcome.report:
        screen.result(f"report: {outcome.report}")
    else:
        screen.result(f"results so far: {outcome.run_dir}")


def _show(plan: Plan, folder: Path, start: str | None, until: str | None, screen: Screen) -> None:
    rows: list[dict[str, Any]] = []
    for item in engine.preview(plan, folder, start=start, until=until):
        command = redact(str(item.command))
        rows.append({"stage": item.id, "action": item.action, "command": command})
        if not screen.json:
            screen.result(f"# {item.id}: {engine.WORDS[item.action]}")
            screen.result(command)
    if screen.json:
        import msgspec

        screen.result(msgspec.json.encode({"run_dir": str(folder), "stages": rows}).decode())
