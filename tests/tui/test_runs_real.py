"""Real runs in real processes: started from here, by the engine, stopped, killed, resumed, found again."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import run_folders

from pillm.core.command import Command
from pillm.core.errors import UsageError
from pillm.pipeline import engine
from pillm.tui.runs import alive, folder
from pillm.tui.runs.find import info, runs, state_of
from pillm.tui.runs.picture import Picture
from pillm.tui.runs.reader import Reader
from pillm.tui.runs.start import at_work, resume, start, stop

FAKES = Path(__file__).parent.parent / "pipeline" / "fake_stages.py"
PROFILE = """\
profile: 1
name: tiny
stages:
  copy: {data: lines.txt, pause: 0.02}
  join: {left: "${copy.copied}"}
"""
CARD = """\
profile: 1
name: described
stages:
  card: {data: [dataset:home-assistant/smoke]}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PILLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PILLM_LLAMACPP_DIR", raising=False)
    (tmp_path / "lines.txt").write_text("".join(f"line {number}\n" for number in range(150)))
    (tmp_path / "tiny.yaml").write_text(PROFILE)
    return tmp_path


def until(test: Callable[[], object], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.05)


def engine_run(here: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(FAKES), "run", "tiny.yaml", "runs/tiny"], cwd=here, stderr=subprocess.DEVNULL
    )


def look(reader: Reader) -> Picture:
    while reader.read():
        pass
    return reader.look()


def test_the_lock_has_the_name_that_the_engine_gives_it() -> None:
    assert folder.LOCK == engine.LOCK


def test_a_run_of_the_engine_is_watched_from_its_first_line_to_its_last(here: Path) -> None:
    process = engine_run(here)
    run_dir = Path("runs/tiny")
    until(lambda: (run_dir / "events.jsonl").exists())
    reader = Reader(run_dir)
    until(lambda: look(reader).stages)
    found = look(reader)
    assert found.state == "running"
    assert info(run_dir).state == "running"
    shares: set[float | None] = set()

    def ended() -> bool:
        shares.add(look(reader).stages[0].share)
        return process.poll() is not None

    until(ended)
    assert process.returncode == 0
    until(lambda: look(reader).state == "done")
    found = look(reader)
    assert [(row.id, row.state) for row in found.stages] == [("copy", "ran"), ("join", "ran")]
    assert len(shares) > 1
    # Nothing was lost on the way, and what the manifest says of outputs is shown.
    assert reader.view.lines == len((run_dir / "events.jsonl").read_bytes().splitlines())
    assert {row.name for row in found.artifacts} == {"copy/copied", "join/joined"}
    assert all(len(row.sha256) == 64 and row.path.is_file() for row in found.artifacts)
    # A finished run looks the same to somebody who comes later.
    assert look(Reader(run_dir)) == found


def test_a_run_whose_process_was_killed_is_shown_as_such(here: Path) -> None:
    process = engine_run(here)
    run_dir = Path("runs/tiny")
    until(lambda: (run_dir / "events.jsonl").exists() and b"progress" in (run_dir / "events.jsonl").read_bytes())
    process.kill()
    # Nobody has asked for its exit code yet: a zombie is not at work either.
    until(lambda: state_of(run_dir)[0] == "dead")
    process.wait()
    found = look(Reader(run_dir))
    assert found.state == "dead"
    assert found.stages[0].state == "dead"
    assert "nothing says how it ended" in found.message
    assert not stop(run_dir)


def test_a_run_is_stopped_as_by_ctrl_c(here: Path) -> None:
    process = engine_run(here)
    run_dir = Path("runs/tiny")
    until(lambda: (run_dir / "events.jsonl").exists() and b"progress" in (run_dir / "events.jsonl").read_bytes())
    assert at_work(run_dir)
    assert stop(run_dir)
    assert process.wait(30) == 130
    assert state_of(run_dir)[0] == "stopped"
    assert [run.state for run in runs()] == ["stopped"]


def test_a_profile_is_started_found_again_and_done(here: Path) -> None:
    (here / "described.yaml").write_text(CARD)
    run_dir = start(Command(("pillm", "run", "described.yaml")), name="described")
    assert run_dir == Path("runs/described")
    assert at_work(run_dir)
    with pytest.raises(UsageError, match="at work"):
        start(Command(("pillm", "run", "described.yaml")), name="described")
    until(lambda: not at_work(run_dir))
    assert state_of(run_dir) == ("done", "")
    found = look(Reader(run_dir))
    assert [(row.id, row.state) for row in found.stages] == [("card", "ran")]
    assert (run_dir / "manifest.json").is_file()
    resume(run_dir)
    until(lambda: not at_work(run_dir))
    assert look(Reader(run_dir)).stages[0].state == "cached"


def test_a_profile_that_cannot_run_says_why(here: Path) -> None:
    (here / "described.yaml").write_text(CARD)
    run_dir = start(Command(("pillm", "run", "described.yaml", "--until=nowhere")), name="described")
    until(lambda: state_of(run_dir)[0] == "failed")
    assert "nowhere" in state_of(run_dir)[1]
    with pytest.raises(UsageError):
        start(Command(("pillm", "run", "no-such-profile")), name="x")


def test_a_single_command_gives_the_same_as_on_the_command_line(here: Path) -> None:
    argv = ("pillm", "dataset", "card", "dataset:home-assistant/smoke", "--out=made")
    run_dir = start(Command(argv), name="dataset card")
    assert run_dir.parent == Path("runs/ui")
    until(lambda: not at_work(run_dir))
    assert state_of(run_dir) == ("done", "")
    found = look(Reader(run_dir))
    assert [(row.id, row.state) for row in found.stages] == [("dataset card", "done")]
    made = {path.name: path.read_bytes() for path in Path("made").iterdir()}
    subprocess.run([sys.executable, "-m", *argv[:-1], "--out=again"], check=True, capture_output=True)
    assert made == {path.name: path.read_bytes() for path in Path("again").iterdir()}
    assert [run.name for run in runs()] == [f"ui/{run_dir.name}"]


