"""The engine on stages that are quick: real processes, real files, real signals. No model, no llama.cpp."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_stages
import pytest

from pillm.core.errors import MissingError, PillmError, ProfileError, ResourceError, UsageError
from pillm.core.events import Finished, Found, Log, Progress, StageEnded, StageStarted, decode, silent
from pillm.pipeline import engine, manifest
from pillm.pipeline.profile import load

PROFILE = """\
profile: 1
name: tiny
description: A run in a second
stages:
  copy: {data: lines.txt, prefix: "> "}
  join: {left: "${copy.copied}", right: "${again.copied}"}
  again: {uses: copy, data: lines.txt, pause: 0}
"""


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PILLM_LLAMACPP_DIR", raising=False)
    (tmp_path / "lines.txt").write_text("".join(f"line {i}\n" for i in range(20)))
    path = tmp_path / "tiny.yaml"
    path.write_text(PROFILE)
    return path


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "tiny"


def statuses(profile: Path, run_dir: Path, **more) -> dict[str, str]:
    seen = []
    fake_stages.run(profile, run_dir, seen.append, **more)
    return {event.stage: event.status for event in seen if isinstance(event, StageEnded)}


def bytes_of(run_dir: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run_dir)): p.read_bytes() for p in run_dir.rglob("*.txt") if p.name != "journal.txt"}


def test_stages_run_in_the_order_of_what_feeds_what(profile: Path, run_dir: Path) -> None:
    seen = []
    outcome = fake_stages.run(profile, run_dir, seen.append)
    assert [event.stage for event in seen if isinstance(event, StageStarted)] == ["copy", "again", "join"]
    assert outcome.ran == ("copy", "again", "join")
    expected = "".join(f"> line {i}\n" for i in range(20)) + "".join(f"line {i}\n" for i in range(20))
    assert (run_dir / "join/joined.txt").read_text() == expected
    assert [event.metrics for event in seen if isinstance(event, Finished)][-1] == {"bytes": len(expected)}


def test_a_second_run_runs_nothing_and_changes_no_file(profile: Path, run_dir: Path) -> None:
    fake_stages.run(profile, run_dir, silent)
    before = (run_dir / "manifest.json").read_bytes()
    assert set(statuses(profile, run_dir).values()) == {"cached"}
    assert (run_dir / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("harm", ["changed", "same size and time", "deleted", "record cut in half"])
def test_an_output_that_was_touched_is_made_again(profile: Path, run_dir: Path, harm: str) -> None:
    fake_stages.run(profile, run_dir, silent)
    whole = bytes_of(run_dir)
    output = run_dir / "copy/copied.txt"
    if harm == "changed":
        output.write_text("tampered")
    elif harm == "same size and time":
        stat = output.stat()
        output.write_bytes(b"x" * stat.st_size)
        os.utime(output, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif harm == "deleted":
        output.unlink()
    else:
        record = run_dir / "copy/stage.json"
        record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])
    # The rest is cached: the copy comes out as it was.
    assert statuses(profile, run_dir) == {"copy": "ran", "again": "cached", "join": "cached"}
    assert bytes_of(run_dir) == whole


def test_a_changed_input_runs_what_depends_on_it_from_an_empty_folder(profile: Path, run_dir: Path) -> None:
    fake_stages.run(profile, run_dir, silent)
    assert statuses(profile, run_dir, sets=["copy.prefix=* "]) == {"copy": "ran", "again": "cached", "join": "ran"}
    # The journal of the old prefix would have shown up here.
    assert (run_dir / "copy/copied.txt").read_text().startswith("* line 0\n* line 1\n")
    (profile.parent / "lines.txt").write_text("other\n")
    assert set(statuses(profile, run_dir).values()) == {"ran"}
    assert (run_dir / "join/joined.txt").read_text() == "> other\nother\n"


def test_what_has_no_effect_on_the_result_runs_nothing(profile: Path, run_dir: Path) -> None:
    fake_stages.run(profile, run_dir, silent)
    os.utime(profile.parent / "lines.txt")
    assert set(statuses(profile, run_dir, sets=["copy.pause=0.001"]).values()) == {"cached"}
    moved = run_dir.parent / "elsewhere"
    run_dir.rename(moved)
    assert set(statuses(profile, moved).values()) == {"cached"}


def test_a_file_behind_a_name_counts_by_its_content(profile: Path, run_dir: Path) -> None:
    (profile.parent / "fancy.txt").write_text("one")
    fake_stages.run(profile, run_dir, silent, sets=[f"copy.style={profile.parent / 'fancy.txt'}"])
    (profile.parent / "fancy.txt").write_text("two")
    again = statuses(profile, run_dir, sets=[f"copy.style={profile.parent / 'fancy.txt'}"])
    assert again["copy"] == "ran"


def test_from_runs_that_stage_and_those_after_it_and_until_stops(profile: Path, run_dir: Path) -> None:
    assert statuses(profile, run_dir, until="again") == {"copy": "ran", "again": "ran"}
    assert not manifest.read(run_dir).complete
    assert statuses(profile, run_dir, start="again") == {"copy": "cached", "again": "ran", "join": "ran"}
    assert manifest.read(run_dir).complete
    with pytest.raises(UsageError, match=r"--from jon.*did you mean join"):
        fake_stages.run(profile, run_dir, silent, start="jon")
    with pytest.raises(UsageError, match="comes after"):
        fake_stages.run(profile, run_dir, silent, start="join", until="copy")


def test_the_preview_says_what_a_run_would_do_and_does_nothing(profile: Path, run_dir: Path) -> None:
    plan = load(profile, table=fake_stages.TABLE)
    assert {item.action for item in engine.preview(plan, run_dir)} == {"run"}
    assert not run_dir.exists()
    fake_stages.run(profile, run_dir, silent)
    assert [item.action for item in engine.preview(plan, run_dir)] == ["cached"] * 3
    assert [item.action for item in engine.preview(plan, run_dir, start="join")] == ["cached", "cached", "run"]
    changed = load(profile, ["again.prefix=x"], fake_stages.TABLE)
    assert [item.action for item in engine.preview(changed, run_dir, until="again")] == ["cached", "run", "skip"]
    commands = {item.id: str(item.command) for item in engine.preview(plan, run_dir)}
    assert commands["copy"] == f"pillm copy --out={run_dir}/copy --data={profile.parent}/lines.txt '--prefix=> '"


@pytest.mark.parametrize(
    ("how", "kind", "code", "words"),
    [
        ("findings", PillmError, 1, "copy: x.jsonl: 1 bad line"),
        ("missing", MissingError, 3, "copy: no such tool"),
        ("extra", MissingError, 3, "copy: torch is not installed"),
        ("bug", PillmError, 70, "bug in pillm.*nobody thought of this"),
        ("kill", PillmError, 1, "was killed .SIGKILL"),
        ("mute", PillmError, 1, "exit code 9 and did not say why"),
    ],
)
def test_a_stage_that_fails_ends_the_run_with_its_error_and_exit_code(
    profile: Path, run_dir: Path, how: str, kind: type[PillmError], code: int, words: str
) -> None:
    seen = []
    with pytest.raises(kind, match=words) as caught:
        fake_stages.run(profile, run_dir, seen.append, sets=[f"copy.fail={how}"])
    assert caught.value.exit_code == code
    assert StageEnded("copy", "failed") in [
        StageEnded(e.stage, e.status) if isinstance(e, StageEnded) else e for e in seen
    ]
    assert any(isinstance(event, Found) for event in seen) == (how == "findings")
    # The next run goes on as if nothing had been.
    assert statuses(profile, run_dir, until="copy") == {"copy": "ran"}


def test_a_library_that_prints_does_not_disturb_the_events(profile: Path, run_dir: Path) -> None:
    seen = []
    fake_stages.run(profile, run_dir, seen.append)
    assert not [event for event in seen if isinstance(event, Log) and "talks on stdout" in event.message]
    assert "talks on stdout" in (run_dir / "join/stage.log").read_text()


def test_the_journal_holds_the_events_with_time_and_stage(profile: Path, run_dir: Path) -> None:
    seen = []
    fake_stages.run(profile, run_dir, seen.append)
    lines = (run_dir / "events.jsonl").read_bytes().splitlines()
    kept = [decode(line) for line in lines]
    assert [e for e in kept if not isinstance(e, Progress)] == [e for e in seen if not isinstance(e, Progress)]
    assert {json.loads(line)["stage"] for line in lines} == {"copy", "again", "join"}
    assert all(json.loads(line)["at"].endswith("Z") for line in lines)


def test_a_folder_that_no_run_made_is_left_alone(profile: Path, run_dir: Path) -> None:
    (run_dir / "copy").mkdir(parents=True)
    (run_dir / "copy/precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="no run made it"):
        fake_stages.run(profile, run_dir, silent)
    assert (run_dir / "copy/precious.txt").read_text() == "mine"


def test_an_output_that_is_missing_upstream_is_named(profile: Path, run_dir: Path) -> None:
    profile.write_text(PROFILE + '  last: {uses: copy, data: "${join.rest}"}\n')
    with pytest.raises(UsageError, match=r"last: \$\{join.rest\} is not there"):
        fake_stages.run(profile, run_dir, silent)


def test_a_folder_that_cannot_be_written_to_is_an_error_a_user_can_act_on(profile: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        # Root may write anywhere but where a file is in the way.
        (tmp_path / "file").write_text("")
        with pytest.raises((UsageError, ResourceError)):
            fake_stages.run(profile, tmp_path / "file" / "run", silent)
        return
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(ResourceError, match="cannot be written to"):
        fake_stages.run(profile, locked / "run", silent)


def start_run(profile: Path, run_dir: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, fake_stages.__file__, "run", str(profile), str(run_dir)]
    return subprocess.Popen(argv, stderr=subprocess.PIPE, process_group=0)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, "the run ended before it got this far"
        time.sleep(0.02)


def test_two_runs_in_one_folder_are_refused_with_the_others_process(profile: Path, run_dir: Path) -> None:
    profile.write_text(PROFILE.replace("pause: 0", "pause: 5"))
    process = start_run(profile, run_dir)
    try:
        wait_for(run_dir / "again/journal.txt", process)
        with pytest.raises(UsageError, match=rf"another run is at work here \(process {process.pid}\)"):
            fake_stages.run(profile, run_dir, silent)
    finally:
        process.kill()
        process.communicate()
    # A lock dies with its holder.
    profile.write_text(PROFILE)
    fake_stages.run(profile, run_dir, silent)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_ends_its_child_exits_130_and_goes_on_later(
    profile: Path, run_dir: Path, number: signal.Signals
) -> None:
    profile.write_text(PROFILE.replace("pause: 0", "pause: 0.2"))
    process = start_run(profile, run_dir)
    wait_for(run_dir / "again/journal.txt", process)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"pillm: stopped\n    the same command goes on from here\n" in said
    assert b"Traceback" not in said
    half = (run_dir / "again/journal.txt").read_text()
    time.sleep(0.5)
    assert (run_dir / "again/journal.txt").read_text() == half, "the child is still at work"
    assert 0 < half.count("\n") < 20
    seen = []
    profile.write_text(PROFILE)
    fake_stages.run(profile, run_dir, seen.append)
    assert Log(f"{half.count(chr(10))} lines were done before", "debug") in seen
    assert (run_dir / "again/copied.txt").read_text().startswith(half)


def test_a_run_killed_at_ten_random_moments_ends_with_the_same_files(profile: Path, tmp_path: Path) -> None:
    profile.write_text(PROFILE.replace('prefix: "> "', 'prefix: "> ", pause: 0.1').replace("pause: 0}", "pause: 0.1}"))
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    fake_stages.run(profile, calm, silent)
    rng = random.Random(2)
    killed = 0
    for _ in range(10):
        process = start_run(profile, stormy)
        time.sleep(rng.uniform(0.3, 1.2))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 8
    fake_stages.run(profile, stormy, silent)
    assert bytes_of(stormy) == bytes_of(calm)
    assert (stormy / "copy/journal.txt").read_text() == (calm / "copy/journal.txt").read_text()
    assert not list(stormy.rglob(".partial-*"))


def test_a_missing_input_is_told_before_anything_runs(profile: Path, run_dir: Path) -> None:
    (profile.parent / "lines.txt").unlink()
    with pytest.raises(ProfileError) as caught:
        fake_stages.run(profile, run_dir, silent)
    assert [finding.line for finding in caught.value.findings] == [5, 7]
    assert not run_dir.exists()


def test_what_is_wrong_between_options_is_told_at_the_stages_line(profile: Path, run_dir: Path) -> None:
    with pytest.raises(ProfileError) as caught:
        load(profile, ["join.sizes=[6, 6, 6]"], fake_stages.TABLE)
    (finding,) = caught.value.findings
    assert (finding.line, finding.path) == (6, "stages.join")


def test_the_report_is_made_once_a_plan_is_complete_and_again_only_if_something_ran(
    profile: Path, run_dir: Path
) -> None:
    made = []

    def report(folder: Path, emit) -> Path:
        made.append(manifest.read(folder).complete)
        (folder / "report.html").write_text("<p>")
        return folder / "report.html"

    assert fake_stages.run(profile, run_dir, silent, until="copy", report=report).report is None
    assert fake_stages.run(profile, run_dir, silent, report=report).report == run_dir / "report.html"
    fake_stages.run(profile, run_dir, silent, report=report)
    assert made == [True]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 256 KiB; where one may not be mounted, the test is skipped."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a file system needs root")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_is_told_and_the_run_goes_on_once_there_is_room(
    profile: Path, tmp_path: Path, small_disk: Path
) -> None:
    (tmp_path / "lines.txt").write_text(("x" * 999 + "\n") * 100)
    with pytest.raises(ResourceError, match="disk is full") as caught:
        fake_stages.run(profile, small_disk / "run", silent)
    assert caught.value.exit_code == 5
    assert "free some space" in caught.value.hint
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    fake_stages.run(profile, small_disk / "run", silent)
    lines = (small_disk / "run/join/joined.txt").read_text().splitlines()
    assert len(lines) == 200


def test_a_disk_that_is_full_before_the_run_begins_is_told(profile: Path, small_disk: Path) -> None:
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb") as file:
        while True:
            file.write(b"x" * 512)
            file.flush()
    with pytest.raises(ResourceError, match="disk is full"):
        fake_stages.run(profile, small_disk / "run", silent)
