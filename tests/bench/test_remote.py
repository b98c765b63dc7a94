"""`pillm bench --host` through a real sshd on this machine, with keys, host key and home folder of its own."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pi_bench_program import script

from pillm.bench.options import BenchOptions
from pillm.bench.remote import measure
from pillm.bench.run import run
from pillm.core.artifacts import sha256_file
from pillm.core.errors import MissingError, NetworkError, PillmError, ResourceError
from pillm.core.events import Log, Output, Progress, silent
from pillm.history import store
from pillm.history.document import load

HOST = "board"
SMALL = {
    "prompt_tokens": 16,
    "gen_tokens": 4,
    "repetitions": 1,
    "requests": 1,
    "context": 64,
    "threads": (1,),
    "splits": ("1/1",),
}


class Board:
    """The other end: a home folder and a PATH of its own; ssh's configuration for getting there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.config = folder, folder / "home", folder / "ssh_config"
        self.port, self.sshd = 0, 0

    @property
    def cache(self) -> Path:
        return self.home / ".cache/pillm"

    def options(self, model: Path, **more: Any) -> BenchOptions:
        values = {"model": model, "host": HOST, "ssh_config": self.config, "out": self.folder / "out", **SMALL, **more}
        return BenchOptions.model_validate(values)

    def set(self, home: Path | None = None, path: str | None = None) -> None:
        """What a command finds there."""
        self.home = home or self.home
        self.home.mkdir(exist_ok=True)
        lines = [
            "#!/bin/sh",
            f"export HOME={self.home} PATH={path or os.environ['PATH']}",
            'exec sh -c "$SSH_ORIGINAL_COMMAND"',
        ]
        script(self.folder / "login", "\n".join(lines) + "\n")

    def client(self, **more: str) -> None:
        """ssh's configuration. Nothing in it is weaker than the default: the host key was learned beforehand."""
        values = {"HostName": "127.0.0.1", "Port": str(self.port), "User": getpass.getuser(), "IdentitiesOnly": "yes",
                  "IdentityFile": str(self.folder / "user_key"), "UserKnownHostsFile": str(self.folder / "known_hosts"),
                  "GlobalKnownHostsFile": "/dev/null", **more}  # fmt: skip
        self.config.write_text(f"Host {HOST}\n" + "".join(f"  {name} {value}\n" for name, value in values.items()))

    def cut(self) -> None:
        """The connection breaks: the server's processes for it are gone."""
        for one in psutil.Process(self.sshd).children(recursive=True):
            # One that ends meanwhile takes others along.
            with contextlib.suppress(psutil.NoSuchProcess):
                if "sshd" in one.name():
                    one.kill()

    def running(self) -> list[psutil.Process]:
        """pi_bench there."""
        return [one for one in psutil.process_iter(["cmdline"]) if f"{self.home}" in str(one.info["cmdline"]) or (
            any("pi_bench-" in word for word in one.info["cmdline"] or ()) and one.environ().get("HOME") == str(self.home))]  # fmt: skip