def test_a_single_command_that_fails_shows_its_findings_and_its_error(here: Path) -> None:
    Path("bad.jsonl").write_text('{"id": "1"}\nno json\n')
    run_dir = start(Command(("pillm", "dataset", "validate", "bad.jsonl")), name="validate")
    until(lambda: state_of(run_dir)[0] == "failed")
    found = look(Reader(run_dir))
    assert found.message
    assert {item.line for item in found.findings} == {1, 2}


def test_a_command_that_prints_one_document_prints_it_for_people(here: Path) -> None:
    run_dir = start(Command(("pillm", "plan", "nothing.gguf")), name="plan")
    until(lambda: not at_work(run_dir))
    assert "--json" not in json.loads((run_dir / folder.ASKED).read_text())["argv"]


def test_a_started_command_outlives_its_starter_and_dies_with_its_worker(here: Path) -> None:
    Path("slow.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    place = Path("runs/ui/slow")
    place.mkdir(parents=True)
    asked = {"argv": [sys.executable, str(here / "slow.py")]}
    for name in (folder.COMMAND, folder.ASKED):
        (place / name).write_text(json.dumps(asked))
    argv = [sys.executable, "-m", "pillm.tui.runs.worker", str(place)]
    assert subprocess.run(argv, start_new_session=True, check=False).returncode == 0
    until(lambda: (place / folder.EVENTS).exists() and (place / folder.EVENTS).read_text() == "begun\n")
    assert state_of(place)[0] == "running"
    os.kill(int((place / folder.PID).read_text().split()[0]), signal.SIGKILL)
    until(lambda: state_of(place)[0] == "dead")
    assert subprocess.run(argv, start_new_session=True, check=False).returncode == 0
    until(lambda: (place / folder.EVENTS).read_text() == "begun\n" * 2)
    assert stop(place)
    until(lambda: folder.exit_code(place) is not None)
    assert state_of(place)[0] == "stopped"


def test_a_number_of_another_process_is_not_ours(tmp_path: Path) -> None:
    lock, pid = tmp_path / folder.LOCK, tmp_path / folder.INSIDE / folder.PID
    pid.parent.mkdir()
    run_folders.hold(tmp_path)
    assert at_work(tmp_path)
    assert alive.holder(lock) == os.getpid()
    os.utime(lock, (1, 1))  # from before that process began
    assert at_work(tmp_path)
    assert alive.holder(lock) is None
    with pytest.raises(UsageError, match="nothing was stopped"):
        stop(tmp_path)
    lock.unlink()
    pid.write_text(alive.mark(os.getpid()))
    assert alive.worker(pid) == os.getpid()
    for text in ("", "x", "-1", "999999999999", f"{os.getpid()}", f"{os.getpid()}\n0/1\n"):
        for path in (lock, pid):
            path.write_text(text)
        assert not at_work(tmp_path), text
        assert not stop(tmp_path), text


@pytest.mark.parametrize("someone_has_it", [False, True])
def test_a_strange_process_in_the_lock_is_neither_a_run_nor_stopped(here: Path, someone_has_it: bool) -> None:
    strange = subprocess.Popen(["sleep", "600"])
    try:
        run_dir = run_folders.told(Path("runs/old"))
        with (run_dir / folder.LOCK).open("w") as file:
            if someone_has_it:
                fcntl.flock(file, fcntl.LOCK_EX)
            file.write(f"{strange.pid}\n")
            file.flush()
            assert (state_of(run_dir)[0] == "running") is someone_has_it
            if someone_has_it:
                with pytest.raises(UsageError, match="nothing was stopped"):
                    stop(run_dir)
            else:
                assert not stop(run_dir)
        # A number and a lock of a worker that ended, and whose number the other process got.
        (run_dir / folder.INSIDE).mkdir()
        (run_dir / folder.INSIDE / folder.PID).write_text(f"{strange.pid}\n")
        assert not stop(run_dir)
        assert strange.poll() is None
    finally:
        strange.kill()
        strange.wait()


def test_the_engine_leaves_no_number_behind(here: Path) -> None:
    assert engine_run(here).wait() == 0
    assert (Path("runs/tiny") / folder.LOCK).read_text() == ""


def test_a_run_is_resumed_where_it_was_started(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("pillm", "dataset", "card", "dataset:home-assistant/smoke", "--out=made")
    run_dir = start(Command(argv), name="card").absolute()
    until(lambda: not at_work(run_dir))
    for path in (here / "made").iterdir():
        path.unlink()
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    resume(run_dir)
    until(lambda: not at_work(run_dir))
    assert list((here / "made").iterdir())
    assert not list(elsewhere.iterdir())


def test_what_cannot_be_resumed_says_so(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("")
    with pytest.raises(UsageError, match="nothing here tells"):
        resume(tmp_path)


def test_a_killed_run_with_a_long_log_is_dead_too(tmp_path: Path) -> None:
    head = '{"at":"2026-01-01T00:00:00Z","stage":"train","event":'
    rows = [f'{head}"stage-started"' + ',"command":"x"}', *[f'{head}"log","message":"{"x" * 90}"' + "}"] * 2000]
    (tmp_path / "events.jsonl").write_text("\n".join(rows) + '\n{"at":"20')
    assert state_of(tmp_path) == ("dead", "train: its process is gone")
