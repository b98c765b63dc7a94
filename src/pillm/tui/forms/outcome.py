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
from pillm.core.yaml_lines import Document
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


def standing(path: Path) -> str | None:
    """The text of a profile, with its line ends as they are; None if there is none. Raises UsageError."""
    try:
        return path.read_bytes().decode("utf-8") if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error


def replaced(text: str | None, stage: Stage) -> str:
    """The section of a stage that stands in a profile already and would be replaced; empty if there is none."""
    data = Document("", (text or "").encode()).data
    stages = data.get("stages") if isinstance(data, dict) else None
    section = stages.get(stage.name) if isinstance(stages, dict) else None
    if not isinstance(section, dict):
        return ""
    lines = [f"    {name}: {yaml_text(value)}" for name, value in section.items()]
    return "\n".join([f"  {stage.name}:", *lines])


def save(path: Path, stage: Stage, options: Options, values: Mapping[str, Any], text: str | None) -> str:
    """Put the section of a stage into a profile, which is made if it is not there. Says what was done.

    `text` is what stood in it when it was looked at. Raises UsageError where the file is no profile that can be
    changed, or is not any more as it was.
    """
    section = yaml_values(options, values)
    if standing(path) != text:
        raise UsageError(f"{path}: was changed by somebody else just now", "look at it, then save again")
    if text is not None:
        words = f"{path}: has the section {stage.name}"
    else:
        if path.suffix not in (".yaml", ".yml"):
            raise UsageError(f"{path}: a profile's name ends in .yaml")
        text = f"profile: {VERSION}\nname: {yaml_text(path.stem)}\nstages:\n  {stage.name}:\n"
        words = f"{path}: made, with the section {stage.name}"
    with writing(path):
        write_atomic(path.resolve(), put(text, stage.name, section))
    return words


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
        self._seen: tuple[Path, str | None] | None = None
        """The file whose section would be replaced, and its text, once that was shown."""

    def compose(self) -> ComposeResult:
        """The section, and where to put it."""
        with Vertical():
            with VerticalScroll():
                yield Static(self._text, markup=False)
                yield Static(id="replaced", markup=False)
            yield Label("Put it into this profile (made if it is not there), Enter:")
            yield Input(str(profiles.HERE / "mine.yaml"), compact=True)
            yield Footer()

    def on_mount(self) -> None:
        """Type the file's name at once."""
        self.query_one(Input).focus()

    @on(Input.Submitted)
    def _save(self, event: Input.Submitted) -> None:
        path = Path(event.value).expanduser()
        self._write(path, self._seen if self._seen and self._seen[0] == path else None)

    @on(Input.Changed)
    def _renamed(self) -> None:
        self._seen = None
        self.query_one("#replaced", Static).update("")

    def _ask(self, path: Path, text: str | None, old: str) -> None:
        self._seen = (path, text)
        words = f"\n{path} has this section already; Enter again replaces it, Escape does not:\n\n{old}"
        self.query_one("#replaced", Static).update(words)
        self.query_one("#replaced").scroll_visible(animate=False)

    @work(thread=True, exclusive=True)
    def _write(self, path: Path, seen: tuple[Path, str | None] | None) -> None:
        try:
            text = standing(path) if seen is None else seen[1]
            old = replaced(text, self._stage)
            if seen is None and old:
                self.app.call_from_thread(self._ask, path, text, old)
                return
            words = save(path, self._stage, self._options, self._values, text)
        except (PillmError, OSError) as error:
            # What was shown is not what stands there: the next Enter looks again.
            self._seen = None
            self.app.call_from_thread(self.notify, str(error), severity="error", timeout=10)
            return
        self.app.call_from_thread(self.notify, words)
        self.app.call_from_thread(self.dismiss)

    def action_copy(self) -> None:
        """Copy the section."""
        self.app.copy_to_clipboard(self._text)
        self.notify("the section is in the clipboard")
