"""The home screen: profiles, runs, commands, datasets and boards, side by side where there is room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.screen import Screen
from textual.widgets import Footer, OptionList, Static, Tab, Tabs
from textual.widgets.option_list import Option

from pillm import __version__
from pillm.core.errors import PillmError
from pillm.tui.home import entries
from pillm.tui.home.entries import Entry

PANELS = {
    "profiles": "Profiles",
    "runs": "Runs",
    "commands": "Stages and tools",
    "datasets": "Datasets",
    "boards": "Boards",
}
_READERS: dict[str, Callable[[], list[Entry]]] = {
    "profiles": entries.profiles,
    "datasets": entries.datasets,
    "boards": entries.boards,
}


class EntryList(OptionList):
    """Entries, one a line, with their words where there is room."""

    BINDINGS: ClassVar[list[BindingType]] = [("enter", "select", "Open")]

    def __init__(self, panel: str) -> None:
        super().__init__(id=f"list-{panel}", markup=False, compact=True)
        self.entries: list[Entry] = []

    def fill(self, found: list[Entry]) -> None:
        """Show these entries; the place of the cursor stays."""
        place = self.highlighted
        self.entries = found
        width = max((len(entry.name) for entry in found), default=0)
        width = min(width, 30)
        self.clear_options()
        self.add_options([Option(f"{entry.name:<{width}}  {entry.about}".rstrip()) for entry in found])
        if found:
            self.highlighted = min(place or 0, len(found) - 1)


class HomeScreen(Screen[None]):
    """Everything there is to begin with. Enter opens what is marked.

    A profile shows its plan; a stage or tool its form; a dataset or a board the commands that take it; a run its
    progress and its results.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        # The numbers stand at the panels.
        *(
            Binding(str(place), f"panel('{name}')", title, show=False)
            for place, (name, title) in enumerate(PANELS.items(), 1)
        ),
        ("d", "dashboard", "Dashboard"),
        ("r", "refresh", "Refresh"),
        ("question_mark,f1", "app.help", "Help"),
        ("q", "app.quit", "Quit"),
    ]
    DEFAULT_CSS = """
    HomeScreen #title { width: 100%; height: 1; padding: 0 1; background: $primary; color: $text; text-style: bold; }
    HomeScreen #panels { height: 1fr; }
    HomeScreen .panel { border: round $foreground 35%; border-title-color: $text-accent; height: 1fr; padding: 0 1; }
    HomeScreen .panel:focus-within { border: round $secondary; }
    HomeScreen OptionList { border: none; padding: 0; height: 1fr; background: transparent; text-wrap: nowrap; text-overflow: ellipsis; }
    HomeScreen OptionList:focus { border: none; }
    HomeScreen #about { height: 2; padding: 0 1; color: $text-muted; }
    HomeScreen .panel { display: none; }
    HomeScreen .panel.-active { display: block; }
    HomeScreen.-wide.-tall .panel { display: block; }
    HomeScreen.-wide.-tall Tabs { display: none; }
    HomeScreen.-wide.-tall #panels { layout: grid; grid-size: 6 2; grid-rows: 1fr 1fr; }
    HomeScreen.-wide.-tall #panel-profiles, HomeScreen.-wide.-tall #panel-runs { column-span: 3; }
    HomeScreen.-wide.-tall #panel-commands, HomeScreen.-wide.-tall #panel-datasets,
    HomeScreen.-wide.-tall #panel-boards { column-span: 2; }
    HomeScreen.-flat Tabs, HomeScreen.-flat #title, HomeScreen.-flat #about { display: none; }
    HomeScreen.-flat .panel { border: none; }
    """

    def __init__(self, panel: str = "") -> None:
        super().__init__()
        self.panel = panel if panel in PANELS else next(iter(PANELS))

    def compose(self) -> ComposeResult:
        """Title, panels, a line about what is marked."""
        yield Static(f"pillm {__version__}", id="title", markup=False)
        yield Tabs(
            *(Tab(f"{i} {title}", id=name) for i, (name, title) in enumerate(PANELS.items(), 1)), active=self.panel
        )
        with Container(id="panels"):
            for place, (name, title) in enumerate(PANELS.items(), 1):
                with Container(id=f"panel-{name}", classes="panel") as panel:
                    panel.border_title = f"{place} {title}"
                    if name != "runs":
                        yield EntryList(name)
        yield Static(id="about", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Show what needs no reading at once; read the rest beside."""
        self.query_one("#list-commands", EntryList).fill(entries.commands())
        self._activate(self.panel)
        self.call_after_refresh(self._begin)

    async def _begin(self) -> None:
        # What follows imports more than the first paint needs.
        from pillm.tui.runs.list import RunList

        await self.query_one("#panel-runs").mount(RunList())
        if self.panel == "runs":
            self._activate("runs")
        self.action_refresh()

    def action_refresh(self) -> None:
        """Read everything again."""
        for name, read in _READERS.items():
            self._read(name, read)

    @work(thread=True)
    def _read(self, name: str, read: Callable[[], list[Entry]]) -> None:
        try:
            found = read()
        except (PillmError, OSError) as error:
            words = [str(error), *map(str, getattr(error, "findings", ()))]
            self.app.call_from_thread(self.notify, "\n".join(words), severity="error", timeout=10, markup=False)
            return
        self.app.call_from_thread(self._filled, name, found)

    def _filled(self, name: str, found: list[Entry]) -> None:
        if self.is_attached:
            self.query_one(f"#list-{name}", EntryList).fill(found)
            self._tell()

    def action_panel(self, name: str) -> None:
        """Go to a panel."""
        self.query_one(Tabs).active = name
        self._activate(name)

    @on(Tabs.TabActivated)
    def _tab(self, event: Tabs.TabActivated) -> None:
        if event.tab.id and event.tab.id != self.panel:
            self._activate(event.tab.id, focus=self.focused is not event.tabs)

    def _activate(self, name: str, *, focus: bool = True) -> None:
        self.panel = name
        for panel in self.query(".panel"):
            panel.set_class(panel.id == f"panel-{name}", "-active")
        if focus:
            node = next((n for n in self.query(f"#panel-{name} *") if n.can_focus), None)
            if node:
                node.focus()
        self._tell()

    @on(OptionList.OptionHighlighted)
    def _tell(self) -> None:
        """Say in full what is marked, which a list cuts at its edge."""
        node = self.focused
        words = ""
        if isinstance(node, EntryList) and node.highlighted is not None and node.highlighted < len(node.entries):
            entry = node.entries[node.highlighted]
            words = f"{entry.name}: {entry.about}" if entry.about else entry.name
        self.query_one("#about", Static).update(words)

    def on_descendant_focus(self) -> None:
        """The line about what is marked follows the focus; so does the panel, where several are shown."""
        node = self.focused
        panel = next((n.id for n in node.ancestors if n.has_class("panel")), None) if node else None
        if panel:
            self.panel = panel.removeprefix("panel-")
            with self.prevent(Tabs.TabActivated):
                self.query_one(Tabs).active = self.panel
        self._tell()

    @on(OptionList.OptionSelected)
    def _open(self, event: OptionList.OptionSelected) -> None:
        if isinstance(event.option_list, EntryList):
            self.app.open_entry(event.option_list.entries[event.option_index])  # type: ignore[attr-defined]

    def on_run_list_chosen(self, event: Any) -> None:
        """Show a run."""
        self.app.open_run(Path(event.run_dir))  # type: ignore[attr-defined]

    def action_dashboard(self) -> None:
        """Benchmarks, quality and coverage."""
        self.app.action_dashboard()  # type: ignore[attr-defined]
