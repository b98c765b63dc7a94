"""The form of a stage or tool, of a step of a profile, too: fields, what the model says, the command, what to do with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Input, Label, Select, Static

from pillm.core.command import Command
from pillm.core.errors import PillmError
from pillm.pipeline.stages import STAGES, Stage
from pillm.tui.forms.fields import Field, fields, matches
from pillm.tui.forms.rows import ABSENT, FieldRow
from pillm.tui.forms.values import Checked, Values, check, section


class FormScreen(Screen[dict[str, Any] | None]):
    """A form. Every field is an option: what is left empty has its default.

    What you type is judged at once by the same model that judges flags and profiles; the line at the bottom is the
    command that does the same from a shell. Filled in for a step of a profile, the form gives its values back.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        # Before the fields' own keys: a list of lines has meanings for some of these.
        Binding("f5", "run", "Run", priority=True),
        Binding("ctrl+r", "run", "Run", show=False, priority=True),
        Binding("f6", "dry_run", "Dry run", priority=True),
        Binding("ctrl+t", "dry_run", "Dry run", show=False, priority=True),
        Binding("f7", "yaml", "YAML", priority=True),
        Binding("ctrl+s", "yaml", "YAML", show=False, priority=True),
        Binding("f8", "copy", "Copy", priority=True),
        Binding("ctrl+y", "copy", "Copy", show=False, priority=True),
        Binding("f9", "keep", "Keep", priority=True),
        Binding("f4", "pick", "Pick", priority=True),
        Binding("ctrl+o", "pick", "Pick", show=False, priority=True),
        Binding("f3", "filter", "Filter", show=False, priority=True),
        Binding("ctrl+g", "filter", "Filter", show=False, priority=True),
        Binding("f2", "clear", "Defaults again", show=False, priority=True),
        ("f1", "app.help", "Help"),
        Binding("escape", "back", "Back", priority=True),
    ]
    DEFAULT_CSS = """
    FormScreen #title { width: 100%; height: 1; padding: 0 1; background: $primary; color: $text; text-style: bold; }
    FormScreen #about { padding: 0 1; height: auto; max-height: 3; color: $text-muted; }
    FormScreen #filter { margin: 0 1; }
    FormScreen .group { padding: 0 1; margin-top: 1; text-style: bold underline; color: $text-accent; }
    FormScreen #below { height: auto; max-height: 6; background: $panel; padding: 0 1; }
    FormScreen #command { height: auto; }
    FormScreen #wrong { height: auto; color: $text-error; display: none; }
    FormScreen.-invalid #wrong { display: block; }
    FormScreen.-invalid #command { color: $text-muted; }
    FormScreen.-low #about, FormScreen.-flat #about, FormScreen.-flat #filter { display: none; }
    FormScreen.-flat #below { max-height: 2; }
    FormScreen.-narrow FieldRow { margin-bottom: 0; }
    FormScreen.-narrow FieldRow .label { width: 18; }
    FormScreen.-narrow FieldRow .help, FormScreen.-narrow FieldRow .wrong { padding-left: 2; }
    """

    def __init__(
        self,
        stage: Stage,
        values: Values | None = None,
        *,
        step: str = "",
        files: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__()
        self.stage, self.step, self.files = stage, step, files
        self.values: dict[str, Any] = dict(values or {})
        self.checked = Checked()
        self._fields: list[Field] = []

    def compose(self) -> ComposeResult:
        """Title, filter, fields, command."""
        words = f"{self.step}: {self.stage.summary}" if self.step else self.stage.summary
        yield Label(f"{' '.join(self.stage.words)}  {words}", id="title", markup=False)
        yield Static(id="about", markup=False)
        yield Input(placeholder="filter the options (F3)", id="filter", compact=True)
        yield VerticalScroll(id="fields", can_focus=False)
        with Vertical(id="below"):
            yield Static(id="wrong", markup=False)
            yield Static(id="command", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Load the options model off the screen's own time."""
        self.query_one("#fields").loading = True
        self._load()

    @work(thread=True, exclusive=True)
    def _load(self) -> None:
        try:
            made = fields(self.stage, step=bool(self.step))
        except (PillmError, ImportError) as error:
            self.app.call_from_thread(self._broken, str(error))
            return
        self.app.call_from_thread(self._show, made)

    def _broken(self, message: str) -> None:
        self.query_one("#fields").loading = False
        self.notify(message, severity="error", timeout=10)

    async def _show(self, made: list[Field]) -> None:
        self._fields = made
        known = {field.name for field in made}
        self.values = {name: value for name, value in self.values.items() if name in known}
        about = (self.stage.options.__doc__ or "").split("\n\n")[0]
        self.query_one("#about", Static).update(" ".join(about.split()))
        rows: list[Label | FieldRow] = []
        for index, field in enumerate(made):
            if index == 0 or made[index - 1].group != field.group:
                rows.append(Label(field.group, classes="group", name=field.group))
            rows.append(FieldRow(field, self.values.get(field.name, ABSENT)))
        place = self.query_one("#fields")
        await place.mount_all(rows)
        place.loading = False
        self._judge()
        if first := next(iter(self.query(".editor")), None):
            first.focus()

    @on(FieldRow.Edited)
    def _edited(self, event: FieldRow.Edited) -> None:
        self._take(event.row, event.value)
        self._judge()

    def _take(self, row: FieldRow, value: Any) -> None:
        if value is ABSENT:
            self.values.pop(row.field.name, None)
        else:
            self.values[row.field.name] = value

    def _judge(self) -> None:
        self.checked = checked = check(self.stage, self.values)
        for row in self.query(FieldRow):
            row.tell(checked.wrong.get(row.field.name, ""), row.field.name in checked.missing)
            row.lean(checked.preset.get(row.field.name, ABSENT))
        self.set_class(bool(checked.wrong), "-invalid")
        shown = {name for name, text in checked.wrong.items() if text}
        self.query_one("#wrong", Static).update(checked.summary if shown else "")
        line = f"pillm {' '.join(self.stage.words)} ..." if checked.command is None else str(checked.command)
        self.query_one("#command", Static).update(f"$ {line}")
        self.refresh_bindings()

    @on(Input.Changed, "#filter")
    def _filter(self, event: Input.Changed) -> None:
        groups = set()
        for row in self.query(FieldRow):
            row.display = matches(row.field, event.value)
            if row.display:
                groups.add(row.field.group)
        for label in self.query(".group"):
            label.display = label.name in groups

    @on(Input.Submitted, "#filter")
    def _to_first(self) -> None:
        row = next((row for row in self.query(FieldRow) if row.display), None)
        if row:
            row.query_one(".editor").focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A step of a profile is kept, not run; only stages have a section of YAML."""
        if action in ("run", "dry_run"):
            return not self.step
        if action == "keep":
            return bool(self.step)
        if action == "yaml":
            return self.stage.name in STAGES and not self.step
        return True

    def action_back(self) -> None:
        """Leave the form, or a list of choices that is open; what was filled in is kept for the next time."""
        opened = next((select for select in self.query(Select) if select.expanded), None)
        if opened is not None:
            opened.expanded = False
            opened.focus()
        else:
            self.dismiss(None)

    def action_keep(self) -> None:
        """Give the values back to the profile."""
        self._when_typed(lambda _: self.dismiss(dict(self.values)))

    def action_filter(self) -> None:
        """Type to narrow the options down."""
        # At once, not when the screen comes to it: the next key is meant for it.
        self.set_focus(self.query_one("#filter"))

    def action_clear(self) -> None:
        """Empty every field: defaults again."""
        place = self.query_one("#fields")
        if place.loading:
            return  # it is empty yet, and what is being drawn must not be taken away meanwhile
        self.values = {}
        place.loading = True
        self._redraw()

    @work(exclusive=True)
    async def _redraw(self) -> None:
        # A worker ends with its screen, which may be left before all is drawn.
        await self.query_one("#fields").remove_children()
        await self._show(self._fields)

    def action_copy(self) -> None:
        """Copy the command to the clipboard."""

        def copy(command: Command) -> None:
            self.app.copy_to_clipboard(str(command))
            self.notify("the command is in the clipboard")

        self._when_typed(copy)

    def action_pick(self) -> None:
        """Pick a value for the field that has the focus."""
        node = self.focused
        row = next((a for a in node.ancestors_with_self if isinstance(a, FieldRow)), None) if node else None
        if row is None or not row.can_pick:
            self.notify("this field has nothing to pick from", severity="warning")
            return
        self._open_picker(row)

    @on(FieldRow.Pick)
    def _pick(self, event: FieldRow.Pick) -> None:
        self._open_picker(event.row)

    def _open_picker(self, row: FieldRow) -> None:
        from pillm.tui.forms.picker import FilePicker, WordPicker

        def took(value: str | None) -> None:
            if value is not None:
                row.insert(value)

        words = [(choice.value, choice.about) for choice in row.field.choices]
        if words:
            self.app.push_screen(WordPicker(row.field.label, words), took)
        else:
            self.app.push_screen(FilePicker(f"{row.field.label}: {row.field.about}", self.files), took)

    def _when_typed(self, do: Callable[[Command], Any]) -> None:
        """Do something with the command, once the keys that were pressed before have arrived where they are typed.

        They wait in the queue of the widget that has the focus, and what they lead to in those of its ancestors; the
        call waits there behind them. Twice, since choosing from a list is a message of the list to itself first.
        """
        node = self.focused or self
        way = [place for place in node.ancestors_with_self if isinstance(place, Widget)]

        def next_place(rest: list[Widget]) -> None:
            if rest:
                rest[0].call_later(next_place, rest[1:])
            elif command := self._ready():
                do(command)

        next_place([*way, *way])

    def _ready(self) -> Command | None:
        """The command if the form is complete as it stands in the editors; else say what is missing, and go there."""
        for row in self.query(FieldRow):
            self._take(row, row.current())
        self._judge()
        if self.checked.command is None:
            self.notify(self.checked.summary or "the form is not complete", severity="error", timeout=8)
            first = next((row for row in self.query(FieldRow) if row.field.name in self.checked.wrong), None)
            if first:
                first.display = True
                first.query_one(".editor").focus()
        return self.checked.command

    def action_run(self) -> None:
        """Start the command; it goes on when this terminal is closed."""
        self._when_typed(self._start)

    @work(thread=True, exclusive=True, group="start")
    def _start(self, command: Command) -> None:
        from pillm.tui.runs.start import start

        try:
            run_dir = start(command, name="-".join(self.stage.words))
        except (PillmError, OSError) as error:
            self.app.call_from_thread(self.notify, _message(error), severity="error", timeout=10)
            return
        self.app.call_from_thread(self._watch, run_dir)

    def _watch(self, run_dir: Any) -> None:
        from pillm.tui.runs.screen import RunScreen

        self.app.push_screen(RunScreen(run_dir))

    def action_dry_run(self) -> None:
        """Say what the command reads and writes, and what can be said before it starts; do nothing."""

        def ask(command: Command) -> None:
            self.notify("asking", timeout=1)
            self._dry_run(command)

        self._when_typed(ask)

    @work(thread=True, exclusive=True, group="start")
    def _dry_run(self, command: Command) -> None:
        from pillm.tui.forms.outcome import dry_run
        from pillm.tui.text_modal import TextModal

        try:
            text = dry_run(command)
        except OSError as error:
            self.app.call_from_thread(self.notify, str(error), severity="error")
            return
        self.app.call_from_thread(self.app.push_screen, TextModal("Dry run", text))

    def action_yaml(self) -> None:
        """Show the form as a section of a profile, to copy or to save."""
        from pillm.tui.forms.outcome import SaveModal

        def show(_: Command) -> None:
            text = section(self.stage, self.checked.options, self.values)
            self.app.push_screen(SaveModal(self.stage, self.checked.options, dict(self.values), text))

        self._when_typed(show)


def _message(error: Exception) -> str:
    hint = getattr(error, "hint", "")
    return f"{error}\n{hint}" if hint else str(error)
