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

_LAST_PORT = 65535


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
        if not 1 <= port <= _LAST_PORT:
            raise UsageError(f"--port {port}: a port is a number from 1 to {_LAST_PORT}", "such as --port=8001")
        if plain:
            more = {"--run": run is not None, "--dashboard": dashboard, "--serve": serve}
            if extra := [flag for flag, given in more.items() if given]:
                raise UsageError(
                    f"--plain goes without {' and '.join(extra)}: plain lines show neither screens nor curves",
                    "leave one of them out",
                )
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
        from pillm.tui.serve import address, new_token, serve
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    words = [sys.executable, "-m", "pillm", "ui", *(["--dashboard"] if dashboard else [])]
    words += [f"--run={run}"] if run else []
    token = new_token()
    screen.say(f"{address(port, token)} (Ctrl-C ends it)")
    serve(words, port, token)


def _missing(error: ModuleNotFoundError) -> MissingError:
    return MissingError(f"{error.name} is not installed", "install it with: pip install 'pi-llm-optimizer[ui]'")
