"""The screen of a run, through Textual's own driver: what it shows, its keys, and its pictures."""

from __future__ import annotations

import asyncio
import datetime
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import run_folders
from run_folders import BEGAN, SIZES, Host, in_loop, still, told, until
from textual.app import App, ComposeResult
from textual.widgets import DataTable, Input, Static, TabbedContent

from pillm.core.artifacts import Artifact
from pillm.core.events import Failed, Found, Log, Made, Metric, StageEnded, StageStarted
from pillm.core.findings import Finding
from pillm.tui.runs import folder
from pillm.tui.runs.chart import Chart
from pillm.tui.runs.find import RunInfo
from pillm.tui.runs.list import RunList, line
from pillm.tui.runs.log import RunLog
from pillm.tui.runs.pane import Pane
from pillm.tui.runs.screen import RunScreen, show
from pillm.tui.runs.stages import Stages
from pillm.tui.runs.stages import line as stage_line
from pillm.tui.runs.viewer import FileViewer
from pillm.tui.text_modal import TextModal


def later() -> datetime.datetime:
    return BEGAN + datetime.timedelta(seconds=175)


def opened(run_dir: Path) -> Host:
    return Host(lambda: RunScreen(run_dir, later))


def here(app: Host) -> RunScreen:
    assert isinstance(app.screen, RunScreen)
    return app.screen


async def ready(app: Host) -> RunScreen:
    await until(lambda: isinstance(app.screen, RunScreen) and app.screen.is_mounted)
    screen = here(app)
    await until(lambda: screen.picture and (screen.picture.state is None or screen.query_one("#lines", Pane).shown))
    return screen


def words(screen: RunScreen) -> list[str]:
    return [row.rstrip() for row in screen.query_one("#lines", Pane).render().plain.splitlines()]


@pytest.mark.parametrize("kind", ["running", "done", "failed"])
@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_picture(kind: str, theme: str, size: tuple[int, int], tmp_path: Path, snap_compare, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = getattr(run_folders, kind)(tmp_path)
    app = Host(lambda: RunScreen(run_dir, later), f"pillm-{theme}")

    async def settled(pilot) -> None:
        screen = await ready(app)
        pane = screen.query_one("#lines", Pane)
        await until(lambda: pane.scroller.settled(pane.size.height))
        await still(pilot)

    assert snap_compare(app, terminal_size=size, run_before=settled)


@in_loop
async def test_a_run_that_is_going_is_watched_until_it_ends(tmp_path: Path) -> None:
    run_dir = run_folders.running(tmp_path)
    app = opened(run_dir)
    async with app.run_test(size=(120, 40)):
        screen = await ready(app)
        assert screen.picture
        assert screen.picture.state == "running"
        assert [row.state for row in screen.picture.stages] == ["ran", "running"]
        assert screen.picture.stages[1].share == 130 / 200
        assert [curve.title for curve in screen.picture.curves] == ["loss, nats/token", "tokens per second, tokens/s"]
        told(run_dir, (300, "train", Log("a last word")), (301, "train", StageEnded("train", "ran", 200.0)))
        (run_dir / ".lock").unlink()
        await until(lambda: screen.picture and screen.picture.state == "stopped")
        await until(lambda: any("a last word" in row for row in words(screen)))


@in_loop
async def test_the_log_is_searched_filtered_and_read_in_context(tmp_path: Path) -> None:
    run_dir = run_folders.done(tmp_path)
    app = opened(run_dir)
    async with app.run_test(size=(100, 30)) as pilot:
        screen = await ready(app)
        await pilot.press("slash", *"step 75")
        await until(lambda: len(words(screen)) == 1 and "step 75" in words(screen)[0])
        await pilot.press("enter", "enter")
        await until(lambda: len(words(screen)) > 5)
        assert any(row.startswith("▶") and "step 75" in row for row in words(screen))
        assert not screen.query_one(RunLog).pattern
        await pilot.press("l", "l")
        await until(lambda: len(words(screen)) == 1)
        assert "did not fit" in words(screen)[0]
        await pilot.press("l", "l")
        await until(lambda: len(words(screen)) > 5)
        await pilot.press("slash", *"xyzzy")
        await until(lambda: "no such line" in words(screen)[0])
        await pilot.press("escape")
        await until(lambda: len(words(screen)) > 5)
        assert not screen.query_one("#search", Input).display
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, TextModal))
        await pilot.press("escape")
        assert isinstance(app.screen, RunScreen)


