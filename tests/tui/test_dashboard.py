"""The dashboard: what it says of a history, of quality and of a dataset, and its pictures."""

from __future__ import annotations

import random
import shutil
import threading
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from run_folders import SIZES, Host, in_loop, still, until
from textual.widgets import DataTable, Input, Select, Static, TabbedContent

from pillm.bench.trends.changes import NEEDED
from pillm.evaluate.report import Closeness, Measured, Quality, Scores, rate
from pillm.history import store
from pillm.history.document import Board, Model, Run, Runtime, Speed, State
from pillm.pipeline import quality
from pillm.tui.dashboard import speed
from pillm.tui.dashboard.charts import QualityChart
from pillm.tui.dashboard.coverage import CoverageTab, banners, measured
from pillm.tui.dashboard.quality import QualityTab, names, rows
from pillm.tui.dashboard.screen import DashboardScreen

TARGETS = """\
targets:
  - {locale: fr-CA, register: formal, records: 50}
  - {locale: pt-BR, share: 0.2}
  - {locale: en-US, records: 2}
"""


def one(number: int, build: str, tps: float, *, valid: bool = True, board: str = "Raspberry Pi 5") -> Run:
    both: tuple[tuple[Literal["decode", "prefill"], float], ...] = (("decode", tps), ("prefill", 5 * tps))
    tests = tuple(
        Speed(what=what, tokens=64, depth=0, threads=4, mean_tps=value, stddev_tps=0.1, samples_tps=(value,))
        for what, value in both
    )
    return Run(
        id=f"{board}-{number}", started=f"2026-01-{1 + number // 8:02d}T{number % 8:02d}:00:00Z", seconds=60.0, tool="made up",
        valid=valid, invalid=() if valid else ("throttled",),
        board=Board(model=board, ram_bytes=2**33, architecture="aarch64", kernel="6.12"), before=State(at_s=0.0),
        runtime=Runtime(kind="llama.cpp", commit=build), model=Model(file="home-Q4_0.gguf", parameters=10**8, read_bytes=10**8),
        speeds=tests,
    )  # fmt: skip


@pytest.fixture
def history(tmp_path: Path) -> Path:
    path = tmp_path / "history.sqlite"
    chance = random.Random(4)
    for board, level in (("Raspberry Pi 5", 20.0), ("Raspberry Pi 4", 7.0)):
        made = []
        for number in range(60):
            build = "aaaaaaa" if number < 30 else "bbbbbbb"
            tps = level * (1.0 if number < 30 else 0.85) * chance.gauss(1, 0.01)
            made.append((one(number, build, tps, valid=number % 13 != 5, board=board), None))
        store.add_all(made, path)
    return path


@pytest.fixture
def measured_runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for name, size, hits in (("small", 92_000_000, 55), ("middle", 145_000_000, 80), ("large", 271_000_000, 84)):
        report = Quality(
            model=Measured(f"{name}.gguf", size, "0" * 64, ""), data="heldout", data_sha256="0" * 64, records=100, asked=100,
            overall=Scores(exact_match=rate(hits, 100), json_validity=rate(99, 100)), by_locale={}, by_tool={}, by_kind={},
            failures={}, closeness=[Closeness(f"{name}.gguf", size, "model")], closeness_text="", max_tokens=1, context=1, llamacpp="1",
        )  # fmt: skip
        path = root / name / "evaluate" / quality.REPORT
        path.parent.mkdir(parents=True)
        path.write_bytes(msgspec.json.encode(report))
    return root


# What it says


def test_a_slower_build_is_called_worse_and_runs_that_do_not_count_are_marked(history: Path) -> None:
    found = speed.judged(speed.read(history))
    assert (found.runs, found.invalid) == (120, 10)
    cells = [dict(zip(speed.COLUMNS, row, strict=True)) for row in speed.rows(found)]
    assert {row["last change"] for row in cells} == {"▼ worse"}
    assert all("×" in row["runs"] for row in cells)
    text = "\n".join(speed.build_lines(found.builds[0]))
    assert "bbbbbbb" in text.splitlines()[0]
    assert "▼ worse: time +" in text
    assert "30 runs (3 ×)" in text


