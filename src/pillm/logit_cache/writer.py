"""Writing a cache shard by shard, so that a killed run goes on at the first shard that is not there."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from pillm.core.artifacts import clear_partials, sha256_file, write_atomic
from pillm.core.errors import UsageError, writing
from pillm.core.events import Emit, Log
from pillm.logit_cache import manifest as manifests
from pillm.logit_cache import shards
from pillm.logit_cache.manifest import Manifest, Shard
from pillm.logit_cache.reader import REMEDY


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for the block. Raises UsageError if another run holds it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # The kernel gives the lock back however the process ends.
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{path.parent}: another run is caching logits into this folder",
                "wait for it, or choose another folder with --out",
            ) from None
        yield
    finally:
        os.close(handle)


def prepare(folder: Path, run: str, count: int, emit: Emit) -> set[int]:
    """Ready `folder` for `count` shards of the run; returns the numbers of those that are there and whole.

    Everything else is deleted. A cache that stands there stays readable if it is the same.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        clear_partials(folder)
        kept = {number for number in range(count) if _whole(folder / shards.file_name(number), number, run, emit)}
        names = {shards.file_name(number) for number in kept}
        if len(kept) < count or not _same(folder / manifests.NAME, run):
            (folder / manifests.NAME).unlink(missing_ok=True)
        for path in folder.glob("shard-*.bin"):
            if path.name not in names:
                path.unlink()
    return kept


def finish(folder: Path, manifest: Manifest) -> Manifest:
    """Publish the manifest of a folder in which all shards are; `manifest.shards` is filled in here."""
    found: list[Shard] = []
    for number in range(len(list(folder.glob("shard-*.bin")))):
        file = shards.open_shard(folder / shards.file_name(number), REMEDY)
        header = file.header
        sha256 = sha256_file(file.path)
        found.append(Shard(file.path.name, sha256, header.size, header.dialogues, header.positions))
    done = msgspec.structs.replace(
        manifest,
        shards=tuple(found),
        dialogues=sum(shard.dialogues for shard in found),
        positions=sum(shard.positions for shard in found),
    )
    with writing(folder):
        write_atomic(folder / manifests.NAME, manifests.encode(done))
    return done


def headers(folder: Path, names: Sequence[str]) -> list[shards.Header]:
    """The headers of shards, for their sums."""
    return [shards.open_shard(folder / name, REMEDY).header for name in names]


def _same(path: Path, run: str) -> bool:
    try:
        return manifests.read(path)[0].run == run
    except UsageError:
        return False


def _whole(path: Path, number: int, run: str, emit: Emit) -> bool:
    if not path.exists():
        return False
    try:
        file = shards.open_shard(path, "")
        if file.header.run.hex() != run or file.header.number != number:
            emit(Log(f"{path.name} belongs to other data or options and is made anew", "warning"))
            return False
        for index in range(len(file.entries)):
            shards.block(file, index, "")
    except UsageError as error:
        emit(Log(f"{error.message}; it is made anew", "warning"))
        return False
    return True
