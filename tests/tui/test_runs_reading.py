"""Reading logs: whole lines only, none lost, any size, in both directions. No terminal."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from pillm.core.artifacts import Artifact
from pillm.core.events import (
    Failed,
    Finished,
    Found,
    Log,
    Made,
    Metric,
    Output,
    Progress,
    StageEnded,
    StageStarted,
    encode,
)
from pillm.core.findings import Finding
from pillm.tui.runs import folder
from pillm.tui.runs import lines as lines_module
from pillm.tui.runs.curve import MOST, Curve
from pillm.tui.runs.find import state_of
from pillm.tui.runs.lines import EVERYTHING, Keep, Numbers, after, before, line_start
from pillm.tui.runs.row import LEVELS, keeper, row
from pillm.tui.runs.scroller import Scroller
from pillm.tui.runs.state import MOST_FINDINGS, RunView, add
from pillm.tui.runs.tail import LONGEST, Tail
from pillm.tui.runs.window import Window


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def write(path: Path, data: bytes, mode: str = "ab") -> None:
    with path.open(mode) as file:
        file.write(data)


# Tail


def test_a_torn_line_waits_for_its_rest(log: Path) -> None:
    tail = Tail(log)
    assert tail.read() == []
    write(log, b"one\ntw")
    assert tail.read() == [b"one"]
    assert (tail.read(), tail.behind()) == ([], 2)
    write(log, b"o\n")
    assert tail.read() == [b"two"]
    assert tail.behind() == 0


def test_a_file_that_was_cut_or_replaced_is_read_again(log: Path, tmp_path: Path) -> None:
    write(log, b"one\ntwo\n")
    tail = Tail(log)
    assert tail.read() == [b"one", b"two"]
    write(log, b"new\n", "wb")
    assert (tail.read(), tail.restarts) == ([b"new"], 1)
    other = tmp_path / "other"
    write(other, b"another file\n")
    other.replace(log)
    assert (tail.read(), tail.restarts) == ([b"another file"], 2)
    log.unlink()
    assert tail.read() == []


def test_no_line_is_lost_while_they_are_written_in_pieces_of_any_size(log: Path) -> None:
    text = b"".join(b"%d %s\n" % (number, b"x" * (number % 300)) for number in range(30_000))
    chance = random.Random(3)

    def writing() -> None:
        at = 0
        with log.open("ab", buffering=0) as file:
            while at < len(text):
                at += file.write(text[at : at + chance.randint(1, 40_000)])

    writer = threading.Thread(target=writing)
    writer.start()
    tail, seen = Tail(log), []
    while writer.is_alive() or tail.behind():
        seen += tail.read()
    writer.join()
    assert b"".join(line + b"\n" for line in seen) == text


def test_a_line_without_an_end_is_passed_on_in_parts(log: Path) -> None:
    write(log, b"y" * (LONGEST + 10))
    assert [len(line) for line in Tail(log).read()] == [LONGEST]


# Lines around a place


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 18])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_lines_forwards_and_backwards_are_the_same(
    log: Path, block: int, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module, "BLOCK", block)
    # Lines beyond two blocks come in parts, so they are shorter here than that or the block is large.
    text = b"a\n\nbc\nd\n" if block < 7 else b"first\n\nsecond\nthird line\nlast"
    write(log, text + end)
    forwards = list(after(log, 0))
    backwards = list(before(log, log.stat().st_size))
    assert [line.data for line in forwards] == (text + end).removesuffix(b"\n").split(b"\n")
    assert backwards == forwards[::-1]
    for line in forwards:
        assert next(after(log, line.start)) == line
        assert line_start(log, line.end - 1) == line.start


def test_lines_of_no_file_are_none(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert list(after(gone, 0)) == list(before(gone, 10)) == []
    assert line_start(gone, 5) == 0


def test_numbers_and_places_of_lines_agree_with_the_text(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "BLOCK", 37)
    text = b"".join(b"line %d\n" % number for number in range(100))
    write(log, text + b"torn")
    numbers = Numbers(log)
    assert numbers.number(50) is None
    numbers.extend()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for number, start in enumerate(starts, 1):
        assert (numbers.place(number), numbers.number(start)) == (start, number)
    assert numbers.place(500) is None
    write(log, b" no more\nnext\n")
    numbers.extend()
    assert numbers.place(102) == len(text) + len(b"torn no more\n")


# What a line says


EVENTS = (
    Log("words", "info"), Log("quiet", "debug"), Log("careful", "warning"), Log("broken", "error"), Output("a row"),
    Progress("steps", 3, 10, "steps"), Metric("loss", 1.5, 3, "nats"), StageStarted("first", "do --it"),
    StageEnded("first", "failed", 2.0), Failed("it broke", "mend it", 2), Finished({"loss": 0.5}),
    Made("model", Artifact("out/model", "ab" * 32, 10)),
    Found(Finding(file="x.jsonl", line=3, code="bad", message="this line is bad", severity="warning")),
)  # fmt: skip


def test_every_event_has_a_level_and_words() -> None:
    rows = [row(encode(event)) for event in EVENTS]
    assert all(each.text for each in rows)
    assert [each.level for each in rows[:4]] == ["info", "debug", "warning", "error"]
    assert rows[8].level == rows[9].level == "error"
    assert rows[-1].level == "warning"
    assert "x.jsonl:3" in rows[-1].text


@pytest.mark.parametrize(
    "line", [b"", b"{", b'{"event":"nothing"}', b"\xff\xfe", b"\x1b[31mred\x1b[0m\x07", b"[1]", b"{}"]
)
def test_what_is_no_event_is_text_without_control_codes(line: bytes) -> None:
    assert row(line).text.isprintable()


def test_logs_of_programs_have_levels_by_their_words() -> None:
    assert row(b"Traceback (most recent call last):").level == "error"
    assert row(b"UserWarning: slow").level == "info"
    assert row(b"warning: slow").level == "warning"
    assert row(b"terrors").level == "info"


def test_the_fast_choice_of_lines_is_the_slow_one() -> None:
    """What `block` and the bytes say must agree with the decoded row."""
    lines = [encode(event) for event in EVENTS] + [
        b"plain words",
        b"an Error here",
        b'{"at": "x',
        encode(Log('Grüße \\ "x"')),
    ]
    shown = [line for line in lines if b'"progress"' not in line and b'"metric"' not in line]
    for level in LEVELS:
        for pattern in (
            "",
            "words",
            "WORDS",
            "x.jsonl:3",
            "this line",
            "mend",
            "grüße",
            '"x"',
            "== first",
            "done: loss",
        ):
            keep = keeper(level, pattern)
            floor = LEVELS.index(level)
            expected = [
                line for line in shown
                if LEVELS.index(row(line).level) >= floor and pattern.lower() in row(line).text.lower()
            ]  # fmt: skip
            assert [line for line in lines if keep.line(line)] == expected, (level, pattern)
            for line in expected:
                assert keep.block(line), (level, pattern, line)


# A window


def filled(log: Path, count: int = 1000) -> None:
    write(
        log,
        b"".join(
            encode(Log(f"line {number}", "error" if number % 100 == 7 else "info")) + b"\n" for number in range(count)
        ),
    )


def texts(window: Window) -> list[str]:
    return [row(line.data).text for line in window.lines]


def test_a_window_moves_by_lines_and_stops_at_both_ends(log: Path) -> None:
    filled(log)
    window = Window(log, 5)
    window.last()
    assert texts(window) == [f"line {number}" for number in range(995, 1000)]
    assert window.move(-3)
    assert texts(window)[0] == "line 992"
    assert not window.following
    window.move(3)
    assert not window.following
    window.move(1)
    assert window.following
    window.first()
    assert texts(window)[0] == "line 0"
    assert not window.move(-1)
    assert len(window.lines) == 5
    window.resize(8)
    assert texts(window) == [f"line {number}" for number in range(8)]


def test_a_filter_shows_only_what_it_wants_and_results_come_as_they_are_found(log: Path) -> None:
    filled(log)
    window, seen = Window(log, 20), []
    window.want(keeper("error"), on_some=lambda: seen.append(len(window.lines)))
    assert texts(window) == [f"line {number}" for number in range(7, 1000, 100)]
    assert seen[0] == 1
    window.want(keeper("debug", "line 55"))
    assert texts(window) == ["line 55", *(f"line {number}" for number in range(550, 560))]
    window.want(keeper("debug", "nowhere"))
    assert window.lines == []
    assert not window.move(1)


def test_a_search_that_is_stopped_reads_no_further(log: Path) -> None:
    filled(log)
    window = Window(log, 5)
    window.want(keeper("debug", "nowhere"), stop=lambda: True)
    assert window.lines == []


@pytest.mark.parametrize("keep", [EVERYTHING, keeper("debug", "even")])
def test_a_following_window_is_what_a_fresh_one_would_be(log: Path, keep: lines_module.Keep) -> None:
    chance = random.Random(5)
    window = Window(log, 7, keep)
    window.last()
    text = b"".join(b"%s %d\n" % (b"even" if number % 2 else b"odd", number) for number in range(2000))
    at = 0
    while at < len(text):
        step = chance.randint(1, 900)
        write(log, text[at : at + step])
        at += step
        window.grow()
        fresh = Window(log, 7, keep)
        fresh.last()
        assert window.lines == fresh.lines
    assert not window.grow()


def test_a_window_on_a_file_that_vanished_is_empty(log: Path) -> None:
    filled(log, 10)
    window = Window(log, 5)
    window.last()
    log.unlink()
    window.grow()
    assert window.lines == []


# Curves and the state of a run


def test_a_curve_keeps_its_shape_and_never_grows_beyond_a_screen() -> None:
    curve = Curve("loss")
    for step in range(100_000):
        curve.add(step, 100_000 - step)
    assert len(curve.steps) == len(curve.values) <= MOST
    assert curve.steps == sorted(curve.steps)
    assert all(abs(step + value - 100_000) < 1e-6 for step, value in zip(curve.steps, curve.values, strict=True))
    assert curve.last == 1


def test_a_curve_goes_back_where_a_run_resumed_and_leaves_out_what_is_no_number() -> None:
    curve = Curve("loss")
    for step in (1, 2, 3, 4, 3, 4, 5):
        curve.add(step, float(step))
    curve.add(6, float("nan"))
    assert curve.steps == [1, 2, 3, 4, 5]


def journal(*events: object, stage: str = "first") -> list[bytes]:
    head = b'{"at":"2026-01-02T03:04:05Z","stage":"%s",' % stage.encode()
    return [head + encode(event)[1:] for event in events]  # type: ignore[arg-type]


def test_the_state_of_a_run_follows_its_events() -> None:
    view = RunView()
    add(view, journal(StageStarted("first", "do it"), Progress("steps", 1, 4), Metric("loss", 2.0, 1, "nats")))
    add(view, journal(Log("hm", "warning"), Metric("loss", 1.0, 2, "nats"), *EVENTS[-2:]))
    first = view.stages["first"]
    assert (first.state, first.bar and first.bar.done) == ("running", 1)
    assert first.curves["loss"].values == [2.0, 1.0]
    assert (view.warnings, view.findings_in_all, list(view.artifacts)) == (1, 1, ["first/model"])
    add(view, journal(Failed("no", "do", 2), StageEnded("first", "failed", 3.0)))
    assert (first.state, first.error, first.seconds) == ("failed", "no", 3.0)
    add(view, [b"no event", b'{"event":', b"{}"])
    assert view.lines == 12
    add(view, journal(StageStarted("first", "do it again")))
    assert (first.state, first.error, first.curves["loss"].values) == ("running", "", [2.0, 1.0])


def test_the_state_does_not_grow_with_findings_and_names() -> None:
    view = RunView()
    for number in range(3 * MOST_FINDINGS):
        found = Finding(file="x", line=number, code="bad", message="bad")
        add(view, journal(Found(found), Metric(f"name {number}", 1.0), Progress(f"bar {number}", 1)))
    assert len(view.findings) == MOST_FINDINGS
    assert view.findings_in_all == 3 * MOST_FINDINGS
    assert len(view.stages["first"].curves) < 100
    assert len(view.stages["first"].bars) < 100


def test_a_single_command_without_a_journal_is_one_stage() -> None:
    view = RunView(single="only")
    add(view, [encode(Progress("rows", 1, 2)), encode(Finished({"n": 1}))])
    assert view.stages["only"].metrics == {"n": 1}


# What is not what it should be


def test_bytes_that_are_no_utf8_are_text_that_says_nothing(tmp_path: Path) -> None:
    for bad in (
        b'{"event":"failed","message":"\xff","hint":"","exit_code":1}',
        b'{"at":"\xfe","stage":"\xff"}',
        b"{\xff",
    ):
        assert row(bad).text.startswith("{")
        view = RunView()
        add(view, [bad])
        assert (view.lines, view.errors) == (1, 0)
        write(tmp_path / "events.jsonl", b'{"event":"stage-started","stage":"a","command":"x"}\n' + bad + b"\n", "wb")
        assert state_of(tmp_path)[0] == "dead"
    write(tmp_path / "events.jsonl", b'{"stage":"\xff"}\n', "wb")
    assert state_of(tmp_path)[0] == "stopped"
    write(tmp_path / folder.COMMAND, b'{"argv":["\xff"]}')
    assert folder.command(tmp_path) is None


def test_a_line_that_nobody_wants_and_that_never_ends_is_not_held(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "BLOCK", 1000)
    write(log, b"y" * 50_000 + b"\nwanted\n")
    held: list[int] = []

    def block(data: bytes) -> bool:
        held.append(len(data))
        return b"wanted" in data

    keep = Keep(lambda data: data == b"wanted", block)
    assert [line.data for line in after(log, 0, keep)] == [b"wanted"]
    assert [line.data for line in before(log, log.stat().st_size, keep)] == [b"wanted"]
    assert max(held) <= 4000


def test_a_filter_a_file_and_a_place_do_not_undo_each_other(log: Path, tmp_path: Path) -> None:
    filled(log, 300)
    other = tmp_path / "other"
    write(other, b"fine\nan error\nfine\n")
    told: list[list[bytes]] = []
    scroller = Scroller(log, lambda shown: told.append([line.data for line in shown.lines]))
    scroller.ask_keep(keeper("error"))
    scroller.ask_file(other)
    scroller._step(lambda: False)
    scroller._show(False)
    assert told[-1] == [b"an error"]
    scroller.ask_keep(EVERYTHING)
    scroller.ask_first()
    scroller._step(lambda: False)
    scroller._show(False)
    assert told[-1] == [b"fine", b"an error", b"fine"]
