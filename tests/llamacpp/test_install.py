"""Finding, fetching and building. The real source is not built here: a project of the same shape takes its place."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from pillm.core.artifacts import sha256_file
from pillm.core.errors import MissingError, NetworkError, PillmError, ResourceError
from pillm.core.events import Event, Log, Progress, silent
from pillm.llamacpp import install, pin
from pillm.llamacpp.build import build
from pillm.llamacpp.fetch import fetch_source

MAIN = """#include <cstdio>
int main() { std::puts("version: 0.5.0-dev (build 0, commit test)\\nusage:"); return 0; }
"""


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv(install.VARIABLE, raising=False)
    monkeypatch.setenv("PILLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def project(folder: Path) -> Path:
    """A source tree with the same targets as llama.cpp's."""
    folder.mkdir(parents=True)
    lines = ["cmake_minimum_required(VERSION 3.14)", "project(small C CXX)", "set(CMAKE_RUNTIME_OUTPUT_DIRECTORY bin)"]
    lines[2] = "set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)"
    for name in pin.TOOLS:
        (folder / f"{name}.cpp").write_text(MAIN)
        lines.append(f"add_executable({name} {name}.cpp)")
    (folder / "CMakeLists.txt").write_text("\n".join(lines) + "\n")
    return folder


def fake_tools(folder: Path, version: str = "version: 0.5.0-dev (build 1, commit abc)") -> Path:
    folder.mkdir(parents=True)
    for name in pin.TOOLS:
        (folder / name).write_text(f"#!/bin/sh\necho '{version}' >&2\n")
        (folder / name).chmod(0o755)
    return folder


# --- a folder of the user's ---


@pytest.mark.parametrize("below", [".", "bin", "build/bin"])
def test_the_users_folder_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, below: str) -> None:
    bin_folder = fake_tools(tmp_path / "own" / below)
    monkeypatch.setenv(install.VARIABLE, str(tmp_path / "own"))
    found = install.locate()
    assert found is not None
    assert found.bin == bin_folder.resolve()
    assert found.version == "0.5.0-dev (build 1, commit abc)"
    assert found.tool("llama-server") == bin_folder.resolve() / "llama-server"


def test_the_converter_comes_from_the_users_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_tools(tmp_path / "tree" / "build" / "bin")
    (tmp_path / "tree" / install.CONVERTER).touch()
    monkeypatch.setenv(install.VARIABLE, str(tmp_path / "tree"))
    assert install.ensure(silent).source == tmp_path / "tree"


def test_the_converter_comes_from_where_cmake_says_the_source_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_tools(tmp_path / "build" / "bin")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / install.CONVERTER).touch()
    (tmp_path / "build" / "CMakeCache.txt").write_text(f"A:B=C\nCMAKE_HOME_DIRECTORY:INTERNAL={tmp_path}/elsewhere\n")
    monkeypatch.setenv(install.VARIABLE, str(tmp_path / "build"))
    assert install.ensure(silent).source == tmp_path / "elsewhere"


def test_only_the_source_is_fetched_for_binaries_without_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = fake_tools(tmp_path / "own")
    monkeypatch.setenv(install.VARIABLE, str(own))
    sdist(monkeypatch, tmp_path / "index", pinned=True)
    found = install.ensure(silent)
    assert found.bin == own.resolve()
    assert (found.source / install.CONVERTER).is_file()
    assert not (pin.home() / pin.key()).exists()


@pytest.mark.parametrize("version", ["version: 6543 (abcdef)", "version: 0.4.9 (build 1, commit abc)"])
def test_the_users_folder_is_refused_if_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    monkeypatch.setenv(install.VARIABLE, str(fake_tools(tmp_path / "own", version)))
    with pytest.raises(MissingError, match="too old"):
        install.ensure(silent)