@in_loop
async def test_keys_move_through_the_log(tmp_path: Path) -> None:
    run_dir = told(tmp_path / "run", *((n // 10, "s", Log(f"line {n}")) for n in range(500)))
    app = opened(run_dir)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await ready(app)
        await until(lambda: words(screen)[-1].endswith("line 499"))
        # The head and the message take their lines when the run was looked at.
        height = 0
        while height != (now := screen.query_one("#lines", Pane).size.height):
            height = now
            await asyncio.sleep(0.5)
        await until(lambda: len(words(screen)) == height)
        await pilot.press("home")
        await until(lambda: words(screen)[0].endswith("line 0"))
        await pilot.press("pagedown")
        await until(lambda: words(screen)[0].endswith(f"line {height - 1}"))
        await pilot.press("end")
        await until(lambda: words(screen)[-1].endswith("line 499"))
        await pilot.press(*["up"] * (height + 4))
        await until(lambda: words(screen)[0].endswith(f"line {500 - height - 5}"))


@in_loop
async def test_a_finding_opens_at_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = run_folders.failed(tmp_path)
    app = opened(run_dir)
    async with app.run_test(size=(100, 30)) as pilot:
        screen = await ready(app)
        assert screen.picture
        assert "3 records cannot be learned" in screen.picture.message
        screen.query_one("#tabs", TabbedContent).active = "findings"
        await until(lambda: screen.query_one("#found", DataTable).row_count == 3)
        screen.query_one("#found", DataTable).focus()
        await pilot.press("down", "enter")
        await until(lambda: isinstance(app.screen, FileViewer))
        pane = app.screen.query_one(Pane)
        await until(lambda: any(row.startswith("▶") for row in pane.render().plain.splitlines()))
        marked = next(row for row in pane.render().plain.splitlines() if row.startswith("▶"))
        assert marked.split()[1] == "23"
        assert '"id": "23"' in marked
        await pilot.press("escape")
        Path("prompts.jsonl").unlink()
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, RunScreen)


@in_loop
async def test_a_folder_that_vanishes_is_a_message(tmp_path: Path) -> None:
    run_dir = run_folders.done(tmp_path)
    app = opened(run_dir)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await ready(app)
        shutil.rmtree(run_dir)
        await until(lambda: screen.picture and screen.picture.state is None)
        await pilot.press("s", "r", "e", "l", "home", "up", "down", "c")
        await pilot.pause()
        assert "there is no such folder" in ((screen.picture and screen.picture.message) or "")
    app = opened(tmp_path / "never was")
    async with app.run_test(size=(80, 24)):
        screen = await ready(app)
        assert "there is no such folder" in ((screen.picture and screen.picture.message) or "")


@pytest.mark.parametrize("size", [(20, 5), (1, 1), (40, 10)])
@in_loop
async def test_small_terminals_are_no_reason_to_fall_over(tmp_path: Path, size: tuple[int, int]) -> None:
    app = opened(run_folders.running(tmp_path))
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(app)
        await pilot.resize_terminal(*size)
        await pilot.press("c", "l", "slash", "x", "escape", "home")
        await pilot.resize_terminal(120, 40)
        await pilot.pause()
        assert here(app).picture


@in_loop
async def test_choosing_a_stage_shows_its_curves(tmp_path: Path) -> None:
    app = opened(run_folders.running(tmp_path))
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await ready(app)
        stages = screen.query_one(Stages)
        stages.focus()
        assert stages.cursor == 1
        await pilot.press("up")
        await until(lambda: stages.cursor == 0 and screen.picture and screen.picture.stages[0].id == "label")
        await pilot.press("f")
        await until(lambda: stages.cursor == 1)


def test_a_stage_line_is_as_wide_as_its_place() -> None:
    from pillm.tui.runs.picture import StageRow

    row = StageRow("a-stage-with-a-long-name", "running", 0.4, "some work: 4 of 10 things", "3 min 12 s")
    for width in range(10, 200):
        for each in (row, row._replace(share=None), row._replace(state="ran", share=1.0)):
            assert len("".join(text for text, _ in stage_line(each, width, 12))) == width if width > 44 else True


@in_loop
async def test_the_list_shows_runs_and_says_which_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folders.running(tmp_path / "runs")
    told(tmp_path / "runs" / "older", (0, "first", StageEnded("first", "failed", 1.0)))
    os.utime(tmp_path / "runs" / "older" / "events.jsonl", (1, 1))
    chosen: list[Path] = []

    class Lists(App[None]):
        def compose(self) -> ComposeResult:
            yield RunList(tmp_path / "runs")

        def on_run_list_chosen(self, message: RunList.Chosen) -> None:
            chosen.append(message.run_dir)

    app = Lists()
    async with app.run_test(size=(80, 24)) as pilot:
        found = app.query_one(RunList)
        await until(lambda: [run.name for run in found.runs] == ["home-assistant", "older"])
        assert [run.state for run in found.runs] == ["running", "failed"]
        await pilot.press("tab", "enter")
        await until(lambda: chosen == [tmp_path / "runs" / "home-assistant"])


def test_a_run_is_one_line() -> None:
    assert "x" in line(RunInfo(Path("x"), "x", "dead", 0.0))


ODD = "[red]a[/INST][/]"


@in_loop
async def test_eight_runs_on_the_screen_leave_threads_for_others(tmp_path: Path) -> None:
    app = opened(run_folders.done(tmp_path))
    async with app.run_test(size=(80, 24)):
        screen = await ready(app)
        # As on a machine with few processors.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        for _ in range(7):
            await app.push_screen(RunScreen(screen.run_dir, later))
            await ready(app)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "done"), 10) == "done"


