"""The history on real files: what is kept survives kills, full disks and second writers; what is foreign is left alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from history_runs import made, moment

from pillm.core.errors import PillmError, ResourceError, UsageError
from pillm.history import store
from pillm.history.document import Run
from pillm.history.schema import APPLICATION_ID, STEPS, VERSION
from pillm.history.store import Wanted

WRITER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from history_runs import made
from pillm.history import store
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    store.add(made(number), Path(sys.argv[1]))
    print(number, flush=True)
"""


def writer(path: Path, first: int, end: int) -> subprocess.Popen[str]:
    code = WRITER.format(tests=str(Path(__file__).parent))
    return subprocess.Popen([sys.executable, "-c", code, path, str(first), str(end)], stdout=subprocess.PIPE, text=True)


def numbers(path: Path) -> set[int]:
    return {int(run.id.rpartition("-")[2]) for run in store.runs(path=path)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "history.sqlite"


def test_a_run_comes_back_as_it_was_and_a_second_time_is_not_kept(path):
    run = made(1, warnings=("busy",), invalid=("throttled",), valid=False)
    assert store.add(run, path)
    assert not store.add(run, path)
    assert list(store.runs(path=path)) == [run]


def test_runs_come_by_the_time_they_started_however_they_were_added(path):
    order = [5, 1, 4, 2, 3]
    for number in order:
        store.add(made(number), path)
    assert [run.started for run in store.runs(path=path)] == [moment(number) for number in sorted(order)]
    assert [row.started for row in store.summaries(path=path, newest_first=True)] == [
        moment(n) for n in (5, 4, 3, 2, 1)
    ]


def test_a_time_with_an_offset_is_sorted_as_the_moment_it_means(path):
    store.add(made(1, started="2026-03-01T12:30:00+02:00"), path)
    store.add(made(2, started="2026-03-01T11:00:00Z"), path)
    assert [run.id[-1] for run in store.runs(path=path)] == ["1", "2"]


def test_the_place_is_the_variable_then_the_data_folder_then_home(monkeypatch, tmp_path):
    monkeypatch.setenv("PILLM_HISTORY", str(tmp_path / "own.sqlite"))
    assert store.location() == tmp_path / "own.sqlite"
    monkeypatch.delenv("PILLM_HISTORY")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert store.location() == tmp_path / "pillm" / "history.sqlite"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/somewhere")
    assert store.location() == Path("/somewhere/.local/share/pillm/history.sqlite")


def test_a_history_that_is_not_there_has_no_runs_and_is_not_made_by_looking(path):
    assert list(store.runs(path=path)) == []
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(board="pi 5"), {1, 3, 4}),
        (Wanted(board="%"), set()),
        (Wanted(model="smollm2_"), set()),
        (Wanted(model="QWEN"), {4}),
        (Wanted(build="bbb"), {3}),
        (Wanted(valid=False), {2}),
        (Wanted(valid=True, board="Pi"), {1, 3, 4}),
        (Wanted(since=moment(2), until=moment(4)), {2, 3}),
    ],
)
def test_filters(path, wanted, found):
    store.add(made(1), path)
    store.add(made(2, board="Raspberry Pi 4 Model B", valid=False), path)
    store.add(made(3, build="bbbbbbb"), path)
    store.add(made(4, model="Qwen2.5-0.5B.Q8_0.gguf"), path)
    assert {int(run.id[-2:]) for run in store.runs(wanted=wanted, path=path)} == found
    assert {int(row.id[-2:]) for row in store.summaries(wanted, path)} == found


def test_the_shorthand_of_a_board_filters(path):
    store.add(made(1), path)
    store.add(made(2, board="Raspberry Pi 4 Model B"), path)
    assert [run.board.model for run in store.runs("Pi 4", path=path)] == ["Raspberry Pi 4 Model B"]


def test_two_writers_at_once_on_a_new_file_lose_nothing(path):
    both = [writer(path, 0, 60), writer(path, 60, 120)]
    for process in both:
        process.communicate(timeout=300)
        assert process.returncode == 0
    assert numbers(path) == set(range(120))


