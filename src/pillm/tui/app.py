"""The application: themes, keys of every screen, and what is remembered between starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen

from pillm.core.paths import cache_dir
from pillm.pipeline.stages import COMMANDS
from pillm.tui import state
from pillm.tui.home.screen import HomeScreen
from pillm.tui.theme import DARK, PLAIN, THEMES

if TYPE_CHECKING:
    from textual.command import Provider

    from pillm.tui.forms.screen import FormScreen
    from pillm.tui.home.entries import Entry


def _palette() -> type[Provider]:
    from pillm.tui.home.palette import Palette

    return Palette


class PillmApp(App[None]):
    """The terminal UI. `start` is the first screen; `run` is the folder of a run to show at once."""

    TITLE = "pillm"
    COMMANDS: ClassVar[set[Any]] = {_palette}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Help", show=False),
        Binding("ctrl+q", "quit", "Quit", show=False),
    ]
    CSS = """
    Footer { height: auto; max-height: 2; }
    Toast { max-width: 90; }
    """

    def __init__(
        self,
        start: Literal["home", "dashboard"] = "home",
        run: Path | None = None,
        *,
        remembered: Path | None = None,
    ) -> None:
        super().__init__()
        self.animation_level = "none"
        # Classes of every screen, by its size.
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]
        self.VERTICAL_BREAKPOINTS = [(0, "-flat"), (12, "-low"), (20, "-middle"), (30, "-tall")]
        self.first, self.run_dir = start, run
        self.remembered = remembered or cache_dir() / state.NAME
        self.kept = state.load(self.remembered)
        self.home: HomeScreen | None = None
        self.forms: dict[str, FormScreen] = {}
        for theme in THEMES:
            self.register_theme(theme)
        known = self.theme_names()
        self.theme = PLAIN if "NO_COLOR" in os.environ else self.kept.theme if self.kept.theme in known else DARK

    @property
    def crash(self) -> Exception | None:
        """What ended the app, if that was a fault in it: for the command line, which writes a log and says where."""
        return self._exception

    def _fatal_error(self) -> None:
        # As the base does, but without its traceback.
        self._close_messages_no_wait()

    def theme_names(self) -> list[str]:
        """The themes that can be chosen, ours first."""
        ours = [theme.name for theme in THEMES]
        return [*ours, *sorted(name for name in self.available_themes if name not in ours)]

    def on_mount(self) -> None:
        """Home is below whatever is asked for first."""
        self.home = HomeScreen(self.kept.panel)
        self.push_screen(self.home)
        if self.first == "dashboard":
            self.call_after_refresh(self.action_dashboard)
        if self.run_dir is not None:
            self.call_after_refresh(self.open_run, self.run_dir)

    def open_entry(self, entry: Entry) -> None:
        """Open what was chosen on the home screen or in the palette."""
        if entry.kind == "profile":
            from pillm.tui.profiles.screen import ProfileScreen

            self.push_screen(ProfileScreen(Path(entry.key)))
        elif entry.kind == "command":
            self.open_form(entry.key)
        elif entry.kind == "run":
            self.open_run(Path(entry.key))
        else:
            from pillm.tui.home.take import TakeModal

            def took(chosen: Any) -> None:
                if chosen is not None:
                    stage, field = chosen
                    self.open_form(stage.name, {field: entry.key})

            self.push_screen(TakeModal(entry), took)

    def open_form(self, name: str, values: dict[str, Any] | None = None) -> None:
        """The form of a stage or tool, with what stood in it last."""
        from pillm.tui.forms.screen import FormScreen

        stage = COMMANDS[name]
        words = "-".join(stage.words)
        self._keep_forms()
        screen = FormScreen(stage, {**self.kept.forms.get(words, {}), **(values or {})})

        self.forms[words] = screen
        self.push_screen(screen)

    def open_run(self, run_dir: Path) -> None:
        """A run, going or gone."""
        from pillm.tui.runs.screen import show

        show(self, run_dir)

    def action_dashboard(self) -> None:
        """Benchmarks, quality and coverage."""
        from pillm.tui.dashboard.screen import DashboardScreen

        if not isinstance(self.screen, DashboardScreen):
            self.push_screen(DashboardScreen())

    def action_home(self) -> None:
        """Back to the home screen."""
        while len(self.screen_stack) > 1 and not isinstance(self.screen, HomeScreen):
            self.pop_screen()

    def action_help(self) -> None:
        """What the screen is for, and its keys."""
        from pillm.tui.keys import HelpScreen, help_of

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(help_of(cast("Screen[Any]", self.screen))))

    def use_theme(self, name: str) -> None:
        """Take a theme, now and at the next start."""
        self.theme = self.kept.theme = name

    def _keep_forms(self) -> None:
        self.kept.forms |= {words: dict(screen.values) for words, screen in self.forms.items()}

    async def action_quit(self) -> None:
        """Leave. Runs go on."""
        self._remember()
        self.exit()

    def on_unmount(self) -> None:
        """A terminal that is closed leaves the same behind as a quit."""
        self._remember()

    def _remember(self) -> None:
        self._keep_forms()
        self.kept.panel = self.home.panel if self.home else self.kept.panel
        state.save(self.kept, self.remembered)