def test_the_users_folder_is_refused_if_a_tool_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = fake_tools(tmp_path / "own")
    (own / "llama-imatrix").unlink()
    monkeypatch.setenv(install.VARIABLE, str(own))
    with pytest.raises(MissingError, match="llama-imatrix not found"):
        install.locate()
    monkeypatch.setenv(install.VARIABLE, str(tmp_path))
    with pytest.raises(MissingError, match="no llama-server"):
        install.locate()


def test_binaries_of_another_machine_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = fake_tools(tmp_path / "own")
    (own / "llama-server").write_bytes(b"\x7fELF\x00\x00 for nobody")
    monkeypatch.setenv(install.VARIABLE, str(own))
    with pytest.raises(MissingError, match="does not start"):
        install.locate()


def test_nothing_is_there_at_first() -> None:
    assert install.locate() is None


# --- building ---


def test_a_build_is_published_with_progress_and_found(own_cache: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    build(project(tmp_path / "src"), pin.home(), pin.key(), events.append)
    found = install.locate()
    assert found is not None
    assert found.version == "0.5.0 (0c1e57098)"
    assert sorted(path.name for path in found.bin.iterdir()) == sorted(pin.TOOLS)
    steps = [event for event in events if isinstance(event, Progress) and event.label == "build llama.cpp"]
    assert steps[-1].done == steps[-1].total == 2 * len(pin.TOOLS)
    assert not list(pin.home().glob("build-*"))


def test_a_broken_build_quotes_the_error_and_the_next_goes_on(tmp_path: Path) -> None:
    source = project(tmp_path / "src")
    last = source / f"{pin.TOOLS[-1]}.cpp"
    last.write_text("int main() { return undeclared_thing; }\n")
    with pytest.raises(PillmError, match="undeclared_thing") as caught:
        build(source, pin.home(), "key", silent)
    log = Path(caught.value.hint.removeprefix("the whole log is "))
    assert "undeclared_thing" in log.read_text()
    assert not (pin.home() / "key").exists()
    last.write_text(MAIN)
    events: list[Event] = []
    build(source, pin.home(), "key", events.append)
    totals = {event.total for event in events if isinstance(event, Progress) and event.label == "build llama.cpp"}
    assert max(total for total in totals if total) < 2 * len(pin.TOOLS)
    assert (pin.home() / "key" / "bin" / "llama-server").is_file()


def test_no_compiler_is_told_with_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = project(tmp_path / "src")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingError, match=r"no working C\+\+ compiler") as caught:
        build(source, pin.home(), "key", silent)
    assert "apt install g++" in caught.value.hint
    monkeypatch.delenv("CXX")
    build(source, pin.home(), "key", silent)


def test_no_cmake_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cmake", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="cmake is not installed"):
        build(project(tmp_path / "src"), pin.home(), "key", silent)


def test_tools_that_do_not_start_are_not_published(tmp_path: Path) -> None:
    source = project(tmp_path / "src")
    (source / "llama-bench.cpp").write_text("int main() { return 3; }\n")
    with pytest.raises(PillmError, match=r"llama-bench was built but does not start \(exit code 3\)"):
        build(source, pin.home(), "key", silent)
    assert not (pin.home() / "key").exists()


def test_a_disk_without_room_is_told_before_building(tmp_path: Path, small_disk: Path) -> None:
    with pytest.raises(ResourceError, match="MB are free"):
        build(project(tmp_path / "src"), small_disk / "home", "key", silent)


def test_a_disk_that_fills_while_building_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_disk: Path
) -> None:
    monkeypatch.setattr("pillm.llamacpp.build._NEEDED_BYTES", 0)
    source = project(tmp_path / "src")
    (source / "llama-bench.cpp").write_text(MAIN + "char big[4000000] = {1};\n")
    with pytest.raises(ResourceError, match="the disk is full"):
        build(source, small_disk / "home", "key", silent)