def test_a_kill_at_any_moment_loses_no_finished_run(path):
    chance = random.Random(7)
    said: set[int] = set()
    for start in range(0, 600, 100):
        process = writer(path, start, start + 100)
        assert process.stdout is not None
        # Lines as they come: the kill then falls somewhere into the work on a later run.
        said |= {int(process.stdout.readline()) for _ in range(chance.randrange(1, 8))}
        time.sleep(chance.random() * 0.03)
        os.kill(process.pid, signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        said |= {int(line) for line in rest.splitlines()}
    assert numbers(path) >= said
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert store.add(made(9999), path)


def test_a_full_disk_is_told_and_costs_no_finished_run(small_disk):
    path = small_disk / "history.sqlite"
    kept: set[int] = set()

    def fill() -> None:
        for number in range(10_000):
            store.add(made(number), path)
            kept.add(number)

    with pytest.raises(ResourceError, match="disk is full"):
        fill()
    assert kept
    assert numbers(path) == kept
    subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
    assert store.add(made(20_000), path)
    assert numbers(path) == kept | {20_000}


def test_a_folder_that_cannot_be_written_to_can_be_read(tmp_path, read_only_folder):
    with pytest.raises(ResourceError, match=r"history\.sqlite|ead-only"):
        store.add(made(1), read_only_folder / "history.sqlite")
    with pytest.raises(ResourceError):
        store.add(made(1), read_only_folder / "sub" / "history.sqlite")
    assert list(store.runs(path=read_only_folder / "history.sqlite")) == []


def test_a_history_on_a_disk_that_became_read_only_can_be_read(small_disk):
    path = small_disk / "history.sqlite"
    store.add(made(1), path)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert numbers(path) == {1}
    with pytest.raises(ResourceError, match=r"history\.sqlite: cannot be opened or written"):
        store.add(made(2), path)


def test_a_read_only_history_whose_writer_was_cut_off_is_not_read_without_its_last_runs(small_disk, tmp_path):
    source = tmp_path / "history.sqlite"
    store.add(made(1), source)
    open_reader = store.runs(path=source)
    next(open_reader)
    # While somebody reads, the log stays beside the file, as after a kill.
    store.add(made(2), source)
    for each in tmp_path.glob("history.sqlite*"):
        if not each.name.endswith("-shm"):
            shutil.copy(each, small_disk)
    assert (small_disk / "history.sqlite-wal").stat().st_size
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    try:
        found = numbers(small_disk / "history.sqlite")
    except ResourceError as error:
        assert "last writer was cut off" in error.message  # noqa: PT017  either is right, a part of the runs is not
    else:
        assert found == {1, 2}
    open_reader.close()


def test_a_newer_version_is_named_and_not_written_to(path):
    store.add(made(1), path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match=f"version {VERSION + 1}"):
        store.add(made(2), path)
    with pytest.raises(UsageError, match="this history has version"):
        list(store.runs(path=path))
    assert path.read_bytes() == before


def test_a_history_of_the_first_version_is_brought_up_with_its_runs(path):
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    for statement in STEPS[0]:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    row = {**msgspec.structs.asdict(store.summary(made(1))), "document": msgspec.json.encode(made(1)).decode()}
    connection.execute(f"INSERT INTO runs ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values()))
    connection.commit()
    connection.close()
    assert list(store.runs(path=path)) == [made(1)]
    store.add(made(2), path)
    assert numbers(path) == {1, 2}
    assert store.remove([made(1).id], "test", path) == 1


def test_a_database_of_another_program_is_left_alone(path):
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    for work in (lambda: store.add(made(1), path), lambda: list(store.runs(path=path))):
        with pytest.raises(UsageError, match="another program"):
            work()
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_left_alone(path):
    path.parent.mkdir()
    path.write_bytes(b"hello, this is no database" * 100)
    before = path.read_bytes()
    with pytest.raises(PillmError, match=r"history\.sqlite: this history is damaged"):
        store.add(made(1), path)
    assert path.read_bytes() == before


def test_a_damaged_history_is_said_with_the_way_to_save_it_and_not_written_to(path):
    for number in range(200):
        store.add(made(number), path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 3 * 4096] = os.urandom(3 * 4096)
    path.write_bytes(data)
    with pytest.raises(PillmError, match="damaged") as raised:
        list(store.runs(path=path))
    assert f"pillm bench history --import {path}" in raised.value.hint
    assert path.read_bytes() == bytes(data)
    saved = [msgspec.json.decode(text) for text in store.salvage(path)]
    # A page holds a few runs: nearly all others come back, and each as it was.
    assert len(saved) > 150
    assert {run["id"] for run in saved} <= {made(number).id for number in range(200)}
    assert path.read_bytes() == bytes(data)


def test_a_run_cannot_be_changed(path):
    store.add(made(1), path)
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="only grows"):
        connection.execute("UPDATE runs SET valid = 0")
    connection.close()


def test_what_is_removed_leaves_its_trace(path):
    for number in range(5):
        store.add(made(number), path)
    assert store.remove([made(1).id, made(3).id, "unknown"], "keep-days=9", path) == 2
    assert numbers(path) == {0, 2, 4}
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT id, policy FROM pruned ORDER BY id").fetchall() == [
        (made(1).id, "keep-days=9"),
        (made(3).id, "keep-days=9"),
    ]
    connection.close()


