"""A profile: its plan as a graph of stages, options to change, and its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import msgspec
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Key
from textual.screen import Screen
from textual.widgets import Footer, Label, OptionList, Static
from textual.widgets.option_list import Option

from pillm.core.errors import PillmError
from pillm.pipeline.stages import STAGES, Stage
from pillm.tui.profiles import plan
from pillm.tui.profiles.ask import AddStep, SaveProfile
from pillm.tui.profiles.plan import SIGNS, WORDS, Shown, StepLine

_STYLES = {"cached": "$text-success", "resume": "$text-warning", "run": "$text-accent"}


class StepList(OptionList):
    """The steps of a plan."""

    BINDINGS: ClassVar[list[BindingType]] = [("enter", "select", "Edit")]


class ProfileScreen(Screen[None]):
    """A profile's plan: each line is a stage, and the rails say whose outputs it reads.

    ✓ is finished and unchanged, … goes on where it was stopped, ▶ would run. Enter changes the options of a stage,
    a adds one, x takes one out; what is saved keeps the file's comments and everything else as it was.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        ("r,f5", "run", "Run"),
        # The footer of a narrow terminal has room for what is needed most; help lists all.
        Binding("f", "run_from", "Run again from here", show=False),
        Binding("u", "run_until", "Run until here", show=False),
        ("s", "stop", "Stop"),
        Binding("w", "watch", "Watch the run", show=False),
        ("a", "add", "Add"),
        ("x,delete", "remove", "Remove"),
        ("ctrl+s", "save", "Save"),
        Binding("c,f8", "copy", "Copy the command", show=False),
        ("question_mark,f1", "app.help", "Help"),
        ("escape", "back", "Back"),
    ]
    DEFAULT_CSS = """
    ProfileScreen #title { width: 100%; height: 1; padding: 0 1; background: $primary; color: $text; text-style: bold; }
    ProfileScreen #about { height: auto; max-height: 3; padding: 0 1; color: $text-muted; }
    ProfileScreen OptionList {
        height: 1fr; border: none; padding: 0 1; background: transparent; text-wrap: nowrap; text-overflow: ellipsis;
    }
    ProfileScreen OptionList:focus { border: none; }
    ProfileScreen #wrong { height: auto; padding: 0 1; color: $text-error; display: none; }
    ProfileScreen.-broken #wrong { display: block; height: 1fr; overflow-y: auto; }
    ProfileScreen.-broken OptionList { display: none; }
    ProfileScreen #command { height: auto; max-height: 5; background: $panel; padding: 0 1; }
    ProfileScreen.-flat #about, ProfileScreen.-flat #command { display: none; }
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.shown: Shown | None = None
        self.text = ""
        self.dirty = False
        self._warned = False
        """Whether leaving without the changes was asked for just now."""

    def compose(self) -> ComposeResult:
        """Title, graph, the command of the stage that is marked."""
        yield Label(self.path.stem, id="title", markup=False)
        yield Static(id="about", markup=False)
        yield Static(id="wrong", markup=False)
        yield StepList(id="steps", markup=False)
        yield Static(id="command", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Read the profile beside."""
        self._read()

    def on_screen_resume(self) -> None:
        """A run may have changed what is cached."""
        if self.shown is not None and not self.dirty:
            self._read()

    def on_screen_suspend(self) -> None:
        """Another screen is shown."""
        self._warned = False

    def on_key(self, event: Key) -> None:
        """Any key but Escape means that the user stays."""
        self._warned = self._warned and event.key == "escape"

    @work(thread=True, exclusive=True)
    def _read(self) -> None:
        try:
            shown = plan.read(self.path)
            self.app.call_from_thread(self._show, shown)
            if shown.steps:
                self.app.call_from_thread(self._show, plan.judged(shown))
        except (PillmError, OSError) as error:
            self.app.call_from_thread(self._broken, f"{error}\n{getattr(error, 'hint', '')}")

    def _broken(self, message: str) -> None:
        if self.is_attached:
            self.query_one("#wrong", Static).update(message)
            self.set_class(self.shown is None, "-broken")
            self.notify(message, severity="error", timeout=10)

    def _show(self, shown: Shown) -> None:
        if not self.is_attached:
            return
        if self.dirty and self.shown is not None:
            # What was read before the change keeps its text: that is what the change was made to.
            shown = msgspec.structs.replace(shown, text=self.shown.text)
        else:
            self.text = shown.text
        self.shown = shown
        self.query_one("#title", Label).update(f"{shown.name}  {shown.path}")
        self.query_one("#about", Static).update(shown.description)
        self.set_class(bool(shown.findings), "-broken")
        self.query_one("#wrong", Static).update("\n".join(map(str, shown.findings)))
        steps = self.query_one(OptionList)
        place = steps.highlighted
        width = max((len(step.id) for step in shown.steps), default=0)
        steps.clear_options()
        words = max((len(WORDS[step.action]) for step in shown.steps), default=0)
        steps.add_options([Option(_line(step, width, words)) for step in shown.steps])
        if shown.steps:
            steps.highlighted = min(place or 0, len(shown.steps) - 1)
            if self.focused is None:
                steps.focus()
        self.refresh_bindings()

    @on(OptionList.OptionHighlighted)
    def _tell(self) -> None:
        step = self._step()
        words = f"$ {step.command}" if step and step.command else ""
        self.query_one("#command", Static).update(words)

    def _step(self) -> StepLine | None:
        place = self.query_one(OptionList).highlighted
        if self.shown is None or place is None or place >= len(self.shown.steps):
            return None
        return self.shown.steps[place]

    @on(OptionList.OptionSelected)
    def _chosen(self) -> None:
        self.action_edit()

    def action_edit(self) -> None:
        """Change the options of the stage that is marked."""
        step = self._step()
        if step is None or self.shown is None:
            return
        try:
            values = plan.values_in(self.text, step.id)
        except PillmError as error:
            self.notify(str(error), severity="error")
            return
        self._edit(step.id, STAGES[step.stage], values, self.shown)

    def _edit(self, step: str, stage: Stage, values: dict[str, Any], shown: Shown) -> None:
        from pillm.tui.forms.screen import FormScreen

        form = FormScreen(stage, values, step=step, files=plan.references(shown, step))
        self.app.push_screen(form, lambda new: self._keep(step, stage, new))

    def _keep(self, step: str, stage: Stage, values: dict[str, Any] | None) -> None:
        if values is None:
            return
        try:
            text = plan.changed(self.text, step, stage, values)
        except (PillmError, ValueError) as error:
            self.notify(str(error), severity="error", timeout=10)
            return
        if text != self.text:
            self.text, self.dirty, self._warned = text, True, False
            self.action_save()

    def action_add(self) -> None:
        """Add a stage: choose it, then fill in its form."""
        if (shown := self._settled()) is None:
            return

        def chosen(new: tuple[str, Stage] | None) -> None:
            if new is not None:
                self._edit(*new, {}, shown)

        self.app.push_screen(AddStep(shown), chosen)

    def action_remove(self) -> None:
        """Take the stage that is marked out of the profile, unless another one reads its outputs."""
        step = self._step()
        if step is None or (shown := self._settled()) is None:
            return
        try:
            text = plan.removed(shown, step.id)
        except PillmError as error:
            self._failed(error)
            return
        # Kept only once it is saved: until then the plan shows the stage.
        words = f"Save the profile without {step.id} as (Enter):"
        self.app.push_screen(SaveProfile(shown, text, plan.target(self.path), words), self._saved)

    def _settled(self) -> Shown | None:
        """The profile, if it is right and all changes are in its file; else a message says what to do first."""
        if self.shown is None or self.shown.findings:
            self.notify("the profile has to be mended first", severity="error")
        elif self.dirty:
            self.notify("save the changes first (ctrl+s)", severity="warning")
        else:
            return self.shown
        return None

    def action_save(self) -> None:
        """Save the profile, under another name where it came with the tool."""
        if self.shown is None:
            return
        self.app.push_screen(SaveProfile(self.shown, self.text, plan.target(self.path)), self._saved)

    def _saved(self, path: Path | None) -> None:
        if path is not None:
            self.path, self.dirty = path, False
            self.notify(f"saved: {path}")
            self._read()
        elif self.dirty:
            self.notify("changes are not saved: ctrl+s saves them", severity="warning")

    def action_run(self) -> None:
        """Run what is not up to date; a run that was stopped goes on."""
        self._run("", "")

    def action_run_from(self) -> None:
        """Run the stage that is marked and those after it, also if they are up to date."""
        if step := self._step():
            self._run(step.id, "")

    def action_run_until(self) -> None:
        """Run up to the stage that is marked."""
        if step := self._step():
            self._run("", step.id)

    def _run(self, start: str, until: str) -> None:
        if shown := self._settled():
            self._start(shown, start, until)

    @work(thread=True, exclusive=True, group="start")
    def _start(self, shown: Shown, start: str, until: str) -> None:
        from pillm.tui.runs import start as starting

        try:
            if starting.at_work(shown.run_dir):
                run_dir = shown.run_dir
                self.app.call_from_thread(self.notify, "it is running already")
            else:
                run_dir = starting.start(plan.run_command(shown, start, until), name=shown.name)
        except (PillmError, OSError) as error:
            self.app.call_from_thread(self._failed, error)
            return
        self.app.call_from_thread(self._watch, run_dir)

    def _failed(self, error: Exception) -> None:
        words = f"{error}\n{getattr(error, 'hint', '')}".strip()
        self.notify(words, severity="error", timeout=10, markup=False)

    def _watch(self, run_dir: Path) -> None:
        self.app.open_run(run_dir)  # type: ignore[attr-defined]

    def action_watch(self) -> None:
        """Show the profile's run."""
        if self.shown is not None and self.shown.run_dir.is_dir():
            self._watch(self.shown.run_dir)
        else:
            self.notify("this profile has no run here yet", severity="warning")

    def action_stop(self) -> None:
        """Stop the profile's run, as Ctrl-C does; it can go on from there."""
        if self.shown is not None:
            self._stop(self.shown.run_dir)

    @work(thread=True, exclusive=True, group="start")
    def _stop(self, run_dir: Path) -> None:
        from pillm.tui.runs.start import stop

        try:
            words = "asked to stop" if stop(run_dir) else "nothing is running"
        except (PillmError, OSError) as error:
            self.app.call_from_thread(self._failed, error)
            return
        self.app.call_from_thread(self.notify, words)

    def action_copy(self) -> None:
        """Copy the command that runs the profile."""
        if self.shown is not None:
            self.app.copy_to_clipboard(str(plan.run_command(self.shown)))
            self.notify(str(plan.run_command(self.shown)))

    def action_back(self) -> None:
        """Leave; with changes that are not saved, only when asked twice in a row."""
        if self.dirty and not self._warned:
            self._warned = True
            self.notify(
                "changes are not saved: ctrl+s saves them; escape again leaves without them", severity="warning"
            )
            return
        self.dismiss(None)


def _line(step: StepLine, width: int, action_width: int) -> Content:
    style = _STYLES.get(step.action, "$text-muted")
    words = WORDS[step.action] or step.about
    return Content.assemble(
        (step.rails, "$text-muted"),
        (f" {SIGNS[step.action]} ", style),
        (f"{step.id:<{width}}  ", "bold"),
        (f"{words:<{action_width}}  " if step.action else "", style),
        (step.about if step.action else words, "$text-muted"),
        (f"  (reads {', '.join(step.needs)})" if step.needs else "", "$text-muted"),
    )