def test_a_second_process_waits_and_then_finds_it_done(tmp_path: Path) -> None:
    home = pin.home()
    home.mkdir(parents=True)
    told = threading.Event()
    result: list[install.LlamaCpp] = []

    def emit(event: Event) -> None:
        if isinstance(event, Log) and "another pillm" in event.message:
            told.set()

    with (home / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lambda: result.append(install.ensure(emit)))
        waiting.start()
        assert told.wait(20)
        assert not result
        fake_tools(home / pin.key() / "bin")
        pin.source_dir().mkdir()
        (pin.source_dir() / install.CONVERTER).touch()
    waiting.join(20)
    assert result[0].bin == home / pin.key() / "bin"


def test_the_key_depends_on_options_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pin.key()
    assert before == pin.key()
    monkeypatch.setattr(pin, "_cpu", lambda: "another processor")
    assert pin.key() != before
    monkeypatch.undo()
    monkeypatch.setattr(pin, "OPTIONS", (*pin.OPTIONS, "-DX=1"))
    assert pin.key() != before


# --- fetching ---

BACKEND = """
import pathlib
def _metadata(folder):
    info = pathlib.Path(folder) / "llama_cpp_python-{release}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: {release}\\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    return info.name
def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    return _metadata(metadata_directory)
def get_requires_for_build_wheel(config_settings=None):
    return []
def build_wheel(*args, **kwargs):
    raise RuntimeError("nobody builds the wheel")
"""


def sdist(monkeypatch: pytest.MonkeyPatch, index: Path, *, pinned: bool) -> Path:
    """A source distribution of the same shape in a local index that pip is told to use."""
    index.mkdir()
    path = index / f"llama_cpp_python-{pin.RELEASE}.tar.gz"
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": BACKEND.replace("{release}", pin.RELEASE),
        "PKG-INFO": f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {pin.RELEASE}\n",
        "llama_cpp/__init__.py": "",
        f"vendor/llama.cpp/{install.CONVERTER}": "print('converter')\n",
        "vendor/llama.cpp/gguf-py/gguf/__init__.py": "",
        "vendor/llama.cpp/.git": "gitdir: elsewhere\n",
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"llama_cpp_python-{pin.RELEASE}/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    if pinned:
        monkeypatch.setattr(pin, "SHA256", sha256_file(path))
    return path


def test_only_llama_cpp_is_unpacked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sdist(monkeypatch, tmp_path / "index", pinned=True)
    events: list[Event] = []
    fetch_source(tmp_path / "source", tmp_path / "logs", events.append)
    found = {path.relative_to(tmp_path / "source").as_posix() for path in (tmp_path / "source").rglob("*")}
    assert found == {install.CONVERTER, "gguf-py", "gguf-py/gguf", "gguf-py/gguf/__init__.py"}
    assert {event.label for event in events if isinstance(event, Progress)} == {"fetch llama.cpp", "unpack llama.cpp"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "logs", "source"]


def test_other_bytes_than_pinned_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sdist(monkeypatch, tmp_path / "index", pinned=False)
    with pytest.raises(NetworkError, match=f"expected {pin.SHA256}"):
        fetch_source(tmp_path / "source", tmp_path / "logs", silent)
    assert not (tmp_path / "source").exists()


def test_an_index_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # No one listens on the discard port; pip's own settings must not lead elsewhere.
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NetworkError, match="package index was not reached") as caught:
        fetch_source(tmp_path / "source", tmp_path / "logs", silent)
    assert (tmp_path / "logs" / "fetch.log").is_file()
    assert str(tmp_path / "logs" / "fetch.log") in caught.value.hint


def test_an_index_without_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sdist(monkeypatch, tmp_path / "index", pinned=True).unlink()
    with pytest.raises(NetworkError, match="does not offer the source distribution"):
        fetch_source(tmp_path / "source", tmp_path / "logs", silent)


def test_no_pip_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(MissingError, match="has no pip"):
        fetch_source(tmp_path / "source", tmp_path / "logs", silent)


def test_a_disk_that_fills_while_fetching_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_disk: Path
) -> None:
    sdist(monkeypatch, tmp_path / "index", pinned=True)
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 3 * 4096))
    with pytest.raises(ResourceError, match="disk is full"):
        fetch_source(small_disk / "source", tmp_path / "logs", silent)
