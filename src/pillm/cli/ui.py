"""`pillm ui`: the terminal UI, in a terminal, in a browser, or as plain text."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pillm.cli.screen import Screen
from pillm.core.errors import MissingError, UsageError


def ui(screen: Screen) -> Callable[..., None]:
    """The command `pillm ui`."""

    def command(
        *,
        dashboard: Annotated[bool, Parameter(negative="", show_default=False, help="Begin with the dashboard")] = False,
        run: Annotated[
            Path | None, Parameter(metavar="DIR", help="Show this run, such as runs/quickstart, going or gone")
        ] = None,
        serve: Annotated[
            bool, Parameter(negative="", show_default=False, help="Serve it to a browser on this machine")
        ] = False,
        port: Annotated[int, Parameter(help="Port for --serve")] = 8000,
        plain: Annotated[
            bool,
            Parameter(
                negative="", show_default=False, help="Plain lines and questions, for screen readers and dumb terminals"
            ),
        ] = False,
    ) -> None:
        if run is not None and not run.is_dir():
            raise UsageError(f"{run}: there is no such run", "runs are folders, such as runs/quickstart; see: pillm ui")
        if plain:
            from pillm.tui.plain import main

            main()
            return
        if serve:
            _serve(screen, dashboard, run, port)
            return
        # In a browser, the server behind it sets the driver, and there is no terminal.
        if "TEXTUAL_DRIVER" not in os.environ and not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise UsageError(
                "this is no terminal", "pillm ui --plain works with plain lines; pillm ui --serve in a browser"
            )
        try:
            from pillm.tui.app import PillmApp
        except ModuleNotFoundError as error:
            raise _missing(error) from error
        app = PillmApp("dashboard" if dashboard else "home", run)
        app.run()
        if app.crash is not None:
            raise app.crash

    return command


def _serve(screen: Screen, dashboard: bool, run: Path | None, port: int) -> None:
    """Serve the UI on loopback until Ctrl-C."""
    try:
        from pillm.tui.serve import LOOPBACK, serve
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    words = [sys.executable, "-m", "pillm", "ui", *(["--dashboard"] if dashboard else [])]
    words += [f"--run={run}"] if run else []
    screen.say(f"http://{LOOPBACK}:{port} (Ctrl-C ends it)")
    serve(words, port)


def _missing(error: ModuleNotFoundError) -> MissingError:
    return MissingError(f"{error.name} is not installed", "install it with: pip install 'pi-llm-optimizer[ui]'")
