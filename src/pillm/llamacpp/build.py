"""Build llama.cpp's tools with cmake and ninja into the cache; a build that was cut off goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil

from pillm.core.artifacts import atomic_folder, write_atomic
from pillm.core.command import Command
from pillm.core.errors import MissingError, PillmError, ResourceError, writing
from pillm.core.events import Emit, Log, Progress
from pillm.core.process import run
from pillm.llamacpp import pin

_NEEDED_BYTES = 500 * 2**20
_BYTES_A_JOB = 1.2 * 2**30  # g++ on the server's largest file peaks at about 1 GB
_STEP = re.compile(r"^\[(\d+)/(\d+)\]")
_NO_COMPILER = (
    "Could not find the compiler specified in the environment variable",
    "No CMAKE_CXX_COMPILER could be found",
    "No CMAKE_C_COMPILER could be found",
    "is not a full path to an existing compiler tool",
    "is not able to compile a simple test program",
    "which is not able to compile",
    "is not a full path and was not found in the PATH",
)


def build(
    source: Path,
    home: Path,
    key: str,
    emit: Emit,
    *,
    options: Sequence[str] | None = None,
    tools: Sequence[str] = pin.TOOLS,
    shared: bool = False,
) -> None:
    """Build `tools` of `source` with `options` (default: `pin.OPTIONS`) and publish them as `home/key/bin`.

    A `shared` build may be for another processor: nothing of it is started here, and its libraries are published, too.

    The build tree `home/build-<key>` stays until the tools are published, so a killed build goes on
    where it was. The log is `home/logs/build-<key>.log`.

    Raises MissingError (no cmake, no C++ compiler), ResourceError (disk, memory), PillmError (broken build).
    """
    tree, log = home / f"build-{key}", home / "logs" / f"build-{key}.log"
    options = pin.OPTIONS if options is None else tuple(options)
    with writing(home):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        if not tree.exists() and (free := shutil.disk_usage(home).free) < _NEEDED_BYTES:
            raise ResourceError(
                f"{home}: {free / 2**20:.0f} MB are free, building llama.cpp needs {_NEEDED_BYTES / 2**20:.0f} MB",
                "free some space, or set PILLM_CACHE to a folder on another disk",
            )
        _configure(source, tree, log, options, emit)
        _compile(tree, log, tools, emit)
        if not shared:
            _smoke(tree / "bin", log)
        made = [tree / "bin" / name for name in tools]
        made += sorted((tree / "bin").glob("lib*.so*")) if shared else []
        with atomic_folder(home / key) as folder:
            (folder / "bin").mkdir()
            for path in made:
                shutil.copy2(path, folder / "bin" / path.name, follow_symlinks=False)
            facts = {"release": pin.RELEASE, "sha256": pin.SHA256, "commit": pin.COMMIT, "options": options}
            write_atomic(folder / "built.json", msgspec.json.format(msgspec.json.encode(facts)))
        shutil.rmtree(tree, ignore_errors=True)
        emit(Log(f"llama.cpp is built: {home / key}"))


def _program(name: str) -> Path:
    """The binary of the `cmake` or `ninja` wheel, else the one on PATH."""
    try:
        if name == "cmake":
            import cmake

            return Path(cmake.CMAKE_BIN_DIR) / name
        import ninja

        return Path(ninja.BIN_DIR) / name
    except ImportError as error:
        if found := shutil.which(name):
            return Path(found)
        raise MissingError(f"{name} is not installed", f"run: pip install {name}") from error


def _environment() -> dict[str, str]:
    folders = [str(_program("ninja").parent), str(_program("cmake").parent), os.environ.get("PATH", os.defpath)]
    return {"PATH": os.pathsep.join(folders), "NINJA_STATUS": "[%f/%t] ", "LC_ALL": "C", "CLICOLOR_FORCE": "0"}


def _configure(source: Path, tree: Path, log: Path, options: Sequence[str], emit: Emit) -> None:
    emit(Progress("configure llama.cpp", 0, None))
    argv = (
        str(_program("cmake")), "-S", str(source), "-B", str(tree), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={_program('ninja')}", *options,
    )  # fmt: skip
    if run(Command(argv, _environment()), log=log):
        # A cache with a compiler that was not found would hide one installed since.
        shutil.rmtree(tree, ignore_errors=True)
        raise _diagnosis(log, "llama.cpp cannot be configured")


def _compile(tree: Path, log: Path, tools: Sequence[str], emit: Emit) -> None:
    def step(line: str) -> None:
        if match := _STEP.match(line):
            emit(Progress("build llama.cpp", int(match[1]), int(match[2]), "steps"))

    memory = int(psutil.virtual_memory().available // _BYTES_A_JOB)
    jobs = max(1, min(os.cpu_count() or 1, memory))
    # Not through `cmake --build`: if we are killed, our child dies with us, but not the child's child.
    argv = (str(_program("ninja")), "-C", str(tree), "-j", str(jobs), *tools)
    if run(Command(argv, _environment()), log=log, on_line=step):
        raise _diagnosis(log, "llama.cpp cannot be built")


def _smoke(folder: Path, log: Path) -> None:
    """Each tool must start. llama-quantize knows no --version, and its --help exits with 1."""
    for name in pin.TOOLS:
        flag, sign = ("--help", "usage:") if name == "llama-quantize" else ("--version", "version:")
        said = subprocess.run([folder / name, flag], capture_output=True, text=True, timeout=120, errors="replace")
        if sign not in said.stdout + said.stderr:
            with log.open("a") as file:
                file.write(f"{name} {flag}: exit code {said.returncode}\n{said.stdout}{said.stderr}")
            raise PillmError(
                f"{name} was built but does not start (exit code {said.returncode})",
                f"the log is {log}; delete {folder.parent} to build from the beginning",
            )


def _diagnosis(log: Path, what: str) -> PillmError:
    text = log.read_text("utf-8", "replace")
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return ResourceError(
            f"{what}: the disk is full",
            f"free about {_NEEDED_BYTES / 2**20:.0f} MB, or set PILLM_CACHE to another disk; a rerun goes on; the log is {log}",
        )
    if any(sign in text for sign in _NO_COMPILER):
        return MissingError(
            f"{what}: there is no working C++ compiler",
            "Debian, Ubuntu, Raspberry Pi OS: sudo apt install g++; Fedora: sudo dnf install gcc-c++; "
            f"macOS: xcode-select --install; then run again. The log is {log}",
        )
    if "Killed signal terminated program" in text or "virtual memory exhausted" in text:
        return ResourceError(f"{what}: the compiler ran out of memory", f"close other programs; a rerun goes on; {log}")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
    last = (errors or lines or ["no output"])[-1]
    return PillmError(f"{what}: {last}", f"the whole log is {log}")
