"""Reading a cache: dialogues found by their content, distributions checked against their checksums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pillm.core.artifacts import sha256_file
from pillm.core.errors import UsageError
from pillm.logit_cache import manifest as manifests
from pillm.logit_cache import shards
from pillm.logit_cache.manifest import Manifest
from pillm.logit_cache.rows import Targets, dialogue_key, targets

REMEDY = "delete this file and start the same pillm logits again: it makes this shard anew and keeps the others"


class Cache:
    """A finished cache. Shards are memory-mapped; `len` is the number of dialogues."""

    def __init__(self, folder: Path, manifest: Manifest, identity: str, files: Sequence[shards.ShardFile]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.identity = identity
        """sha256 of the manifest's bytes"""
        self._files = files
        self._places = [(number, index) for number, file in enumerate(files) for index in range(len(file.entries))]
        # tobytes: a numpy string would lose zeros at its end.
        keys = [file.entries["key"][index].tobytes() for file in files for index in range(len(file.entries))]
        self._found = {key: place for place, key in enumerate(keys)}

    def __len__(self) -> int:
        return len(self._places)

    def find(self, ids: Sequence[int], learned: Sequence[bool]) -> int | None:
        """The dialogue with these token ids and this mask of learned tokens, or None."""
        return self._found.get(dialogue_key(ids, learned))

    def read(self, index: int) -> Targets:
        """The distributions of a dialogue. Raises UsageError, with shard and bytes, if they are damaged."""
        number, place = self._places[index]
        return targets(shards.rows(self._files[number], place, REMEDY))


def open_cache(path: Path) -> Cache:
    """The cache in folder `path`, or in `path`/cache. Raises UsageError if it is not there, not finished or not whole."""
    path = Path(path)
    inner = path / "cache"
    folder = inner if not (path / manifests.NAME).is_file() and inner.is_dir() else path
    manifest, identity = manifests.read(folder / manifests.NAME)
    files: list[shards.ShardFile] = []
    for number, stated in enumerate(manifest.shards):
        file = shards.open_shard(folder / stated.name, REMEDY)
        header = file.header
        if header.run.hex() != manifest.run or header.number != number or header.size != stated.bytes:
            raise UsageError(f"{file.path}: this shard belongs to another cache", REMEDY)
        files.append(file)
    return Cache(folder, manifest, identity, files)


def verify(cache: Cache) -> None:
    """Read everything. Raises UsageError at the first shard whose sha256 is not the manifest's."""
    for stated in cache.manifest.shards:
        path = cache.folder / stated.name
        if sha256_file(path) != stated.sha256:
            raise UsageError(f"{path}: its sha256 is not the one in {manifests.NAME}", REMEDY)


def check(
    cache: Cache,
    *,
    vocabulary: str | None = None,
    template: str | None = None,
    temperature: float | None = None,
    dataset: str | None = None,
    teacher: str | None = None,
) -> None:
    """Compare what is given with the manifest. Raises UsageError that names all that differs, with both values."""
    ways = {
        "vocabulary": "a student needs the teacher's tokenizer; without it: --loss uld with a live --teacher",
        "template": "train in the cache's --chat-template, or make the cache in the student's",
        "temperature": "give --kd-temperature the cache's temperature, or make the cache with --temperature",
        "dataset": "make the cache of this dataset",
        "teacher": "make the cache with this teacher",
    }
    given = {"vocabulary": vocabulary, "template": template, "temperature": temperature, "dataset": dataset,
             "teacher": teacher}  # fmt: skip
    differ = [name for name, value in given.items() if value is not None and value != getattr(cache.manifest, name)]
    if differ:
        said = "; ".join(f"{name} {getattr(cache.manifest, name)} in the cache, {given[name]} here" for name in differ)
        raise UsageError(f"{cache.folder}: the cache does not fit: {said}", "; ".join(ways[name] for name in differ))
