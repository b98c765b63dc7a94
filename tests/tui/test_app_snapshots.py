"""Pictures of home, a form and a profile at three sizes, light and dark. Nothing in them depends on the machine or the day.

pytest tests/tui/test_app_snapshots.py --snapshot-update     after a change that is meant; then look at the pictures
"""

from __future__ import annotations

from pathlib import Path

import made_up_stage
import pytest
from run_folders import still

from pillm.tui.app import PillmApp
from pillm.tui.forms.screen import FormScreen
from pillm.tui.home import screen as home
from pillm.tui.home.entries import Entry
from pillm.tui.profiles.screen import ProfileScreen
from pillm.tui.theme import DARK, LIGHT

SIZES = [(80, 24), (120, 40), (200, 60)]

BOARDS = [
    Entry("board", f"pi{n}-{ram}gb", f"pi{n}-{ram}gb", f"Raspberry Pi {n}, {ram} GB: 4 cores")
    for n in (4, 5)
    for ram in (2, 4, 8)
]
PROFILES = [
    Entry("profile", "a", "bread", "White bread, in an hour"),
    Entry(
        "profile",
        "b",
        "a-long-name-of-a-profile",
        "With a description that is longer than a line of a small terminal can hold, cut at its edge",
    ),
]
DATASETS = [Entry("dataset", "c", "dataset:bakery/train", "5.4 MB"), Entry("dataset", "d", "recipes.jsonl", "90.2 kB")]
COMMANDS = [
    Entry("command", f"s{n}", words, f"What {words} does")
    for n, words in enumerate(["knead", "bake", "dough check", "dough split", "sell"])
]


@pytest.fixture
def app(place: Path, monkeypatch: pytest.MonkeyPatch) -> PillmApp:
    monkeypatch.setattr(home, "__version__", "1.2.3")
    monkeypatch.setattr(home.entries, "commands", lambda: COMMANDS)
    readers = {"profiles": PROFILES, "datasets": DATASETS, "boards": BOARDS}
    monkeypatch.setattr(home, "_READERS", {name: lambda found=found: found for name, found in readers.items()})
    monkeypatch.setattr("textual.widgets._input.Input._toggle_cursor", lambda self: None)
    return PillmApp()


@pytest.mark.parametrize("theme", [DARK, LIGHT])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("name", ["home", "form", "profile"])
def test_it_looks_as_it_did(
    name: str, size: tuple[int, int], theme: str, app: PillmApp, profile: Path, settled, snap_compare
) -> None:
    async def before(pilot) -> None:
        app.theme = theme
        await settled(pilot)
        if name == "form":
            await app.push_screen(
                FormScreen(made_up_stage.BAKE, {"dough": "rye.txt", "degrees": "900", "cuts": ["3", "4"]})
            )
        if name == "profile":
            await app.push_screen(ProfileScreen(profile.relative_to(Path.cwd())))
        await settled(pilot)
        for node in app.screen.query("Input"):
            node.cursor_blink = False
        await still(pilot)

    assert snap_compare(app, terminal_size=size, run_before=before)
