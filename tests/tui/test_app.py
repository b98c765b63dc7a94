"""The shell around the screens: home, palette, help, themes, what is remembered, odd sizes, a real terminal."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from terminal import PILLM, Terminal
from textual.fuzzy import Matcher

from pillm.core.amounts import amount
from pillm.core.errors import UsageError
from pillm.pipeline.stages import COMMANDS
from pillm.tui import state
from pillm.tui.app import PillmApp
from pillm.tui.forms.screen import FormScreen
from pillm.tui.home import entries
from pillm.tui.home.screen import PANELS, HomeScreen
from pillm.tui.home.take import TakeModal
from pillm.tui.keys import HelpScreen
from pillm.tui.profiles.screen import ProfileScreen
from pillm.tui.theme import DARK, LIGHT, PLAIN


def test_home_lists_profiles_commands_datasets_and_boards(drive, place: Path) -> None:
    (place / "data").mkdir()
    (place / "data" / "own.jsonl").write_text("{}\n")
    listed = {}

    async def do(pilot) -> None:
        for name in PANELS:
            if name != "runs":
                listed[name] = [entry.name for entry in pilot.app.screen.query_one(f"#list-{name}").entries]

    drive(do)
    assert "quickstart" in listed["profiles"]
    assert listed["commands"] == [" ".join(stage.words) for stage in COMMANDS.values()]
    assert "data/own.jsonl" in listed["datasets"]
    assert "dataset:home-assistant/smoke" in listed["datasets"]
    assert "pi5-8gb" in listed["boards"]


@pytest.mark.parametrize(
    ("panel", "screen"), [("1", ProfileScreen), ("3", FormScreen), ("4", TakeModal), ("5", TakeModal)]
)
@pytest.mark.parametrize("size", [(80, 24), (160, 50)], ids=str)
def test_enter_opens_what_is_marked_and_escape_comes_back(drive, settled, panel, screen, size) -> None:
    async def do(pilot) -> None:
        await pilot.press(panel, "enter")
        await settled(pilot)
        assert isinstance(pilot.app.screen, screen)
        await pilot.press("escape")
        await settled(pilot)
        assert isinstance(pilot.app.screen, HomeScreen)

    drive(do, size)


def test_a_dataset_goes_into_the_form_of_a_command_that_takes_it(drive, settled) -> None:
    async def do(pilot) -> None:
        await pilot.press("4", "enter")
        await settled(pilot)
        await pilot.press("enter")
        await settled(pilot)
        form = pilot.app.screen
        assert isinstance(form, FormScreen)
        assert "dataset:home-assistant/" in str(form.values)

    drive(do)


def test_help_has_the_screens_purpose_and_its_keys(drive, settled) -> None:
    texts = []

    async def do(pilot) -> None:
        await pilot.press("question_mark")
        await settled(pilot)
        assert isinstance(pilot.app.screen, HelpScreen)
        texts.append(pilot.app.screen._text)
        await pilot.press("escape")
        pilot.app.open_form("label")
        await settled(pilot)
        await pilot.press("f1")
        await settled(pilot)
        texts.append(pilot.app.screen._text)

    drive(do)
    assert "Everything there is to begin with" in texts[0]
    assert "Dashboard" in texts[0]
    assert "Dry run" in texts[1]


def test_the_palette_has_every_form_profile_screen_and_theme(drive, settled) -> None:
    from pillm.tui.home.palette import offers

    words = []

    async def do(pilot) -> None:
        words.extend(offer.words for offer in await asyncio.to_thread(lambda: list(offers(pilot.app))))
        await pilot.press("ctrl+p")
        await settled(pilot)
        await pilot.press(*"form quantize")
        await pilot.pause(0.5)
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(pilot.app.screen, FormScreen)

    drive(do)
    assert {f"Form: {' '.join(stage.words)}" for stage in COMMANDS.values()} <= set(words)
    assert {"Home", "Dashboard", "Profile: quickstart", f"Theme: {LIGHT}", "Board: pi5-8gb"} <= set(words)


def test_theme_panel_and_forms_are_remembered(drive, settled, place: Path) -> None:
    async def do(pilot) -> None:
        pilot.app.use_theme(LIGHT)
        await pilot.press("3")
        pilot.app.open_form("label")
        await settled(pilot)
        await pilot.press(*"my.jsonl")
        await settled(pilot)

    async def again(pilot) -> None:
        assert pilot.app.theme == LIGHT
        assert pilot.app.screen.panel == "commands"
        pilot.app.open_form("label")
        await settled(pilot)
        assert pilot.app.screen.values == {"prompts": "my.jsonl"}

    drive(do)
    drive(again)


def test_a_state_that_cannot_be_read_is_no_state(place: Path) -> None:
    path = place / "ui.json"
    path.write_text("{not json")
    assert state.load(path) == state.State()


def test_a_token_in_a_form_is_not_written_down(place: Path) -> None:
    path = place / "ui.json"
    state.save(state.State(forms={"label": {"teacher": "http://me:secret@host/v1", "limit": "3"}}), path)
    assert "secret" not in path.read_text()
    assert state.load(path).forms == {"label": {"limit": "3"}}


def test_no_color_means_no_colours(drive, monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def do(pilot) -> None:
        assert pilot.app.theme == PLAIN
        assert pilot.app.no_color

    drive(do)


def test_dark_is_the_first_theme(drive) -> None:
    async def do(pilot) -> None:
        assert pilot.app.theme == DARK

    drive(do)


@pytest.mark.parametrize("size", [(20, 5), (1, 1), (300, 80)], ids=str)
def test_any_size_is_taken_on_any_screen(drive, settled, size, place: Path) -> None:
    async def do(pilot) -> None:
        app = pilot.app
        for open_ in (
            lambda: None,
            lambda: app.open_form("train"),
            lambda: app.open_entry(entries.Entry("profile", str(entries.profiles()[1].key), "")),
            app.action_help,
        ):
            open_()
            await settled(pilot)
            await pilot.resize_terminal(*size)
            await settled(pilot)
            await pilot.press("tab", "down", "up")
            await pilot.resize_terminal(120, 40)
            await settled(pilot)

    drive(do)


def test_a_users_own_board_that_is_broken_is_a_message(drive, place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "pillm" / "boards"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("family: [\n")
    told = []

    class Telling(PillmApp):
        def notify(self, message, **more):
            told.append(message)

    async def do(pilot) -> None:
        assert pilot.app.screen.query_one("#list-profiles").entries

    drive(do, app=Telling())
    assert any("mine.yaml" in message for message in told)


def test_a_folder_that_cannot_be_listed_leaves_the_rest(place: Path) -> None:
    assert entries.datasets(place / "gone") == entries.datasets(place)


def test_a_fault_in_the_ui_ends_with_a_message_and_a_log_not_a_traceback(place: Path, tmp_path: Path) -> None:
    code = (
        "from pillm.tui.app import PillmApp\n"
        "def broken(self): raise ZeroDivisionError('nobody thought of this')\n"
        "PillmApp.on_mount = broken\n" + PILLM
    )
    words = f'stty cols 80 rows 24; {sys.executable} -c "$CODE" ui'
    done = subprocess.run(
        ["script", "-qec", words, "/dev/null"], capture_output=True, text=True, env={**os.environ, "CODE": code, "TERM": "xterm"},
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert "this is a bug in pillm: ZeroDivisionError" in done.stdout
    assert "Traceback" not in done.stdout
    assert done.returncode == 70


def test_without_a_terminal_it_says_what_else_there_is(place: Path) -> None:
    argv = [sys.executable, "-c", PILLM, "ui"]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 2
    assert "--plain" in done.stderr
    done = subprocess.run([*argv, "--run=gone"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert (done.returncode, "gone: there is no such run" in done.stderr) == (2, True)


@pytest.mark.parametrize(("package", "flag"), [("textual", "--dashboard"), ("textual_serve", "--serve")])
def test_a_missing_package_is_named_with_the_command_that_brings_it(package: str, flag: str, place: Path) -> None:
    argv = [sys.executable, "-c", f"import sys; sys.modules[{package!r}] = None; {PILLM}", "ui", flag]
    env = {**os.environ, "TEXTUAL_DRIVER": "none"}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 3
    assert "pip install 'pi-llm-optimizer[ui]'" in done.stderr


def test_only_pages_of_this_server_are_answered() -> None:
    from aiohttp import web
    from aiohttp.test_utils import make_mocked_request

    from pillm.tui.serve import guard

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="here")

    led: list[tuple[str | None, list[str]]] = []

    async def status(path: str = "/ws", cookie: str = "pillm-8000=right", **headers: str) -> int:
        request = make_mocked_request("GET", path, headers={"Cookie": cookie, **headers})
        try:
            return (await guard(8000, "right")(request, answer)).status
        except web.HTTPException as other:
            led.append((other.headers.get("Location"), [cookie.OutputString() for cookie in other.cookies.values()]))
            return other.status

    async def all_of_them() -> list[int]:
        return [
            await status(Host="127.0.0.1:8000"),
            await status(Host="localhost:8000", Origin="http://localhost:8000"),
            await status(Host="127.0.0.1:8000", Origin="https://elsewhere.example"),
            await status(Host="elsewhere.example:8000"),
            await status(Host="127.0.0.1:8000", cookie=""),
            await status(Host="127.0.0.1:8000", cookie="pillm-8000=wrong"),
            await status("/ws?token=right", Host="127.0.0.1:8000", cookie=""),
            await status("/?token=wrong", Host="127.0.0.1:8000", cookie=""),
            await status("/?token=right", Host="127.0.0.1:8000", cookie=""),
            await status("/?token=right", Host="elsewhere.example:8000", cookie=""),
        ]

    assert asyncio.run(all_of_them()) == [200, 200, 403, 403, 403, 403, 403, 403, 302, 403]
    assert [where for where in led if where[0]] == [("/", ["pillm-8000=right; HttpOnly; Path=/; SameSite=Strict"])]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--serve", "--port=0"], "--port 0"),
        (["--serve", "--port=65536"], "--port 65536"),
        (["--port=-1"], "--port -1"),
        (["--plain", "--dashboard"], "--plain goes without --dashboard"),
        (["--plain", "--serve", "--run=."], "--plain goes without --run and --serve"),
    ],
)
def test_flags_that_cannot_be_are_refused_with_words(flags: list[str], words: str, place: Path) -> None:
    from pillm.cli.screen import Screen
    from pillm.cli.ui import ui

    given: dict[str, object] = {}
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        given[name] = int(value) if name == "port" else Path(value) if value else True
    with pytest.raises(UsageError, match=words):
        ui(cast("Screen", None))(**given)


def test_names_in_the_palette_are_no_markup(drive, settled, place: Path) -> None:
    folder = place / "data"
    folder.mkdir()
    (folder / "[red]own[INST].jsonl").write_text("{}\n")
    seen = []

    async def do(pilot) -> None:
        await pilot.press("ctrl+p")
        await settled(pilot)
        await pilot.press(*"own[INST]")
        await pilot.pause(0.5)
        palette = pilot.app.screen.query_one("CommandList")
        seen.extend(str(option.prompt) for option in palette.options)
        await pilot.press("escape")

    drive(do)
    assert any("data/[red]own[INST].jsonl" in words for words in seen), seen


def test_help_of_a_palette_line_is_no_markup(place: Path) -> None:
    from textual.content import Content

    from pillm.tui.home.palette import Offer, Palette

    palette = Palette.__new__(Palette)
    palette._offers = [Offer("[/INST]", "about [red] and [/INST] and [/]", lambda: None)]
    palette.matcher = lambda query: Matcher(query)  # type: ignore[method-assign]

    async def all_of_them() -> list[tuple[str, str]]:
        hits = [hit async for hit in palette.discover()] + [hit async for hit in palette.search("about")]
        return [
            (Content.from_markup(cast("Content", hit.prompt)).plain, Content.from_markup(hit.help or "").plain)
            for hit in hits
        ]

    assert asyncio.run(all_of_them()) == [("[/INST]", "about [red] and [/INST] and [/]")] * 2


def test_a_folder_that_cannot_be_entered_leaves_the_rest(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "closed").mkdir()
    (place / "own.jsonl").write_text("{}\n")
    real = Path.is_dir

    def is_dir(path: Path) -> bool:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    assert "own.jsonl" in [entry.name for entry in entries.datasets()]


def test_many_folders_are_not_all_visited(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "_MOST_FOLDERS", 5)
    for number in range(20):
        (place / f"folder{number:02}").mkdir()
    visited: list[Path] = []
    real = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: (visited.append(path), real(path))[1])
    entries.datasets()
    assert len(visited) <= 5


def test_sizes_are_said_as_everywhere(place: Path) -> None:
    (place / "own.jsonl").write_bytes(b"x" * 1500)
    assert next(entry.about for entry in entries.datasets() if entry.name == "own.jsonl") == amount(1500, "B")


@pytest.fixture
def terminal(place: Path, tmp_path: Path):
    env = {"PILLM_CACHE": str(tmp_path / "cache"), "XDG_CONFIG_HOME": str(tmp_path / "config"), "PYTHONSAFEPATH": "1"}
    opened = Terminal(["ui"], place, env)
    yield opened
    opened.close()


def test_in_a_real_terminal_a_form_is_filled_in_and_says_the_command_lines_words(
    terminal: Terminal, place: Path
) -> None:
    (place / "two.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}\n'
    )
    terminal.wait("Stages and tools")
    terminal.wait("quickstart")
    terminal.keys("C-p")
    terminal.wait("Search")
    terminal.text("form dataset stats")
    terminal.wait("Counts and lengths")
    terminal.keys("Enter", "Enter")
    terminal.wait("needed: --data")
    terminal.text("two.jsonl")
    terminal.wait("$ pillm dataset stats --data=two.jsonl")
    terminal.keys("F6")
    terminal.wait("reads  data")
    terminal.keys("Escape")
    terminal.resize(20, 5)
    terminal.resize(100, 30)
    terminal.wait("$ pillm dataset stats --data=two.jsonl")
    terminal.keys("C-q")
    assert "Traceback" not in terminal.wait("ended with 0")
