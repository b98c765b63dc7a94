"""`pillm models`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from cyclopts import Parameter

from pillm.cli.screen import Screen
from pillm.cli.stages import Json, Verbose


def resolve(screen: Screen) -> Callable[..., None]:
    """The command `pillm models resolve`."""

    def command(
        reference: Annotated[
            str, Parameter(help="hf:org/name@revision, pkg:distribution, a folder or a .gguf file", metavar="REF")
        ],
        *,
        json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        from pillm.models import refs

        screen.json, screen.verbose = json, verbose
        path = refs.resolve(reference, screen.emit)
        screen.finish({"path": str(path), "identity": refs.identity(reference)})
        if not json:
            screen.result(str(path))

    return command
