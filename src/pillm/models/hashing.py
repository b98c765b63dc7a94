"""Content hashes that are remembered from one process to the next.

Hashing a model takes seconds; asking whether it changed takes a stat. A remembered hash is used
while size, modification time, change time and inode of the file are what they were. The change time
is there because tools that set the modification time back (`cp -p`, `rsync -t`, `tar`) cannot set it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from pillm.core.artifacts import write_atomic
from pillm.core.errors import UsageError
from pillm.core.events import Emit, Progress, silent
from pillm.core.paths import cache_dir

_BLOCK = 4 * 2**20
_RACY_NS = 2_000_000_000
_QUIET_SECONDS = 0.5


class _Known(msgspec.Struct, frozen=True, array_like=True):
    """What a file looked like when it had this hash."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    sha256: str


_decoder = msgspec.json.Decoder(dict[str, _Known])


def content_sha256(path: Path | str, emit: Emit = silent) -> str:
    """Hex sha256 of a file, or of a folder as `core.artifacts.artifact_of` defines it.

    Reads only what changed since the last call of any process. A file that was written less than
    two seconds ago is hashed but not remembered: within the clock's grain it could change again
    without a trace (the "racy" files of git's index). Raises UsageError if `path` cannot be read.
    """
    path = Path(path)
    try:
        return _content_sha256(path, emit)
    except OSError as error:
        where = error.filename or path
        raise UsageError(f"{where}: cannot be read ({error.strerror})", "check the path and its permissions") from error


def _content_sha256(path: Path, emit: Emit) -> str:
    single = not path.is_dir()
    files = [path] if single else sorted(file for file in path.rglob("*") if file.is_file())
    names = ["."] if single else [file.relative_to(path).as_posix() for file in files]
    memo = cache_dir() / "hashes" / f"{hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]}.json"
    known = _load(memo)
    stamps = [_stamp(file) for file in files]
    # Those to read, so that progress is told of what is really done.
    todo = sum(stamp.size for name, stamp in zip(names, stamps, strict=True) if not _same(known.get(name), stamp))
    advance = _progress(f"checksum {path.name}", todo, emit)
    fresh: dict[str, _Known] = {}
    hashes: dict[str, str] = {}
    for name, file, stamp in zip(names, files, stamps, strict=True):
        before = known.get(name)
        if before is not None and _same(before, stamp):
            fresh[name], hashes[name] = before, before.sha256
            continue
        started = time.time_ns()
        hashes[name] = sha256_of(file, advance)
        settled = started - max(stamp.modified_ns, stamp.changed_ns) >= _RACY_NS
        if settled and _same(stamp, _stamp(file)):
            fresh[name] = msgspec.structs.replace(stamp, sha256=hashes[name])
    if fresh != known:
        # A cache that cannot be written makes the next call slow, not wrong.
        with contextlib.suppress(OSError):
            write_atomic(memo, msgspec.json.encode(fresh))
    if single:
        return hashes["."]
    return hashlib.sha256("".join(f"{hashes[name]}  {name}\n" for name in names).encode()).hexdigest()


def sha256_of(path: Path, advance: Callable[[int], None]) -> str:
    """Hex sha256 of a file's bytes; `advance` is told of every block that was read, in bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def _progress(label: str, total: int, emit: Emit) -> Callable[[int], None]:
    """Tell of bytes done, but only once it takes long enough for a person to wonder."""
    done, told = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, told
        done += count
        if (now := time.monotonic()) - told >= _QUIET_SECONDS:
            told = now
            emit(Progress(label, done, total, "B"))

    return advance


def _stamp(file: Path) -> _Known:
    stat = file.stat()
    return _Known(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, "")


def _same(one: _Known | None, other: _Known) -> bool:
    return one is not None and (one.size, one.modified_ns, one.changed_ns, one.inode) == (
        other.size,
        other.modified_ns,
        other.changed_ns,
        other.inode,
    )


def _load(memo: Path) -> dict[str, _Known]:
    try:
        return _decoder.decode(memo.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return {}
