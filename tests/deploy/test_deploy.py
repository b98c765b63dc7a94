"""`pillm deploy` through a real sshd, dpkg and apt; what is a stand-in is said in board_here.py."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from board_here import Board, architecture, board_here, key, model, runtime, until

from pillm.core.errors import MissingError, NetworkError, PillmError, ResourceError, UsageError
from pillm.core.events import Log, Output, Progress, silent
from pillm.deploy.options import DeployOptions
from pillm.deploy.packages import read
from pillm.deploy.run import Workshop, name_of, preview, run


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with board_here(tmp_path) as made:
        yield made


def lines(board: Board, **more: object) -> list[str]:
    events: list[object] = []
    run(board.options(**more), events.append)
    return [event.line for event in events if isinstance(event, Output)]


def test_a_first_deploy_installs_starts_and_asks_and_the_second_changes_nothing(board, tmp_path):
    first = lines(board, model=model(tmp_path, board), runtime=runtime(tmp_path))
    assert first[0] == "board: installed pillm-runtime 1.0, pillm-model-tutor 1.0"
    assert (
        f"http://127.0.0.1:{board.http} there; from here: ssh -N -L {board.http}:127.0.0.1:{board.http} board"
        in first[1]
    )
    assert re.search(
        r"healthy after [\d.]+ s; first token after [\d.]+ s, answer after [\d.]+ s: from model 1\.0", first[2]
    )
    before, server = board.files(), board.server()
    assert "etc/enabled-units/pillm-server@tutor.service" in before
    # Nothing of the copy is left in the user's home.
    assert not [name for name in before if name.endswith(".deb") and name.startswith("home")]
    events: list[object] = []
    result = run(board.options(model=tmp_path / "pillm-model-tutor_1.0_all.deb", runtime=tmp_path / f"pillm-runtime_1.0_{architecture()}.deb"), events.append)  # fmt: skip
    assert result.metrics == {"boards": 1, "changed": 0}
    assert (board.files(), board.server()) == (before, server)
    assert not [event for event in events if isinstance(event, Progress) and event.label.startswith("copy")]


def test_rollback_goes_back_and_forth_and_at_last_to_nothing(board, tmp_path):
    one = runtime(tmp_path)
    clean = board.files()
    lines(board, model=model(tmp_path, board), runtime=one)
    # What the second deploy left; the first release's files are as the first deploy left them.
    lines(board, model=model(tmp_path, board, "2.0"), runtime=one)
    newer = board.files()
    back = lines(board, rollback=True)
    assert back[0] == "board: rolled back to pillm-runtime 1.0, pillm-model-tutor 1.0"
    assert back[2].endswith("from model 1.0")
    assert lines(board, rollback=True)[2].endswith("from model 2.0")
    assert {k: v for k, v in board.files().items() if "state.json" not in k} == {k: v for k, v in newer.items() if "state.json" not in k}  # fmt: skip
    board.run("dpkg --purge pillm-model-tutor pillm-runtime; rm -r /var/lib/pillm /home/pi/.cache; systemctl disable --now pillm-server@tutor.service")  # fmt: skip
    lines(board, model=tmp_path / "pillm-model-tutor_1.0_all.deb", runtime=one)
    assert lines(board, rollback=True) == ["board: pillm is not installed any more, as before the deploy"]
    assert {name for name in board.files() if not name.startswith("home/")} == {name for name in clean if not name.startswith("home/")}  # fmt: skip
    with pytest.raises(UsageError, match="nothing to go back to"):
        lines(board, rollback=True)


def test_a_server_that_does_not_come_up_brings_back_the_former_one(board, tmp_path):
    lines(board, model=model(tmp_path, board), runtime=runtime(tmp_path))
    before = board.files()
    bad = runtime(tmp_path, "2.0", serve="#!/bin/sh\necho broken >&2; exit 1\n")
    with pytest.raises(PillmError, match=r"not healthy after .*; the board is as it was before"):
        lines(board, model=model(tmp_path, board, "2.0"), runtime=bad)
    after = board.files()
    assert {k: v for k, v in after.items() if not k.startswith("home/")} == {k: v for k, v in before.items() if not k.startswith("home/")}  # fmt: skip
    assert until(board.server)
    assert lines(board, model=tmp_path / "pillm-model-tutor_1.0_all.deb", runtime=tmp_path / f"pillm-runtime_1.0_{architecture()}.deb")[0].startswith("board: unchanged:")  # fmt: skip


def test_a_package_that_refuses_the_board_is_heard(board, tmp_path):
    clean = board.files()
    refusing = model(tmp_path, board, scripts={"preinst": "echo 'pillm-model-tutor: needs 2 GB of memory, 1 GB is there' >&2; exit 1"})  # fmt: skip
    with pytest.raises(
        PillmError, match="pillm-model-tutor: needs 2 GB of memory, 1 GB is there; the board is as it was"
    ):
        lines(board, model=refusing, runtime=runtime(tmp_path))
    assert {n for n in board.files() if not n.startswith("home/")} == {n for n in clean if not n.startswith("home/")}


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("host key", NetworkError, "its host key is not known here"),
        ("another host key", NetworkError, "not the one that is known"),
        ("user key", NetworkError, "accepts none of your keys"),
        ("memory", ResourceError, "too little memory: tutor needs 900.00 GB"),
        ("disk", ResourceError, "the disk is too full: .* are free in .*, 900.0. GB are needed"),
        ("architecture", UsageError, "is for arm64|is for amd64"),
        ("32 bit", UsageError, "its system is armhf"),
        ("no Debian", MissingError, "it has no dpkg"),
        ("no systemd", MissingError, "systemd does not run there"),
        ("no right", ResourceError, "sudo asks for a password"),
        ("no python", MissingError, "there is no python3"),
        ("dependency", PillmError, "Depends: no-such-package"),
    ],
)
def test_what_cannot_work_is_said_and_the_board_is_as_it_was(board, tmp_path, fault, kind, says):
    words: dict[str, object] = {}
    more: dict[str, object] = {}
    known = board.folder / "known_hosts"
    if fault == "host key":
        known.write_text("")
    elif fault == "another host key":
        known.write_text(f"[127.0.0.1]:{board.port} {key(board.folder / 'other')}")
    elif fault == "user key":
        key(board.folder / "stranger")
        board.client(IdentityFile=str(board.folder / "stranger"))
    elif fault == "memory":
        words["Pillm_Memory"] = 900 * 10**9
    elif fault == "disk":
        words["Installed_Size"] = 900 * 10**6 * 1000 // 1024
    elif fault == "architecture":
        more["architecture"] = "arm64" if architecture() == "amd64" else "amd64"
    elif fault == "32 bit":
        (board.root / "usr/bin/dpkg").write_text("#!/bin/sh\necho armhf\n")
    elif fault == "no Debian":
        board.login(path="/opt/bin")
        (board.root / "opt/bin").mkdir(parents=True)
        for name in ("sh", "python3", "id"):
            (board.root / "opt/bin" / name).symlink_to(f"/usr/bin/{name}")
    elif fault == "no systemd":
        (board.root / "run/systemd/system").rmdir()
    elif fault == "no right":
        board.login(user="nobody")
    elif fault == "no python":
        board.login(path="/opt/bin")
        (board.root / "opt/bin").mkdir(parents=True)
        (board.root / "opt/bin/sh").symlink_to("/usr/bin/sh")
    else:
        more["Depends"] = "no-such-package"
    before, learned = board.files(), known.read_text()
    options = board.options(model=model(tmp_path, board, **words), runtime=runtime(tmp_path, **more))
    with pytest.raises(kind, match=says) as caught:
        run(options, silent)
    assert type(caught.value) is kind
    assert {n: d for n, d in board.files().items() if not n.startswith("home/")} == before
    assert known.read_text() == learned


def test_a_disk_that_fills_up_while_dpkg_unpacks_is_said_and_all_is_taken_back(tmp_path):
    """The package says of itself that it is small, so that only dpkg meets the end of the disk."""
    with board_here(tmp_path, upper_mb=90) as board:
        clean = board.files()
        big = runtime(tmp_path, files={"usr/share/pillm/big": "x" * 100_000_000}, packing="gzip")
        with pytest.raises(ResourceError, match=r"the disk is full: .*; the board is as it was before"):
            lines(board, model=model(tmp_path, board), runtime=big)
        assert {n for n in board.files() if not n.startswith("home/")} == {
            n for n in clean if not n.startswith("home/")
        }


def test_while_another_program_installs_nothing_is_changed(board, tmp_path):
    before = board.files()
    options = {"model": model(tmp_path, board), "runtime": runtime(tmp_path)}
    with (board.root / "var/lib/dpkg/lock-frontend").open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        with pytest.raises(ResourceError, match=r"apt is busy there \(.+\); waited 0 s, and nothing was changed"):
            lines(board, **options)
        assert {n: d for n, d in board.files().items() if not n.startswith("home/")} == before
        waiting = threading.Timer(2, lambda: fcntl.lockf(file, fcntl.LOCK_UN))
        waiting.start()
        # A program that ends in time is waited for.
        assert lines(board, wait=30, **options)[0].startswith("board: installed")


def test_a_half_copied_package_is_gone_on_with_and_wrong_bytes_are_found(board, tmp_path):
    big = runtime(tmp_path, files={"usr/share/pillm/big": "y" * 3_000_000})
    package = read(big)
    part = board.root / "home/pi/.cache/pillm" / f"{package.place}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"z" * 1_000_000)
    with pytest.raises(NetworkError, match="the copied file has another hash"):
        lines(board, model=model(tmp_path, board), runtime=big)
    assert not part.exists()
    part.write_bytes(big.read_bytes()[:1_000_000])
    events: list[object] = []
    run(board.options(model=tmp_path / "pillm-model-tutor_1.0_all.deb", runtime=big), events.append)
    assert any(isinstance(event, Log) and "1 MB of pillm-runtime" in event.message for event in events)


def test_a_connection_that_breaks_midway_leaves_work_that_ends_and_is_attached_to(board, tmp_path):
    options = board.options(model=model(tmp_path, board), runtime=runtime(tmp_path), limit=120)
    hold = board.root / "run/hold"
    hold.touch()

    def cut(event: object) -> None:
        if isinstance(event, Progress) and event.label == "wait for the server":
            board.cut()

    with pytest.raises(NetworkError, match="the connection was lost; what was begun there goes on to its end"):
        run(options, cut)
    heard: list[str] = []

    def attached(event: object) -> None:
        if isinstance(event, Log) and "is still at work there" in event.message:
            heard.append(event.message)
            hold.unlink()

    assert run(options, attached).metrics == {"boards": 1, "changed": 1}
    assert len(heard) == 1
    assert run(options, silent).metrics == {"boards": 1, "changed": 0}


def test_after_a_power_cut_midway_the_way_back_is_still_known(board, tmp_path):
    lines(board, model=model(tmp_path, board), runtime=runtime(tmp_path))
    slow = runtime(tmp_path, "2.0", scripts={"postinst": "sleep 60"})
    newer = board.options(model=model(tmp_path, board, "2.0"), runtime=slow)

    def cut(event: object) -> None:
        if isinstance(event, Progress) and event.label == "install":
            # dpkg has unpacked and not configured.
            until(lambda: "sleep" in board.names())
            board.power_off()

    with pytest.raises(NetworkError):
        run(newer, cut)
    (board.root / "var/lib/dpkg/info/pillm-runtime.postinst").write_text("#!/bin/sh\n")
    bad = runtime(tmp_path, "3.0", serve="#!/bin/sh\nexit 1\n")
    events: list[object] = []
    with pytest.raises(PillmError, match=r"the board is as it was before"):
        run(board.options(model=tmp_path / "pillm-model-tutor_2.0_all.deb", runtime=bad), events.append)
    assert any(isinstance(event, Log) and "was interrupted here" in event.message for event in events)
    assert board.files()["packages"].splitlines() == ["pillm-model-tutor installed 1.0", "pillm-runtime installed 1.0"]
    assert lines(board, model=tmp_path / "pillm-model-tutor_1.0_all.deb", runtime=tmp_path / f"pillm-runtime_1.0_{architecture()}.deb")[2].endswith("from model 1.0")  # fmt: skip


def test_many_boards_at_once_and_one_that_fails_does_not_keep_the_others(tmp_path):
    with board_here(tmp_path, "one") as one, board_here(tmp_path, "two") as two:
        config = tmp_path / "ssh_config"
        config.write_text(
            one.config.read_text() + two.config.read_text() + "Host three\n  HostName 127.0.0.1\n  Port 1\n"
        )
        events: list[object] = []
        two.http = one.http + 0
        names = ["one", "three"]
        with pytest.raises(NetworkError, match="1 of 2 boards failed"):
            run(
                one.options(host=names, ssh_config=config, model=model(tmp_path, one), runtime=runtime(tmp_path)),
                events.append,
            )
        assert any(isinstance(event, Log) and event.message.startswith("three: cannot be reached") for event in events)
        assert any(isinstance(event, Progress) and event.label == "one: install" for event in events)
        for pid in one.server().split():
            os.kill(int(pid), 9)
        # The boards of the tests share this machine's ports, so the second is asked when the first is stopped.
        run(two.options(ssh_config=config, model=tmp_path / "pillm-model-tutor_1.0_all.deb", runtime=tmp_path / f"pillm-runtime_1.0_{architecture()}.deb"), silent)  # fmt: skip
        assert two.server()


def test_a_dry_run_looks_and_writes_nothing(board, tmp_path):
    before = board.files()
    options = board.options(model=model(tmp_path, board), runtime=runtime(tmp_path))
    told = preview(options)
    assert [re.sub(r"copy [\d.]+ kB", "copy", line) for line in told] == [
        "board: copy, install pillm-runtime 1.0", "board: copy, install pillm-model-tutor 1.0",
    ]  # fmt: skip
    assert board.files() == before
    assert preview(board.options(rollback=True)) == ["board: has nothing to go back to"]
    run(options, silent)
    assert preview(options) == ["board: has all of it already: nothing changes"]
    assert preview(board.options(rollback=True)) == ["board: goes back to nothing of pillm's"]


def test_from_the_command_line(board, tmp_path):
    argv = [sys.executable, "-m", "pillm", "deploy", str(model(tmp_path, board)), f"--host={board.name}", f"--ssh-config={board.config}",
            f"--runtime={runtime(tmp_path)}"]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("board: installed pillm-runtime 1.0")
    board.client(Port="1")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "board: cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_words_are_refused_before_any_board_is_asked(tmp_path):
    for words, says in (
        ({}, "which model"),
        ({"model": tmp_path / "none.gguf"}, "no such file"),
        ({"model": tmp_path / "none.gguf", "rollback": True}, "takes no model"),
    ):
        with pytest.raises(UsageError, match=says):
            run(DeployOptions.model_validate({"host": ["board"], **words}), silent)
    text = tmp_path / "model.deb"
    text.write_text("no package")
    with pytest.raises(UsageError, match="is no Debian package"):
        read(text)


def test_a_file_that_does_not_say_its_licence_takes_the_one_that_is_given(tmp_path, smollm2_gguf, monkeypatch):
    monkeypatch.setenv("PILLM_CACHE", str(tmp_path / "cache"))
    silent_file = tmp_path / "model.gguf"
    silent_file.write_bytes(smollm2_gguf.read_bytes().replace(b"general.license", b"general.unknown"))
    words = {"host": ["board"], "model": silent_file, "runtime": runtime(tmp_path)}
    with pytest.raises(UsageError, match="does not say its licence") as error:
        Workshop(DeployOptions.model_validate(words), silent).packages(architecture())
    assert "--license Apache-2.0" in error.value.hint
    made = Workshop(DeployOptions.model_validate({**words, "license": "Apache-2.0"}), silent).packages(architecture())[
        1
    ]
    assert (made.name, made.architecture) == ("pillm-model-model", "all")
    deb = tmp_path / "model.deb"
    deb.write_bytes(made.path.read_bytes())
    with pytest.raises(UsageError, match="a package has its license already"):
        run(DeployOptions.model_validate({"host": ["board"], "model": deb, "license": "MIT"}), silent)


def test_a_model_is_named_after_its_file():
    assert name_of(Path("SmolLM2-135M.Q4_1.gguf")) == "smollm2-135m-q4-1"
    assert name_of(Path("___.gguf")) == "model"
