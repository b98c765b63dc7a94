"""What the screen of a profile asks: which stage to add, where to save."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Label, OptionList
from textual.widgets.option_list import Option

from pillm.core.errors import PillmError
from pillm.pipeline.stages import STAGES, Stage
from pillm.tui.profiles import plan
from pillm.tui.profiles.plan import Shown


class AddStep(ModalScreen[tuple[str, Stage] | None]):
    """Which stage to add to a profile, and under which id."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "leave", "Back")]
    DEFAULT_CSS = """
    AddStep { align: center middle; }
    AddStep > Vertical { width: 80%; max-width: 90; height: auto; max-height: 90%; background: $surface; padding: 0 1; }
    AddStep OptionList { height: auto; max-height: 14; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, shown: Shown) -> None:
        super().__init__()
        self._shown = shown
        self._stages = list(STAGES.values())

    def compose(self) -> ComposeResult:
        """The stages, and the new one's id."""
        with Vertical():
            yield Label("Add a stage (Enter):")
            yield OptionList(
                *(Option(f"{stage.name:<10} {stage.summary}") for stage in self._stages), markup=False, compact=True
            )
            yield Label("Its id in the profile (Tab):")
            # What the profile's reader takes for an id.
            yield Input(restrict=r"([A-Za-z0-9][A-Za-z0-9_-]*)?", compact=True)
            yield Footer()

    def on_mount(self) -> None:
        """Choose at once."""
        self.query_one(OptionList).focus()

    @on(OptionList.OptionHighlighted)
    def _named(self, event: OptionList.OptionHighlighted) -> None:
        self.query_one(Input).value = plan.free_id(self._shown, self._stages[event.option_index])

    @on(OptionList.OptionSelected)
    @on(Input.Submitted)
    def _submit(self) -> None:
        step, place = self.query_one(Input).value, self.query_one(OptionList).highlighted
        if place is None or not step:
            self.notify("a stage has an id", severity="error")
        elif step in (line.id for line in self._shown.steps):
            self.notify(f"{step} is in the profile already", severity="error", markup=False)
        else:
            self.dismiss((step, self._stages[place]))

    def action_leave(self) -> None:
        """Leave."""
        self.dismiss(None)


class SaveProfile(ModalScreen[Path | None]):
    """Where to save a profile. Its comments are kept; over its own file only what was changed is written."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "leave", "Back")]
    DEFAULT_CSS = """
    SaveProfile { align: center middle; }
    SaveProfile > Vertical { width: 80%; max-width: 90; height: auto; background: $surface; padding: 1 2; }
    """

    def __init__(self, shown: Shown, text: str, target: Path, words: str = "Save the profile as (Enter):") -> None:
        super().__init__()
        self._shown, self._text, self._target, self._words = shown, text, target, words

    def compose(self) -> ComposeResult:
        """The file's name."""
        with Vertical():
            yield Label(self._words, markup=False)
            yield Input(str(self._target), compact=True)
            yield Footer()

    def on_mount(self) -> None:
        """Type the name at once."""
        self.query_one(Input).focus()

    @on(Input.Submitted)
    def _submit(self, event: Input.Submitted) -> None:
        try:
            self.dismiss(plan.save(self._shown, self._text, Path(event.value).expanduser()))
        except (PillmError, OSError) as error:
            self.notify(str(error), severity="error", timeout=8)

    def action_leave(self) -> None:
        """Leave without saving."""
        self.dismiss(None)
