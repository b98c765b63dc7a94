"""Picking a value: a file out of the folders, an output of another stage, or a word out of a list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DirectoryTree, Footer, Input, Label, OptionList
from textual.widgets.option_list import Option


class _Tree(DirectoryTree):
    """Folders and files without those that are hidden."""

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        """Leave out hidden files."""
        return [path for path in paths if not path.name.startswith(".")]


class FilePicker(ModalScreen[str | None]):
    """Choose a file or a folder. Enter opens a folder and takes a file; `s` takes the folder that is marked."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "dismiss_with(None)", "Back"),
        ("s", "take", "Take file or folder"),
        ("u", "up", "Folder above"),
    ]
    DEFAULT_CSS = """
    FilePicker { align: center middle; }
    FilePicker > Vertical { width: 90%; height: 90%; max-width: 110; background: $surface; padding: 0 1; }
    FilePicker OptionList { height: auto; max-height: 40%; }
    FilePicker DirectoryTree { height: 1fr; }
    """

    def __init__(self, title: str, known: Sequence[tuple[str, str]] = (), root: Path = Path()) -> None:
        super().__init__()
        self._title, self._known, self._root = title, known, root

    def compose(self) -> ComposeResult:
        """Known references first, then the folders."""
        with Vertical():
            yield Label(self._title, markup=False)
            if self._known:
                yield OptionList(
                    *(Option(f"{value}  {about}".rstrip(), id=str(i)) for i, (value, about) in enumerate(self._known)),
                    markup=False,
                )
            yield _Tree(self._root.absolute())
            yield Footer()

    @on(OptionList.OptionSelected)
    def _reference(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._known[event.option_index][0])

    @on(DirectoryTree.FileSelected)
    def _file(self, event: DirectoryTree.FileSelected) -> None:
        self.dismiss(_short(event.path))

    def action_take(self) -> None:
        """Take what is marked, also a folder."""
        node = self.query_one(_Tree).cursor_node
        if node is not None and node.data is not None:
            self.dismiss(_short(node.data.path))

    def action_up(self) -> None:
        """Show the folder above."""
        tree = self.query_one(_Tree)
        tree.path = Path(tree.path).parent

    def action_dismiss_with(self, value: str | None) -> None:
        """Leave."""
        self.dismiss(value)


class WordPicker(ModalScreen[str | None]):
    """Choose a word out of a list; typing narrows it down."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss_with(None)", "Back")]
    DEFAULT_CSS = """
    WordPicker { align: center middle; }
    WordPicker > Vertical { width: 90%; height: 80%; max-width: 100; background: $surface; padding: 0 1; }
    WordPicker OptionList { height: 1fr; }
    """

    def __init__(self, title: str, words: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._title, self._words = title, words

    def compose(self) -> ComposeResult:
        """A filter and the list."""
        with Vertical():
            yield Label(self._title, markup=False)
            yield Input(placeholder="type to narrow down", compact=True)
            yield OptionList(markup=False)
            yield Footer()

    def on_mount(self) -> None:
        """Show all words."""
        self._fill("")

    def _fill(self, text: str) -> None:
        words = [(w, about) for w, about in self._words if text.casefold() in f"{w} {about}".casefold()]
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(f"{word:<14} {about}".rstrip(), id=f"w-{word}") for word, about in words])

    @on(Input.Changed)
    def _narrow(self, event: Input.Changed) -> None:
        self._fill(event.value)

    @on(Input.Submitted)
    def _first(self) -> None:
        options = self.query_one(OptionList)
        if options.option_count:
            self.dismiss(str(options.get_option_at_index(0).id).removeprefix("w-"))

    @on(OptionList.OptionSelected)
    def _word(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(str(event.option.id).removeprefix("w-"))

    def action_dismiss_with(self, value: str | None) -> None:
        """Leave."""
        self.dismiss(value)


def _short(path: Path) -> str:
    """A path as one would type it here: relative where it is below the working folder."""
    here = Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)
