"""`pillm doctor`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
from cyclopts import Parameter

from pillm.cli.screen import Screen
from pillm.cli.stages import Json
from pillm.core.errors import MissingError
from pillm.pipeline import doctor as checks

_MARKS = {"ok": "ok", "note": "note", "missing": "MISSING"}


def doctor(screen: Screen) -> Callable[..., None]:
    """The command `pillm doctor`."""

    def command(
        *,
        online: Annotated[
            bool,
            Parameter(negative="", show_default=False, help="Also see whether the package index and the hub answer"),
        ] = False,
        json: Json = False,
    ) -> None:
        found = checks.examine(online=online)
        gone = [check.name for check in found if check.state == "missing"]
        if json:
            screen.result(msgspec.json.encode({"ok": not gone, "checks": found}).decode())
        else:
            for check in found:
                screen.result(f"{_MARKS[check.state]:<8} {check.name:<14} {check.value}")
                if check.hint:
                    screen.result(f"{'':<24}{check.hint}")
        if gone:
            raise MissingError(f"missing: {', '.join(gone)}", "each line above says how to get it")

    return command
