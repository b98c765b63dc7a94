"""`pillm profile`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pillm.cli.screen import Screen
from pillm.core.artifacts import write_atomic
from pillm.core.errors import ProfileError, UsageError, writing
from pillm.core.findings import Finding
from pillm.pipeline import profile, profile_schema, profiles

Name = Annotated[str, Parameter(help="Name of a profile, or a YAML file", metavar="PROFILE")]


def list_profiles(screen: Screen) -> Callable[..., None]:
    """The command `pillm profile list`."""

    def command() -> None:
        for found in profiles.known():
            screen.result(f"{found.name:<18} {found.description}")
            screen.result(f"{'':<18} {found.path}")

    return command


def show(screen: Screen) -> Callable[..., None]:
    """The command `pillm profile show`."""

    def command(name: Name) -> None:
        path = profiles.find(name)
        screen.say(str(path))
        screen.result(path.read_text("utf-8", errors="replace").rstrip("\n"))

    return command


def validate(screen: Screen) -> Callable[..., None]:
    """The command `pillm profile validate`."""

    def command(*names: Name) -> None:
        if not names:
            raise UsageError("no profile is named", "such as: pillm profile validate quickstart")
        found: list[Finding] = []
        for name in names:
            path = profiles.find(name)
            try:
                plan = profile.load(path)
            except ProfileError as error:
                found += error.findings
            else:
                screen.result(f"{path}: right; runs {', '.join(step.id for step in plan.steps)}")
        if found:
            files = len({finding.file for finding in found})
            raise ProfileError(f"{len(found)} problems in {files} of {len(names)} profiles", found)

    return command


def schema(screen: Screen) -> Callable[..., None]:
    """The command `pillm profile schema`."""

    def command() -> None:
        screen.result(profile_schema.text().rstrip("\n"))

    return command


def new(screen: Screen) -> Callable[..., None]:
    """The command `pillm profile new`."""

    def command(
        name: Annotated[str, Parameter(help="Name of the new profile")],
        *,
        base: Annotated[str, Parameter(name="--from", metavar="PROFILE", help="Profile to start from")] = "quickstart",
        out: Annotated[Path | None, Parameter(help="File to write [default: profiles/NAME.yaml]")] = None,
    ) -> None:
        if not profile.NAME.fullmatch(name):
            raise UsageError(f"{name}: not a name", "use letters, digits, points, dashes and underscores")
        path = out or profiles.HERE / f"{name}.yaml"
        text = profiles.commented(name, profiles.find(base), path.parent)
        if path.exists():
            raise UsageError(f"{path}: is there already", "choose another name, or another file with --out")
        with writing(path):
            write_atomic(path, text)
            # Editors find it beside the profile, by the profile's first line.
            write_atomic(path.parent / profile_schema.FILE, profile_schema.text())
        screen.result(str(path))

    return command