def test_a_trend_breaks_at_a_build_and_has_few_points(history: Path) -> None:
    whole = speed.read(history).series[0]
    drawn = speed.trend(whole, 20)
    assert len(drawn.pieces) == 2
    assert len(drawn.changes) == 1
    assert len(drawn.crosses[0]) == 5
    assert sum(len(xs) for xs, _ in drawn.pieces) <= 24
    assert drawn.pieces[0][0][-1] < drawn.changes[0] <= drawn.pieces[1][0][0]


def test_few_runs_get_no_verdict_but_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    store.add_all([(one(number, "ab"[number // 2] * 7, 20.0), None) for number in range(NEEDED)], path)
    found = speed.judged(speed.read(path))
    assert speed.rows(found)[0][speed.COLUMNS.index("last change")] == "too few runs"
    assert any("are needed" in line for line in speed.build_lines(found.builds[0]))


def test_a_history_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    assert speed.read(tmp_path / "none").series == ()
    assert speed.stamp(tmp_path / "none") == ()


def test_the_stamp_of_a_history_changes_with_each_run(history: Path) -> None:
    before = speed.stamp(history)
    store.add(one(99, "ccccccc", 20.0), history)
    assert speed.stamp(history) != before


def test_quality_stands_beside_size_and_broken_reports_are_left_out(measured_runs: Path) -> None:
    broken = measured_runs / "broken" / "evaluate" / quality.REPORT
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    found = quality.found(measured_runs)
    assert [(item.run, item.bytes) for item in found] == [
        ("large/evaluate", 271_000_000), ("middle/evaluate", 145_000_000), ("small/evaluate", 92_000_000),
    ]  # fmt: skip
    assert names(found) == ["exact_match", "json_validity"]
    assert rows(found, names(found))[2][:3] == ("small/evaluate", "92.0 MB", "55.0 (45.2-64.4)")


def test_coverage_says_how_many_records_of_what_are_missing(tmp_path: Path) -> None:
    (tmp_path / "targets.yaml").write_text(TARGETS)
    found = measured("dataset:home-assistant/smoke", str(tmp_path / "targets.yaml"))
    told = banners(found)
    assert "fr-CA, formal: 2 of 50 records, 48 are missing" in told
    assert any(line.startswith("pt-BR: 0 of 8") for line in told)
    assert not any(line.startswith("en-US") for line in told)


# The screen


def opened(history: Path | None, runs: Path, theme: str = "pillm-dark", **more: str) -> Host:
    return Host(lambda: DashboardScreen(history, runs, **more), theme)


async def ready(app: Host) -> DashboardScreen:
    await until(lambda: isinstance(app.screen, DashboardScreen) and app.screen.is_mounted)
    screen = app.screen
    assert isinstance(screen, DashboardScreen)
    await until(lambda: screen.speeds and screen.speeds.builds)
    return screen


@pytest.mark.parametrize("tab", ["speed", "quality", "coverage"])
@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_picture(
    tab: str,
    theme: str,
    size: tuple[int, int],
    history: Path,
    measured_runs: Path,
    tmp_path: Path,
    snap_compare,
    monkeypatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("targets.yaml").write_text(TARGETS)
    app = opened(history, measured_runs, f"pillm-{theme}", data="dataset:home-assistant/smoke", targets="targets.yaml")

    async def settled(pilot) -> None:
        screen = await ready(app)
        screen.query_one("#tabs", TabbedContent).active = tab
        await until(lambda: screen.query_one(QualityTab).points)
        await until(lambda: screen.query_one(CoverageTab).has_class("-missing"))
        await still(pilot)

    assert snap_compare(app, terminal_size=size, run_before=settled)


@in_loop
async def test_new_runs_and_reports_appear_while_it_is_open(
    history: Path, measured_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(history, measured_runs)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await ready(app)
        table = screen.query_one("#series", DataTable)
        await pilot.press("down")
        await pilot.pause()
        here = screen.speeds and screen.speeds.series[table.cursor_row].key
        store.add(one(99, "ccccccc", 20.0, board="Raspberry Pi 3"), history)
        shutil.copytree(measured_runs / "small", measured_runs / "another")
        await until(lambda: screen.speeds and screen.speeds.runs == 121 and screen.speeds.builds)
        await until(lambda: len(screen.query_one(QualityTab).points) == 4)
        await until(lambda: screen.speeds and screen.speeds.series[table.cursor_row].key == here)
        assert len(table.rows) == 6


@in_loop
async def test_nothing_is_read_again_while_nothing_changes(
    history: Path, measured_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path | None] = []
    real = speed.read
    monkeypatch.setattr(speed, "read", lambda path=None: (reads.append(path), real(path))[1])
    app = opened(history, measured_runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await ready(app)
        for _ in range(3):
            screen._look()
            await pilot.pause(0.1)
    assert len(reads) == 1


@in_loop
async def test_what_cannot_be_read_is_a_message(tmp_path: Path) -> None:
    bad = tmp_path / "bad.sqlite"
    bad.write_text("this is no database, and long enough to be told from one" * 40)
    app = opened(bad, tmp_path / "no runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(lambda: isinstance(app.screen, DashboardScreen) and app.screen.query("#wrong.-some"))
        await pilot.press("2")
        assert app.screen.query_one(QualityTab).has_class("-empty")
        await pilot.press("3")
        tab = app.screen.query_one(CoverageTab)
        await until(lambda: len(tab.query_one(Select)._options) > 1)
        tab.query_one(Select).value = "dataset:home-assistant/smoke"
        await until(lambda: "40 records" in str(tab.query_one("#counts", Static).render()))
        targets = tab.query_one("#targets", Input)
        targets.value = "no such file"
        targets.focus()
        await pilot.press("enter")
        await until(lambda: "no such file" in str(tab.query_one("#missing", Static).render()))
        await pilot.resize_terminal(20, 5)
        await pilot.press("1")
        await pilot.pause()


ODD = "[red]a[/INST][/]"


@in_loop
async def test_data_is_no_markup(
    history: Path, measured_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("[red]a[INST].jsonl").write_text("{}\n")
    store.add(one(99, ODD, 20.0, board=ODD), history)
    (measured_runs / "small").rename(measured_runs / "[b]x[INST]")
    report = measured_runs / "[b]x[INST]" / "evaluate" / quality.REPORT
    real = quality.found

    def found(root: Path) -> list[quality.Measured]:
        return [msgspec.structs.replace(item, measures={ODD: rate(1, 2)}, file=ODD) for item in real(root)]

    assert report.is_file()
    monkeypatch.setattr(quality, "found", found)
    app = opened(history, measured_runs)
    async with app.run_test(size=(160, 50)) as pilot:
        screen = await ready(app)
        series = screen.query_one("#series", DataTable)
        await until(lambda: any(ODD in str(series.get_row_at(place)[1]) for place in range(series.row_count)))
        tab = screen.query_one(QualityTab)
        await until(lambda: tab.points)
        await pilot.press("2")
        await pilot.pause(0.3)
        table = tab.query_one(DataTable)
        assert any(ODD in str(column.label) for column in table.columns.values())
        assert ODD in str(table.get_row_at(0)[-1])
        title = tab.query_one(QualityChart)._border_title
        assert title is not None
        assert ODD in title.plain
        assert ODD in str(tab.query_one(Select)._options[-1][0])
        await pilot.press("3")
        select = screen.query_one(CoverageTab).query_one(Select)
        await until(lambda: any(value == "[red]a[INST].jsonl" for _, value in select._options))
        assert any(str(prompt) == "[red]a[INST].jsonl" for prompt, _ in select._options)
        select.value = "[red]a[INST].jsonl"
        await pilot.pause(0.2)
        select.action_show_overlay()
        await pilot.pause(0.2)


@in_loop
async def test_datasets_are_looked_for_beside_the_screen(
    history: Path, measured_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr("pillm.tui.dashboard.coverage.datasets", lambda: (begun.set(), go_on.wait(20), [])[2])
    app = opened(history, measured_runs)
    async with app.run_test(size=(80, 24)):
        await ready(app)  # and it is drawn
        await until(begun.is_set)
        go_on.set()