@in_loop
async def test_a_run_that_is_open_is_not_opened_again(tmp_path: Path) -> None:
    app = opened(run_folders.done(tmp_path))
    async with app.run_test(size=(80, 24)):
        screen = await ready(app)
        show(app, screen.run_dir)
        await until(lambda: app.screen is screen)
        other = told(tmp_path / "other", (0, "s", Log("x")))
        show(app, other)
        await until(lambda: isinstance(app.screen, RunScreen) and app.screen.run_dir == other)
        await ready(app)
        show(app, screen.run_dir)
        await until(lambda: app.screen is screen)
        # What stands above it and may hold something unsaved stays.
        await app.push_screen(TextModal("a", "b"))
        show(app, screen.run_dir)
        await until(lambda: isinstance(app.screen, RunScreen) and app.screen is not screen)
        await ready(app)


@in_loop
async def test_data_is_no_markup(tmp_path: Path) -> None:
    finding = Finding(file=ODD, line=1, code=ODD, message=ODD, severity="error")
    run_dir = told(
        tmp_path / "run [b]x[INST]",
        (0, ODD, StageStarted(ODD, ODD)),
        (0, ODD, Found(finding)),
        (0, ODD, Made(ODD, Artifact(ODD, ODD, 1))),
        (0, ODD, Metric(ODD, 1.0, 1, ODD)),
        (1, ODD, Metric(ODD, 2.0, 2, ODD)),
        (1, ODD, Log(ODD, "error")),
        (2, ODD, Failed(ODD, ODD, 1)),
        (2, ODD, StageEnded(ODD, "failed", 2.0)),
    )
    app = opened(run_dir)
    async with app.run_test(size=(160, 50)) as pilot:
        screen = await ready(app)
        await until(lambda: screen.query_one("#found", DataTable).row_count == 1)
        assert ODD in str(screen.query_one("#found", DataTable).get_row_at(0)[0])
        assert ODD in str(screen.query_one("#made", DataTable).get_row_at(0)[0])
        await until(lambda: screen.query_one("#curve-0", Chart).border_title)
        title = screen.query_one("#curve-0", Chart)._border_title
        assert title is not None
        assert ODD in title.plain
        for tab in ("findings", "artifacts", "log"):
            screen.query_one("#tabs", TabbedContent).active = tab
            await pilot.pause(0.1)
        assert "[b]x[INST]" in str(screen.query_one("#head", Static).render())


@in_loop
async def test_a_single_command_that_is_done_runs_afresh_only_when_asked_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "single"
    run_dir.mkdir()
    (run_dir / folder.COMMAND).write_text('{"argv": ["pillm", "plan"]}')
    (run_dir / folder.EVENTS).write_text("")
    (run_dir / folder.ENDED).write_text("0\n")
    resumed: list[Path] = []
    monkeypatch.setattr("pillm.tui.runs.start.resume", resumed.append)
    app = opened(run_dir)
    async with app.run_test(size=(100, 30)) as pilot:
        screen = await ready(app)
        assert screen.picture
        assert screen.picture.state == "done"
        await pilot.press("r")
        await pilot.pause(0.3)
        assert not resumed
        await pilot.press("r")
        await until(lambda: resumed == [run_dir])


@in_loop
async def test_a_slow_look_for_runs_is_not_begun_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    go_on = threading.Event()
    monkeypatch.setattr("pillm.tui.runs.list.runs", lambda root: (looks.append(1), go_on.wait(20), [])[2])

    class Lists(App[None]):
        def compose(self) -> ComposeResult:
            yield RunList(tmp_path)

    app = Lists()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(lambda: looks)
        for _ in range(4):
            app.query_one(RunList)._look()
            await pilot.pause()
        assert len(looks) == 1
        go_on.set()
        await until(lambda: not app.query_one(RunList)._looking)
        app.query_one(RunList)._look()
        await until(lambda: len(looks) == 2)