def key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.with_suffix(".pub").read_text()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
    if not sshd or not shutil.which("ssh"):
        pytest.skip("there is no sshd or ssh on this machine (Debian: apt install openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    made = Board(tmp_path / "board")
    made.folder.mkdir()
    made.set()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        made.port = probe.getsockname()[1]
    host_key = key(made.folder / "host_key")
    (made.folder / "authorized_keys").write_text(key(made.folder / "user_key"))
    (made.folder / "known_hosts").write_text(f"[127.0.0.1]:{made.port} {host_key}")
    (made.folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {made.port}\nHostKey {made.folder}/host_key\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {made.folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
        f"PermitRootLogin yes\nForceCommand {made.folder}/login\n"
    )
    made.client()
    server = subprocess.Popen([sshd, "-D", "-e", "-f", made.folder / "sshd_config"], stderr=subprocess.DEVNULL)
    made.sshd = server.pid
    until(lambda: answers(made.port) or server.poll() is not None, 20)
    if server.poll() is not None:
        pytest.skip("sshd does not start for this user on this machine")
    yield made
    for one in made.running():
        one.kill()
    made.cut()
    server.terminate()
    server.wait(20)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(found: Callable[[], Any], seconds: float) -> Any:
    """The first true answer. Fails when the time is up."""
    end = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return answer


def logs(events: list[object]) -> list[str]:
    return [event.message for event in events if isinstance(event, Log)]


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """A whole GGUF file of one tensor: enough where the tools are stand-ins."""
    from pillm.bench.pi_bench import _sample_gguf

    path = tmp_path / "a model's file.gguf"
    path.write_bytes(_sample_gguf())
    return path


LINE = (
    '{"n_prompt": 16, "n_gen": 0, "n_depth": 0, "n_threads": 1, "avg_ts": 5.5, "stddev_ts": 0.1, "samples_ts": [5.5]}'
)


def slow_tools(board: Board, seconds: float) -> tuple[str, Path]:
    """A stand-in for llama-bench on the host that takes its time, and a file with a line for each run of it."""
    count = board.folder / "count"
    text = f"#!/bin/sh\ncase \"$*\" in *--version*) exit 1;; *--list-devices*) exit 1;; esac\necho x >> {count}\nsleep {seconds}\necho '{LINE}'\n"
    return str(script(board.folder / "tools" / "llama-bench", text).parent), count


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_run_goes_over_and_its_document_comes_home(board, tools, smollm2_gguf):
    events: list[object] = []
    result = run(board.options(smollm2_gguf, host_llama=str(tools.bin)), events.append)
    told = load(result.outputs["report"])
    assert {speed.what for speed in told.speeds} == {"prefill", "decode"}
    assert told.latency
    assert told.model.sha256 == sha256_file(smollm2_gguf)
    assert [kept.id for kept in store.runs()] == [told.id]
    assert {"copy SmolLM2-135M-Instruct.Q4_1.gguf", "llama-bench"} <= {
        event.label for event in events if isinstance(event, Progress)
    }
    copied = board.cache / "models" / (told.model.sha256 or "")[:16] / smollm2_gguf.name
    assert copied.stat().st_size == smollm2_gguf.stat().st_size
    # The second time nothing is copied, and it is a run of its own.
    again: list[object] = []
    run(board.options(smollm2_gguf, host_llama=str(tools.bin), measure=("speed",)), again.append)
    assert not any(isinstance(event, Progress) and event.label.startswith("copy") for event in again)
    assert len(list(store.runs())) == 2
    assert list((board.cache / "runs").iterdir()) == []


def test_every_shell_character_of_a_name_is_only_a_name(board, small_model):
    odd = small_model.with_name('it\'s; touch x `touch x` $(touch x) "é".gguf')
    small_model.rename(odd)
    folder, _ = slow_tools(board, 0)
    told = json.loads(measure(board.options(odd, host_llama=folder, measure=("speed",)), silent)[0])
    assert told["model"]["file"] == odd.name
    assert not list(board.home.rglob("x"))


@pytest.mark.parametrize(
    ("fault", "says", "hint"),
    [
        ("unknown", "its host key is not known here", "compare the fingerprint"),
        ("changed", "not the one that is known", "ssh-keygen -R"),
        ("refused", "accepts none of your keys", "ssh-copy-id"),
        ("closed", "cannot be reached", "is it on"),
        ("nameless", "no machine of this name is known", "check the name"),
        ("nonsense", "ssh cannot be used", "correct ssh's configuration"),
    ],
)
def test_a_connection_that_cannot_be_made_says_why(board, small_model, fault, says, hint):
    known = board.folder / "known_hosts"
    if fault == "unknown":
        known.write_text("")
    elif fault == "changed":
        known.write_text(f"[127.0.0.1]:{board.port} {key(board.folder / 'other_key')}")
    elif fault == "refused":
        key(board.folder / "stranger")
        board.client(IdentityFile=str(board.folder / "stranger"))
    elif fault == "closed":
        board.client(Port="1")
    elif fault == "nameless":
        board.client(HostName="no-such-machine.invalid")
    else:
        board.config.write_text("Nonsense yes\n")
    before = known.read_text()
    with pytest.raises(NetworkError, match=says) as caught:
        measure(board.options(small_model), silent)
    assert hint in caught.value.hint
    # No host key was learned on the way.
    assert known.read_text() == before


def only(board: Board, *names: str) -> str:
    """A PATH with these programs alone."""
    folder = board.folder / "bin"
    folder.mkdir(exist_ok=True)
    for name in ("sh", "cat", "wc", "df", "tail", "awk", "mkdir", "grep", "mv", "rm", "sleep", *names):
        (folder / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    return str(folder)


def test_a_host_without_python_is_told(board, small_model):
    board.set(path=only(board))
    with pytest.raises(MissingError, match="board: there is no python3") as caught:
        measure(board.options(small_model), silent)
    assert "apt install python3" in caught.value.hint


def test_a_host_with_an_old_python_is_told(board, small_model):
    path = only(board)
    script(Path(path) / "python3", "#!/bin/sh\necho 3.7.3\n")
    board.set(path=path)
    with pytest.raises(MissingError, match=r"its python3 is 3\.7\.3"):
        measure(board.options(small_model), silent)


def test_a_host_without_llamacpp_is_told(board, small_model):
    path = only(board)
    script(Path(path) / "python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    board.set(path=path)
    with pytest.raises(MissingError, match="board: llama-bench is not on PATH"):
        measure(board.options(small_model), silent)


@pytest.mark.model
def test_a_full_disk_there_is_told_before_anything_is_copied(board, smollm2_gguf, small_disk):
    board.set(home=small_disk / "home")
    with pytest.raises(ResourceError, match="the disk is too full for SmolLM2") as caught:
        measure(board.options(smollm2_gguf), silent)
    assert "free some space there" in caught.value.hint
    assert not list(board.cache.rglob("*.gguf*"))


def test_a_disk_that_fills_up_meanwhile_is_told(board, small_model, small_disk, monkeypatch):
    import pillm.bench.remote as room

    board.set(home=small_disk / "home")
    real = room._look
    # Another program there takes the room after we have looked: the figure of free bytes is put in by hand.
    monkeypatch.setattr(room, "_look", lambda *words: room.msgspec.structs.replace(real(*words), free=10**9))
    big = small_model.with_name("big.gguf")
    big.write_bytes(small_model.read_bytes() + b"\0" * 3_000_000)
    with pytest.raises(ResourceError, match="board: the disk is full"):
        measure(board.options(big), silent)


def test_a_home_that_cannot_be_written_to_is_told(board, small_model, read_only_folder):
    board.home = read_only_folder
    board.set()
    with pytest.raises(ResourceError, match="cannot be written to"):
        measure(board.options(small_model), silent)


@pytest.mark.model
def test_a_copy_that_is_cut_off_goes_on_where_it_was(board, smollm2_gguf):
    folder, _ = slow_tools(board, 0)
    options = board.options(smollm2_gguf, host_llama=folder, measure=("speed",))
    part = board.cache / "models" / sha256_file(smollm2_gguf)[:16] / f"{smollm2_gguf.name}.part"

    def cut(event: object) -> None:
        # In the middle of the copy; what is on its way is lost.
        if isinstance(event, Progress) and event.label.startswith("copy") and event.done > 40_000_000:
            board.cut()

    with pytest.raises(NetworkError, match=r"connection was lost while SmolLM2.* was copied") as caught:
        measure(options, cut)
    assert "goes on from where it was" in caught.value.hint
    had = part.stat().st_size
    assert 0 < had < smollm2_gguf.stat().st_size
    events: list[object] = []
    told = json.loads(measure(options, events.append)[0])
    assert told["model"]["sha256"] == sha256_file(smollm2_gguf)
    assert any("are on board already; going on from there" in line for line in logs(events))
    first = next(event for event in events if isinstance(event, Progress) and event.label.startswith("copy"))
    assert first.done > had
    assert not part.exists()


def test_a_copy_with_wrong_bytes_is_deleted_and_said(board, small_model):
    options = board.options(small_model)
    part = board.cache / "models" / sha256_file(small_model)[:16] / f"{small_model.name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 100)
    with pytest.raises(NetworkError, match="another hash"):
        measure(options, silent)
    assert not part.exists()


def test_a_model_there_with_other_bytes_is_not_measured(board, small_model):
    there = board.cache / "models" / sha256_file(small_model)[:16] / small_model.name
    there.parent.mkdir(parents=True)
    data = bytearray(small_model.read_bytes())
    data[-1] ^= 1
    there.write_bytes(data)
    folder, _ = slow_tools(board, 0)
    with pytest.raises(PillmError, match="another file than the one wanted"):
        measure(board.options(small_model, host_llama=folder), silent)


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_whose_connection_broke_is_brought_home_and_not_repeated(board, small_model, ended):
    folder, count = slow_tools(board, 6)
    options = board.options(small_model, host_llama=folder, measure=("speed",))
    watcher = threading.Thread(target=lambda: (until(count.exists, 120), board.cut()))
    watcher.start()
    with pytest.raises(NetworkError, match="connection was lost while it measured"):
        measure(options, silent)
    watcher.join()
    if ended:
        until(lambda: list((board.cache / "runs").glob("*.json")), 120)
        until(lambda: not board.running(), 60)
    events: list[object] = []
    document, forget = measure(options, events.append)
    told = json.loads(document)
    assert told["speeds"][0]["mean_tps"] == 5.5
    assert count.read_text() == "x\n"
    (old,) = [event for event in events if isinstance(event, Log) and "had ended there when the conn" in event.message]
    assert old.level == "warning"
    assert f"its figures are of {told['started']}" in old.message
    assert any("is still going there" in line for line in logs(events)) != ended
    forget()
    assert list((board.cache / "runs").iterdir()) == []


@pytest.mark.parametrize("changed", ["nothing", "tool", "library", "program"])
def test_a_run_that_was_left_there_is_fetched_only_while_the_same_would_run(
    board, small_model, changed, monkeypatch, tmp_path
):
    import pillm.bench.remote as room

    folder, count = slow_tools(board, 0)
    options = board.options(small_model, host_llama=folder, measure=("speed",))
    first = json.loads(measure(options, silent)[0])["id"]
    if changed == "tool":
        os.utime(Path(folder) / "llama-bench", (1, 1))
    elif changed == "library":
        (Path(folder) / "libggml-cpu.so").write_bytes(b"x")
    elif changed == "program":
        newer = tmp_path / "newer.py"
        newer.write_bytes(room.PATH.read_bytes() + b"# newer\n")
        monkeypatch.setattr(room, "PATH", newer)
    second = json.loads(measure(options, silent)[0])["id"]
    assert (second == first) == (changed == "nothing")
    assert count.read_text() == ("x\n" if changed == "nothing" else "x\nx\n")


def test_tools_on_path_are_told_from_newer_ones(board, small_model):
    folder, count = slow_tools(board, 0)
    board.set(path=f"{folder}:{os.environ['PATH']}")
    options = board.options(small_model, measure=("speed",))
    for _ in range(2):
        measure(options, silent)
    assert count.read_text() == "x\n"
    os.utime(Path(folder) / "llama-bench", (1, 1))
    measure(options, silent)
    assert count.read_text() == "x\nx\n"


def test_a_run_that_finds_no_room_here_stays_there_and_is_fetched(board, small_model, small_disk):
    folder, count = slow_tools(board, 0)
    out = small_disk / "out"
    out.mkdir()
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    options = board.options(small_model, host_llama=folder, measure=("speed",), out=out, history=False)
    events: list[object] = []
    with pytest.raises(ResourceError, match="the disk is full") as caught:
        run(options, events.append)
    assert "the same command fetches it from board" in caught.value.hint
    (printed,) = [json.loads(event.line) for event in events if isinstance(event, Output)]
    assert printed["speeds"][0]["mean_tps"] == 5.5
    assert [file.suffix for file in (board.cache / "runs").iterdir()].count(".json") == 1
    filler.unlink()
    told = load(run(options, silent).outputs["report"])
    assert told.id == printed["id"]
    assert count.read_text() == "x\n"
    assert list((board.cache / "runs").iterdir()) == []


def test_ctrl_c_here_ends_the_run_there(board, small_model):
    folder, count = slow_tools(board, 600)
    argv = [sys.executable, "-m", "pillm", "bench", str(small_model), f"--host={HOST}", f"--ssh-config={board.config}",
            f"--host-llama={folder}", f"--out={board.folder / 'out'}", "--measure=speed"]  # fmt: skip
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(count.exists, 120)
        assert board.running()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    until(lambda: not board.running(), 60)
    assert "Traceback" not in err
    assert not (board.folder / "out" / "bench.json").exists()


def test_a_document_that_finds_no_room_there_comes_home_all_the_same(board, small_model, small_disk):
    board.set(home=small_disk / "home")
    text = f"#!/bin/sh\ndd if=/dev/zero of={small_disk}/filler bs=4096 2>/dev/null\necho '{LINE}'\n"
    folder = script(board.folder / "tools" / "llama-bench", text).parent
    events: list[object] = []
    told = json.loads(measure(board.options(small_model, host_llama=str(folder), measure=("speed",)), events.append)[0])
    assert told["speeds"][0]["mean_tps"] == 5.5
    assert any("the disk is full" in line for line in logs(events))


def test_a_name_that_ssh_would_take_for_an_option_is_refused(small_model):
    with pytest.raises(ValueError, match="host"):
        BenchOptions.model_validate({"model": small_model, "host": "-oProxyCommand=x"})
