"""What a form leads to besides a run: the words of a dry run, and a section of YAML to copy or to save."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Label, Static

from pillm.core.artifacts import write_atomic
from pillm.core.command import Command
from pillm.core.errors import PillmError, UsageError, writing
from pillm.core.options import Options
from pillm.pipeline import profiles
from pillm.pipeline.pipeline_ops import launcher
from pillm.pipeline.profile import VERSION
from pillm.pipeline.stages import Stage
from pillm.tui.forms.values import yaml_text, yaml_values
from pillm.tui.profiles.edit import put

_LONGEST_SECONDS = 120


def dry_run(command: Command) -> str:
    """What `--dry-run` prints, with what went wrong below it."""
    asked = launcher(msgspec.structs.replace(command, argv=(*command.argv, "--dry-run")))
    env = {**os.environ, **asked.env}
    try:
        done = subprocess.run(
            asked.argv, env=env, cwd=asked.cwd, capture_output=True, text=True, check=False, timeout=_LONGEST_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_LONGEST_SECONDS} s"
    return f"{done.stdout}{done.stderr}".strip()


def save(path: Path, stage: Stage, options: Options, values: Mapping[str, Any]) -> str:
    """Put the section of a stage into a profile, which is made if it is not there. Says what was done.

    Raises UsageError where the file is no profile that can be changed.
    """
    section = yaml_values(options, values)
    if path.exists():
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read ({error})") from error
        words = f"{path}: has the section {stage.name}"
    else:
        if path.suffix not in (".yaml", ".yml"):
            raise UsageError(f"{path}: a profile's name ends in .yaml")
        text = f"profile: {VERSION}\nname: {yaml_text(path.stem)}\nstages:\n  {stage.name}:\n"
        words = f"{path}: made, with the section {stage.name}"
    with writing(path):
        write_atomic(path, put(text, stage.name, section))
    return words


class TextModal(ModalScreen[None]):
    """Text to read."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q", "app.pop_screen", "Back"), ("c", "copy", "Copy")]
    DEFAULT_CSS = """
    TextModal { align: center middle; }
    TextModal > Vertical { width: 95%; height: 80%; background: $surface; padding: 0 1; }
    TextModal Label { text-style: bold; }
    """

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        """A title and the text."""
        with Vertical():
            yield Label(self._title, markup=False)
            with VerticalScroll():
                yield Static(self._text, markup=False)
            yield Footer()

    def action_copy(self) -> None:
        """Copy the text."""
        self.app.copy_to_clipboard(self._text)
        self.notify("copied")


class SaveModal(ModalScreen[None]):
    """A section of a profile: copy it, or name the profile to put it into (a new one is made)."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "app.pop_screen", "Back"), ("f8,ctrl+y", "copy", "Copy")]
    DEFAULT_CSS = """
    SaveModal { align: center middle; }
    SaveModal > Vertical { width: 90%; height: 80%; max-width: 110; background: $surface; padding: 0 1; }
    SaveModal VerticalScroll { height: 1fr; }
    """

    def __init__(self, stage: Stage, options: Options, values: Mapping[str, Any], text: str) -> None:
        super().__init__()
        self._stage, self._options, self._values, self._text = stage, options, values, text

    def compose(self) -> ComposeResult:
        """The section, and where to put it."""
        with Vertical():
            with VerticalScroll():
                yield Static(self._text, markup=False)
            yield Label("Put it into this profile (made if it is not there), Enter:")
            yield Input(str(profiles.HERE / "mine.yaml"), compact=True)
            yield Footer()

    def on_mount(self) -> None:
        """Type the file's name at once."""
        self.query_one(Input).focus()

    @on(Input.Submitted)
    def _save(self, event: Input.Submitted) -> None:
        self._write(Path(event.value).expanduser())

    @work(thread=True, exclusive=True)
    def _write(self, path: Path) -> None:
        try:
            words = save(path, self._stage, self._options, self._values)
        except (PillmError, OSError) as error:
            self.app.call_from_thread(self.notify, str(error), severity="error", timeout=10)
            return
        self.app.call_from_thread(self.notify, words)
        self.app.call_from_thread(self.dismiss)

    def action_copy(self) -> None:
        """Copy the section."""
        self.app.copy_to_clipboard(self._text)
        self.notify("the section is in the clipboard")
