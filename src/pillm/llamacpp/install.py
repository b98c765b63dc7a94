"""Find the pinned llama.cpp, or fetch and build it once into the user's cache.

`$PILLM_LLAMACPP_DIR` names a folder of binaries (or one with `bin/` or `build/bin/` in it) that is
used instead. If it will not do, that is an error and not a silent build of minutes: the user asked for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pillm.core.artifacts import clear_partials
from pillm.core.errors import MissingError, writing
from pillm.core.events import Emit, Log
from pillm.core.paths import expanded
from pillm.llamacpp import pin
from pillm.llamacpp.build import build
from pillm.llamacpp.fetch import fetch_source

VARIABLE = "PILLM_LLAMACPP_DIR"
CONVERTER = "convert_hf_to_gguf.py"
_VERSION = re.compile(r"^version: (\d+)(?:\.(\d+)\.(\d+)\S*)?(?: \(([^)]*)\))?", re.MULTILINE)


class LlamaCpp(msgspec.Struct, frozen=True):
    """The tools in `bin`, the source tree with the converter, and the version in llama.cpp's words."""

    bin: Path
    source: Path
    version: str

    def tool(self, name: str) -> Path:
        """Path of a binary. Raises MissingError if it is gone."""
        path = self.bin / name
        if not path.is_file():
            raise MissingError(f"{path}: this llama.cpp tool is not there", "run: pillm doctor")
        return path


def locate() -> LlamaCpp | None:
    """The llama.cpp that would be used, without fetching or building; None if there is none yet.

    `source` may name a folder that is still to be fetched. Raises MissingError if
    `$PILLM_LLAMACPP_DIR` is set and will not do.
    """
    if own := os.environ.get(VARIABLE):
        return _own(expanded(own))
    folder = pin.home() / pin.key() / "bin"
    if all((folder / name).is_file() for name in pin.TOOLS):
        return LlamaCpp(folder, pin.source_dir(), ".".join(map(str, pin.VERSION)) + f" ({pin.COMMIT})")
    return None


def ensure(emit: Emit) -> LlamaCpp:
    """The llama.cpp to use; fetches the source and builds the tools if they are not there (minutes, once).

    Raises MissingError (compiler, cmake, pip, or what the user's own folder lacks), NetworkError
    (the source could not be fetched), ResourceError (disk), PillmError (the build broke: names the log).
    """
    found = locate()
    if found and (found.source / CONVERTER).is_file():
        return found
    home = pin.home()
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
        with alone(home / "lock", emit):
            clear_partials(home)
            if not (pin.source_dir() / CONVERTER).is_file():
                fetch_source(pin.source_dir(), home / "logs", emit)
            # Another process may have finished it while this one waited.
            if locate() is None:
                build(pin.source_dir(), home, pin.key(), emit)
    found = locate()
    if found is None:
        raise AssertionError("the build was published but is not found")
    return found


@contextlib.contextmanager
def alone(lock: Path, emit: Emit) -> Iterator[None]:
    """Hold the lock; the kernel gives it back however this process ends."""
    with lock.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            emit(Log("another pillm is installing llama.cpp; waiting for it"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _own(folder: Path) -> LlamaCpp:
    """The user's build, if it has all tools and is new enough."""
    hint = f"unset {VARIABLE} to let pillm build its own, or build llama.cpp {'.'.join(map(str, pin.VERSION))} or newer"
    places = [folder, folder / "bin", folder / "build" / "bin"]
    where = next((place for place in places if (place / "llama-server").is_file()), None)
    if where is None:
        raise MissingError(f"{VARIABLE}={folder}: there is no llama-server in this folder, bin/ or build/bin/", hint)
    if missing := [name for name in pin.TOOLS if not (where / name).is_file()]:
        raise MissingError(f"{VARIABLE}={folder}: {', '.join(missing)} not found in {where}", hint)
    version, text = tool_version(where / "llama-server")
    if version < pin.VERSION:
        raise MissingError(f"{VARIABLE}={folder}: this llama.cpp is too old ({text})", hint)
    return LlamaCpp(where.resolve(), _source_of(where.resolve()) or pin.source_dir(), text)


def tool_version(tool: Path) -> tuple[tuple[int, int, int], str]:
    """What `tool --version` says: the numbers and the whole text, as in `0.5.0-dev (build 1, commit 0c1e570)`.

    Builds from before llama.cpp had versions print a bare build number; they count as 0.0.0.
    Raises MissingError if the tool does not start.
    """
    try:
        # Output is one short line; core.process is for children that are watched.
        said = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=60, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{tool}: does not start ({error})", "build it for this machine") from error
    text = said.stdout + said.stderr
    match = _VERSION.search(text)
    if said.returncode or not match:
        raise MissingError(f"{tool}: `--version` failed (exit code {said.returncode})", "build it for this machine")
    major, minor, patch, _ = match.groups()
    numbers = (int(major), int(minor), int(patch)) if minor else (0, 0, 0)
    return numbers, match.group().removeprefix("version: ")


def _source_of(folder: Path) -> Path | None:
    """The source tree that a folder of binaries was built from: around it, or named by cmake's cache."""
    for place in (folder, *list(folder.parents)[:3]):
        if (place / CONVERTER).is_file():
            return place
        cache = place / "CMakeCache.txt"
        if cache.is_file():
            named = re.search(
                r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.+)$", cache.read_text("utf-8", "replace"), re.MULTILINE
            )
            if named and (Path(named[1]) / CONVERTER).is_file():
                return Path(named[1])
    return None
