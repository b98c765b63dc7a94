"""Writing a cache shard by shard, so that a killed run goes on at the first shard that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from pillm.core.artifacts import clear_partials, sha256_file, write_atomic
from pillm.core.errors import UsageError, writing
from pillm.core.events import Emit, Log
from pillm.logit_cache import manifest as manifests
from pillm.logit_cache import shards
from pillm.logit_cache.manifest import Manifest, Shard
from pillm.logit_cache.reader import REMEDY


def prepare(folder: Path, run: str, count: int, emit: Emit) -> set[int]:
    """Ready `folder` for `count` shards of the run; returns the numbers of those that are there and whole.

    What an unfinished other run left is deleted, which is told; a cache that stands there stays readable if it is the
    same. Raises UsageError, and leaves all as it is, if a finished cache of another run stands there, or a manifest
    that cannot be read: what took a teacher hours is deleted by its owner alone.
    """
    path = folder / manifests.NAME
    if path.exists() and manifests.read(path)[0].run != run:
        raise UsageError(
            f"{folder}: holds a finished cache made with another dataset, other options, another teacher, "
            "or another torch or transformers",
            "choose another --out, or delete it",
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        clear_partials(folder)
        kept = {number for number in range(count) if _whole(folder / shards.file_name(number), number, run, emit)}
        names = {shards.file_name(number) for number in kept}
        if len(kept) < count:
            path.unlink(missing_ok=True)
        stale = [shard for shard in folder.glob("shard-*.bin") if shard.name not in names]
        if stale:
            emit(
                Log(
                    f"{folder}: {len(stale)} shards of an unfinished other run, or damaged ones, are deleted", "warning"
                )
            )
        for shard in stale:
            shard.unlink()
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