def test_a_run_without_a_time_is_refused_and_nothing_of_its_batch_is_kept(path):
    store.add(made(1), path)
    with pytest.raises(UsageError, match="is no time"):
        store.add_all([(made(2), None), (made(3, started="yesterday"), None)], path)
    assert numbers(path) == {1}


def test_reading_goes_on_while_another_writes_and_shows_one_moment(path):
    store.add_all([(made(number), None) for number in range(50)], path)
    reader = store.runs(path=path)
    next(reader)
    store.add(made(50), path)
    assert len(list(reader)) == 49
    assert len(numbers(path)) == 51


def test_memory_does_not_grow_with_the_history(path):
    store.add_all(((made(number), None) for number in range(4000)), path)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            assert sum(1 for _ in store.runs(wanted=Wanted(until=moment(count)), path=path)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(4000) < peak(200) + 200_000


def test_fields_that_this_version_does_not_know_are_kept(path):
    text = msgspec.json.encode({**msgspec.to_builtins(made(1)), "fan_rpm": 3200})
    store.add_all([(msgspec.json.decode(text, type=type(made(1))), text)], path)
    assert [msgspec.json.decode(text)["fan_rpm"] for text in store.documents(path=path)] == [3200]


@pytest.mark.parametrize(
    ("changed", "about"),
    [
        ({"started": "0900-01-01T00:00:00Z"}, "`started`"),
        ({"started": "0001-01-01T00:00:00+05:00"}, "`started`"),
        ({"board": {"architecture": "aarch64", "kernel": "Linux", "ram_bytes": 10**18 * 10}}, "`board.ram_bytes`"),
        ({"speeds": [{"what": "decode", "tokens": 1, "depth": 0, "threads": 1, "mean_tps": -1.0, "stddev_tps": 0.0,
                      "samples_tps": []}]}, "`speeds`"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_is_refused(path, changed, about):
    with pytest.raises(UsageError, match=about):
        store.add(msgspec.convert({**msgspec.to_builtins(made(1)), **changed}, Run), path)
    assert list(store.runs(path=path)) == []


def test_a_moment_with_minutes_is_that_moment(path):
    store.add(made(1, started="2026-11-22T10:00:30Z"), path)
    for since, until, count in (
        ("2026-11-22T10:00Z", None, 1),
        (None, "2026-11-22T10:00Z", 0),
        ("2026-11-22", None, 1),
    ):
        assert len(list(store.runs(wanted=store.Wanted(since=since, until=until), path=path))) == count
    with pytest.raises(UsageError, match="2026-99-99"):
        list(store.runs(wanted=store.Wanted(since="2026-99-99"), path=path))
