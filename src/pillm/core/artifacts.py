"""Files with a hash, and the one way to publish them: write beside, fsync, rename.

Whatever kills the process, a reader finds the old file or the new one, never half of either.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

PARTIAL = ".partial-"


class Artifact(msgspec.Struct, frozen=True):
    """A published file or folder. A folder's sha256 is that of its sorted `sha256  name` lines."""

    path: str
    sha256: str
    bytes: int
    media_type: str = "application/octet-stream"


_MEDIA = {
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".html": "text/html",
    ".gguf": "application/x-gguf",
    ".yaml": "application/yaml",
    ".safetensors": "application/x-safetensors",
}


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def artifact_of(path: Path) -> Artifact:
    """Hash a file, or a folder with everything below it."""
    if path.is_file():
        media = _MEDIA.get(path.suffix, "application/octet-stream")
        return Artifact(str(path), sha256_file(path), path.stat().st_size, media)
    digest, size = hashlib.sha256(), 0
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{sha256_file(file)}  {file.relative_to(path).as_posix()}\n".encode())
        size += file.stat().st_size
    return Artifact(str(path), digest.hexdigest(), size, "inode/directory")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` only when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=PARTIAL, suffix=path.name, dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner reads; published files follow the umask.
        partial.chmod(0o666 & ~_umask())
        publish(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace `path` with `data` in one step."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that appears under `path` only when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, suffix=path.name, dir=path.parent))
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        partial.chmod(0o777 & ~_umask())
        publish(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def publish(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`, replacing what stands there, and make the rename durable.

    Both must be in the same file system. A folder that stands at `path` is moved away first,
    since rename cannot replace a folder that is not empty.
    """
    if path.is_dir() and not path.is_symlink():
        old = Path(tempfile.mkdtemp(prefix=PARTIAL, suffix=path.name + "-old", dir=path.parent))
        path.rename(old / "old")
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.replace(path)
    _sync_folder(path.parent)


def clear_partials(folder: Path) -> None:
    """Remove what killed runs left behind in `folder` (not below it)."""
    for leftover in folder.glob(PARTIAL + "*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
