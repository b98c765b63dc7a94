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
UNSET = "(default)"
"""The entry of a list of choices that gives nothing: a choice that is the default may be given, too (see core.options)."""
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
        self.preset: Any = ABSENT

    def compose(self) -> ComposeResult:
        """Label, input, what goes with it; help; what is wrong."""
        with Horizontal(classes="line"):
            yield Label(self.field.label, classes="label", markup=False)
            yield self._editor()
            if self.field.kind == "switch":
                # A word, too: colours alone say nothing to some eyes and on some terminals.
                yield Static(said(self._has()), classes="gap")
            if self.can_pick:
                yield Button("add" if self.field.kind == "list" else "pick", compact=True)
            if self.field.can_be_nothing:
                yield _None("none", value=self._is_nothing(), compact=True)
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

    def lean(self, preset: Any) -> None:
        """Show what the field has while nothing is given: a preset's value, or (`ABSENT`) the default."""
        if preset is self.preset or (preset == self.preset and type(preset) is type(self.preset)):
            return
        self.preset = preset
        editor = self.query_one(".editor")
        if isinstance(editor, (Input, TextArea)):
            editor.placeholder = self._hint()
        elif isinstance(editor, Select) and not self.field.required:
            value, entries = editor.value, self._entries()
            with editor.prevent(Select.Changed):
                editor.set_options(entries)
                # By way of another one: the same value would be no change, and its old words would stay.
                editor.value = entries[-1][1]
                editor.value = value
        elif isinstance(editor, Switch) and self.value is ABSENT:
            with editor.prevent(Switch.Changed):
                editor.value = bool(self._has())
            self.query_one(".gap", Static).update(said(self._has()))

    def current(self) -> Any:
        """The value that stands in the editor now, whether or not it has been told of; `value` if that is the same."""
        if self._nothing():
            return self.value if self._is_nothing() else self._empty()
        editor = self.query_one(".editor")
        if isinstance(editor, Select):
            return self.value if editor.value == self._entry() else self._meant(editor.value)
        if isinstance(editor, Switch):
            # Two states are all it has: the one that it would have anyway gives nothing.
            same = self.value is not ABSENT and self.value == editor.value
            return self.value if same else ABSENT if editor.value == self._unset() else editor.value
        text = editor.text if isinstance(editor, TextArea) else cast("Input", editor).value
        if text == self._text() and not (self.field.can_be_nothing and self._is_nothing()):
            return self.value
        if isinstance(editor, TextArea):
            return text.split("\n") if text.strip() else ABSENT
        return text or ABSENT

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
        field = self.field
        if field.kind == "switch":
            return Switch(bool(self._has()), animate=False, classes="editor")
        if field.kind == "choice":
            return self._select()
        if field.kind == "list":
            return TextArea(
                self._text(), compact=True, placeholder=self._hint(), tab_behavior="focus", classes="editor"
            )
        return Input(self._text(), placeholder=self._hint(), compact=True, classes="editor")

    def _select(self) -> Select[str]:
        entries, now = self._entries(), self._entry()
        if now is Select.NULL:
            return Select(entries, prompt="needed", compact=True, classes="editor")
        return Select(entries, value=cast("str", now), allow_blank=False, compact=True, classes="editor")

    def _entries(self) -> list[tuple[str, str]]:
        """The entries of a list of choices: nothing given, the choices, a value of a profile that is none of them."""
        field = self.field
        known = field.choices or _YES_NO
        entries = [(_prompt(choice), choice.value) for choice in known]
        now = self._entry()
        if field.optional and (field.default is not None or self.value is None):
            entries.insert(0, (NOTHING, NOTHING))
        if not field.required:
            unset = _entry(self._unset())
            prompt = next((prompt for prompt, value in entries if value == unset), said(self._unset()))
            entries.insert(0, (f"{prompt} ({'default' if self.preset is ABSENT else 'from the preset'})", UNSET))
        if isinstance(now, str) and now not in [value for _, value in entries]:
            entries.append((f"{now} (not a choice)", now))
        return entries

    def _entry(self) -> Any:
        """The entry that stands for the value."""
        if self.value is ABSENT:
            return Select.NULL if self.field.required else UNSET
        return _entry(self.value)

    def _meant(self, entry: Any) -> Any:
        """The value that an entry stands for."""
        if entry is Select.NULL or entry == UNSET:
            return ABSENT
        if entry == NOTHING:
            return None
        return entry if self.field.choices else {"yes": True, "no": False}.get(entry)

    def _unset(self) -> Any:
        """What the field has while nothing is given."""
        return self.field.default if self.preset is ABSENT else self.preset

    def _has(self) -> Any:
        return self._unset() if self.value is ABSENT else self.value

    def _text(self) -> str:
        """The value as it stands in an input."""
        shown = "" if self.value is ABSENT or self.value is None else self.value
        return "\n".join(map(str, shown)) if isinstance(shown, (list, tuple)) else str(shown)

    def _hint(self) -> str:
        if self.preset is not ABSENT:
            return f"{said(self.preset)} (from the preset)"
        return "needed" if self.field.required else self.field.default_text

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
    @on(Select.Changed)
    def _typed(self, event: Input.Changed | TextArea.Changed | Select.Changed) -> None:
        event.stop()
        self._set(self.current())

    @on(Switch.Changed)
    def _switched(self, event: Switch.Changed) -> None:
        event.stop()
        self.query_one(".gap", Static).update(said(event.value))
        self._set(self.current())

    @on(Checkbox.Changed)
    def _emptied(self, event: Checkbox.Changed) -> None:
        event.stop()
        cast("Input | TextArea", self.query_one(".editor")).disabled = event.value
        self._set(self.current())

    @on(Button.Pressed)
    def _pick(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Pick(self))

    def _nothing(self) -> bool:
        return self.field.can_be_nothing and self.query_one(Checkbox).value

    def _is_nothing(self) -> bool:
        """Whether the value says "nothing at all"."""
        return self.value is None or self.value in ("", [])

    def _empty(self) -> Any:
        """The value that says "nothing at all" for this field."""
        if self.field.kind == "list":
            return []
        return None if self.field.optional else ""


def _entry(value: Any) -> str:
    """The entry of a list of choices that stands for a value."""
    return NOTHING if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _prompt(choice: Choice) -> str:
    name = choice.value or "(none)"
    return f"{name} - {choice.about}" if choice.about else name
