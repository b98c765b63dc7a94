"""One field of a form as widgets: its input, its help, and what the model says against it."""

from __future__ import annotations

from typing import Any, cast

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Button, Checkbox, Input, Label, Select, Static, Switch, TextArea

from pillm.pipeline.choices import Choice
from pillm.tui.forms.fields import Field, said

ABSENT = object()
"""Stands for a field that was left alone: it has its default."""

NOTHING = "(nothing)"
_YES_NO = (Choice("yes"), Choice("no"))


class _None(Checkbox):
    """A box that is empty while it is not checked; the base's has its cross always, in another colour."""

    def watch_value(self) -> None:
        """Draw the cross, or none."""
        self.BUTTON_INNER = "X" if self.value else " "
        super().watch_value()

    def on_mount(self) -> None:
        """Draw it for the first time."""
        self.BUTTON_INNER = "X" if self.value else " "
        self.refresh()


class FieldRow(Vertical):
    """A field: label and input in a line, help below it, then what is wrong."""

    DEFAULT_CSS = """
    FieldRow { height: auto; padding: 0 1; margin-bottom: 1; }
    FieldRow .line { height: auto; }
    FieldRow .label { width: 24; color: $text; text-style: bold; }
    FieldRow .help { color: $text-muted; padding-left: 24; height: auto; }
    FieldRow .wrong { color: $text-error; padding-left: 24; height: auto; display: none; }
    FieldRow.-wrong .wrong { display: block; }
    FieldRow.-missing .label { color: $text-warning; }
    FieldRow Input, FieldRow Select, FieldRow TextArea { width: 1fr; }
    FieldRow TextArea { padding: 0; height: auto; min-height: 1; max-height: 6; }
    FieldRow Switch { border: none; height: 1; padding: 0; background: $surface; }
    FieldRow Switch:focus { border: none; background: $primary; }
    FieldRow Button { margin-left: 1; min-width: 6; }
    FieldRow Checkbox { margin-left: 1; }
    FieldRow .gap { width: 1fr; height: 1; padding-left: 1; }
    """

    class Edited(Message):
        """A field has another value (`ABSENT`: its default again)."""

        def __init__(self, row: FieldRow, value: Any) -> None:
            super().__init__()
            self.row, self.value = row, value

    class Pick(Message):
        """The field's values are to be picked from files, or from a list."""

        def __init__(self, row: FieldRow) -> None:
            super().__init__()
            self.row = row

    def __init__(self, field: Field, value: Any = ABSENT) -> None:
        super().__init__(id=f"field-{field.name}")
        self.field, self.value = field, value

    def compose(self) -> ComposeResult:
        """Label, input, what goes with it; help; what is wrong."""
        with Horizontal(classes="line"):
            yield Label(self.field.label, classes="label", markup=False)
            yield self._editor()
            if self.field.kind == "switch":
                # A word, too: colours alone say nothing to some eyes and on some terminals.
                yield Static(said(self.field.default if self.value is ABSENT else self.value), classes="gap")
            if self.can_pick:
                yield Button("add" if self.field.kind == "list" else "pick", compact=True)
            if self.field.can_be_nothing:
                yield _None("none", value=self.value is None or self.value in ("", []), compact=True)
        yield Static(self._help(), classes="help")
        yield Static("", classes="wrong", markup=False)

    @property
    def can_pick(self) -> bool:
        """Whether there is something to pick values from."""
        return bool(self.field.file) or (self.field.kind != "choice" and bool(self.field.choices))

    def tell(self, message: str, missing: bool = False) -> None:
        """Show what is wrong with the value; nothing for an empty message. What is only empty yet says so itself."""
        self.set_class(bool(message) and not missing, "-wrong")
        self.set_class(missing, "-missing")
        self.query_one(".wrong", Static).update(message)

    def insert(self, value: str) -> None:
        """Take a value that was picked: a further line of a list, else instead of what stands there."""
        editor = self.query_one(".editor")
        if isinstance(editor, TextArea):
            text = editor.text.rstrip("\n")
            editor.text = f"{text}\n{value}" if text else value
        elif isinstance(editor, Input):
            editor.value = value
        editor.focus()

    def _editor(self) -> Widget:
        field, value = self.field, self.value
        shown = "" if value is ABSENT or value is None else value
        hint = "needed" if field.required else f"{field.default_text}"
        if field.kind == "switch":
            return Switch(bool(field.default if value is ABSENT else value), animate=False, classes="editor")
        if field.kind == "choice":
            return self._select()
        if field.kind == "list":
            lines = shown if isinstance(shown, (list, tuple)) else str(shown).split("\n")
            return TextArea(
                "\n".join(map(str, lines)), compact=True, placeholder=hint, tab_behavior="focus", classes="editor"
            )
        return Input(str(shown), placeholder=hint, compact=True, classes="editor")

    def _select(self) -> Select[str]:
        field = self.field
        known = field.choices or _YES_NO
        options = [(_prompt(choice), choice.value) for choice in known]
        if field.optional:
            options.insert(0, (NOTHING, NOTHING))
        now = field.default if self.value is ABSENT else self.value
        now = NOTHING if now is None else ("yes" if now else "no") if isinstance(now, bool) else str(now)
        if now not in [value for _, value in options]:
            if self.value is not ABSENT:
                options.append((f"{now} (not a choice)", now))
            elif field.required:
                return Select(options, prompt="needed", compact=True, classes="editor")
        return Select(options, value=now, allow_blank=False, compact=True, classes="editor")

    def _help(self) -> Content:
        field = self.field
        parts = [field.about]
        if field.limits:
            parts.append(f"[{field.limits}]")
        if field.kind == "list" and field.choices:
            parts.append(f"[{', '.join(choice.value for choice in field.choices)}]")
        nothing = field.default in (None, (), "")
        # Where nothing is given and the model's words say what happens then, "none" would contradict them.
        if not field.required and not (nothing and "default" in field.about.casefold()):
            parts.append(f"(default: {field.default_text})")
        text = " ".join(part for part in parts if part)
        return Content("\n".join([text, *self._changes()]))

    def _changes(self) -> list[str]:
        """What the chosen value sets, with the reasons; the choice's own meaning where the model tells it."""
        now = self.field.default if self.value is ABSENT else self.value
        chosen = next((choice for choice in self.field.choices if choice.value == now), None)
        if chosen is None or not chosen.changes:
            return []
        rows = [f"  {name} = {value}" + (f": {why}" if why else "") for name, (value, why) in chosen.changes.items()]
        return [f"{chosen.value} sets, where nothing else is given:", *rows]

    def _set(self, value: Any) -> None:
        # Widgets tell of their first value, too, which is no change.
        if value is self.value or (value == self.value and type(value) is type(self.value)):
            return
        self.value = value
        if any(choice.changes for choice in self.field.choices):
            self.query_one(".help", Static).update(self._help())
        self.post_message(self.Edited(self, value))

    @on(Input.Changed)
    @on(TextArea.Changed)
    def _typed(self, event: Input.Changed | TextArea.Changed) -> None:
        event.stop()
        if isinstance(event, Input.Changed):
            value: Any = event.value or ABSENT
        else:
            text = event.text_area.text
            value = text.split("\n") if text.strip() else ABSENT
        if value is ABSENT and self._nothing():
            value = self._empty()
        self._set(value)

    @on(Select.Changed)
    def _chosen(self, event: Select.Changed) -> None:
        event.stop()
        value: Any = event.value
        if value is Select.NULL:
            self._set(ABSENT)
            return
        if not self.field.choices:
            value = {"yes": True, "no": False}.get(value)
        elif value == NOTHING:
            value = None
        # A value that stands in a profile stays there, also if it is the default, until another is chosen.
        if value != self.value:
            self._set(ABSENT if value == self.field.default and not self.field.required else value)

    @on(Switch.Changed)
    def _switched(self, event: Switch.Changed) -> None:
        event.stop()
        self.query_one(".gap", Static).update(said(event.value))
        self._set(ABSENT if event.value == self.field.default else event.value)

    @on(Checkbox.Changed)
    def _emptied(self, event: Checkbox.Changed) -> None:
        event.stop()
        editor = cast("Input | TextArea", self.query_one(".editor"))
        editor.disabled = event.value
        if event.value:
            self._set(self._empty())
            return
        text = editor.value if isinstance(editor, Input) else editor.text
        self._set((text.split("\n") if isinstance(editor, TextArea) else text) if text.strip() else ABSENT)

    @on(Button.Pressed)
    def _pick(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Pick(self))

    def _nothing(self) -> bool:
        return self.field.can_be_nothing and self.query_one(Checkbox).value

    def _empty(self) -> Any:
        """The value that says "nothing at all" for this field."""
        if self.field.kind == "list":
            return []
        return None if self.field.optional else ""


def _prompt(choice: Choice) -> str:
    name = choice.value or "(none)"
    return f"{name} - {choice.about}" if choice.about else name
