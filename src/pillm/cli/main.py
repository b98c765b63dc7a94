"""`pillm`: the command line. Finds the command, and turns whatever goes wrong into an exit code."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from cyclopts import App

from pillm import __version__
from pillm.cli.failures import tell
from pillm.cli.screen import Screen
from pillm.pipeline.stages import COMMANDS, GROUPS

if TYPE_CHECKING:
    from pillm.pipeline.stages import Stage

_HELP = """From a dataset and a big teacher model to a small language model on your Raspberry Pi.

Start with: pillm run quickstart"""

# Places of the commands, so that `--help` imports none of them.
_COMMANDS = {
    "run": ("pillm.cli.run:run", "Run a profile: every stage that is not up to date"),
    "report": ("pillm.cli.run:report", "Make a run's report page again"),
    "ui": ("pillm.cli.ui:ui", "Forms, runs and dashboards in the terminal"),
    "doctor": ("pillm.cli.doctor:doctor", "Say what is here, what is missing, and how to get it"),
}
_GROUPS = {
    "profile": (
        "Profiles: which stages run, with which options",
        {
            "list": ("pillm.cli.profiles:list_profiles", "Profiles that can be run by name"),
            "show": ("pillm.cli.profiles:show", "Print a profile"),
            "validate": ("pillm.cli.profiles:validate", "Check profiles and say all that is wrong with them"),
            "schema": ("pillm.cli.profiles:schema", "Print the JSON Schema of profiles, for editors"),
            "new": ("pillm.cli.profiles:new", "Write a profile with every option and its default"),
        },
    ),
    "models": (
        "Models and where they are on this machine",
        {"resolve": ("pillm.cli.models:resolve", "Fetch a model if need be, and print its path")},
    ),
}


def main(argv: Sequence[str] | None = None, table: Mapping[str, Stage] = COMMANDS) -> int:
    """Run a command line (default: the process's own) over a stage table; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    screen = Screen(json="--json" in argv, verbose="--verbose" in argv)
    # So that ending a run from outside, or closing its terminal, does what Ctrl-C does: children end, too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has set another
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, signal.default_int_handler)
    try:
        # Help and version are the only words that cyclopts itself prints, and they end like this.
        _app(argv, table, screen)(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except (Exception, KeyboardInterrupt) as error:
        return tell(error, argv, screen)
    return 0


def _app(argv: Sequence[str], table: Mapping[str, Stage], screen: Screen) -> App:
    """The commands. Only the one that is asked for is built, since each needs its imports."""
    app = App(
        name="pillm",
        help=_HELP,
        version=f"pillm {__version__}",
        help_format="plaintext",
        usage="Usage: pillm COMMAND [OPTIONS]",
        suppress_keyboard_interrupt=False,
    )
    asked = argv[0] if argv else ""
    for name, (where, about) in _COMMANDS.items():
        app.command(_loaded(where, screen) if name == asked else _unasked, name=name, help=about, group="Commands")
    groups = {
        name: App(name=name, help=about, help_format="plaintext", group="Commands") for name, about in GROUPS.items()
    }
    # In the table's order, which is the order in which people use them.
    asked_stage = next(
        (stage for count in (2, 1) for stage in table.values() if stage.words == tuple(argv[:count])), None
    )
    for place, stage in enumerate(table.values()):
        if stage.name in groups and not stage.group:
            # Other commands stand below this stage's name: `pillm bench compare` beside `pillm bench MODEL`.
            head = groups[stage.name]
            head.help, head.group, head.sort_key = stage.summary, "Stages", place
            if stage is asked_stage:
                from pillm.cli.stages import command_of, usage_of

                head.help, head.usage = stage.options.__doc__ or "", usage_of(stage)
                head.default(command_of(stage, screen))
            continue
        parent = groups[stage.group] if stage.group else app
        title = "Stages" if stage.outputs and not stage.group else "Commands"
        if stage is not asked_stage:
            parent.command(_unasked, name=stage.name, help=stage.summary, group=title, sort_key=place)
            continue
        from pillm.cli.stages import command_of, usage_of

        parent.command(command_of(stage, screen), name=stage.name, help=stage.options.__doc__, usage=usage_of(stage))
    for group in groups.values():
        app.command(group)
    for name, (about, commands) in _GROUPS.items():
        group = App(name=name, help=about, help_format="plaintext", group="Commands")
        for inner, (where, inner_about) in commands.items():
            is_asked = name == asked and inner in argv[1:2]
            group.command(_loaded(where, screen) if is_asked else _unasked, name=inner, help=inner_about)
        app.command(group)
    return app


def _unasked() -> None:
    """Stands for a command that another line would have asked for."""


def _loaded(where: str, screen: Screen) -> Callable[..., None]:
    from importlib import import_module

    module, _, name = where.partition(":")
    make: Callable[[Screen], Callable[..., None]] = getattr(import_module(module), name)
    return make(screen)
