"""What a cache says of itself. `manifest.json` is written last: a cache without one is not finished."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from pillm.core.errors import UsageError

NAME = "manifest.json"
FORMAT, VERSION = "pillm-logit-cache", 1
Kind = Literal["sampled", "top-k", "server-top-k"]
AGAIN = "make the cache again: pillm logits"


class Shard(msgspec.Struct, frozen=True):
    """A file of the cache."""

    name: str
    sha256: str
    bytes: int
    dialogues: int
    positions: int


class Manifest(msgspec.Struct, frozen=True):
    """What the distributions are, whose they are, and where. All hashes are hex sha256 but `teacher`."""

    kind: Kind
    biased: bool
    """Whether mass of the teacher's distributions is missing, so that their expectation is not exact."""
    temperature: float
    """The distributions are softmax(logits / temperature)."""
    top: int
    samples: int
    seed: int
    vocabulary_size: int
    vocabulary: str
    """Of the sorted token->id map."""
    template: str
    """Of the chat template's source."""
    dataset: str
    """Of the dataset's bytes."""
    teacher: str
    """What names the teacher's weights: a content hash, a commit, a pinned package; or a server's address
    and a hash of what it says of its model."""
    run: str
    """Of everything that the bytes of the shards depend on."""
    dialogues: int
    positions: int
    """Learned tokens."""
    shards: tuple[Shard, ...]
    format: str = FORMAT
    version: int = VERSION
    checksum: str = ""
    """Of this document with an empty checksum."""


class _Head(msgspec.Struct):
    format: str = ""
    version: int = 0


def encode(manifest: Manifest) -> bytes:
    """The bytes of manifest.json."""
    checksum = hashlib.sha256(_json(msgspec.structs.replace(manifest, checksum=""))).hexdigest()
    return _json(msgspec.structs.replace(manifest, checksum=checksum))


def read(path: Path) -> tuple[Manifest, str]:
    """The manifest at `path`, and the sha256 of its bytes. Raises UsageError for what is none, is newer, or damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{path}: there is no finished cache of logits here", "start pillm logits (again): it goes on where it was"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", AGAIN) from error
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.format != FORMAT:
            raise UsageError(f"{path}: not the manifest of a cache of logits", AGAIN)
        if head.version > VERSION:
            raise UsageError(
                f"{path}: the cache has format version {head.version}, and this pillm knows version {VERSION}",
                "use a newer pillm, or make the cache again with this one",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: damaged ({error})", "delete it and run pillm logits again: shards are kept"
        ) from error
    if encode(manifest) != data:
        raise UsageError(
            f"{path}: damaged, or changed by hand (its checksum does not fit)",
            "delete it and run pillm logits again: whole shards are kept",
        )
    return manifest, hashlib.sha256(data).hexdigest()


def _json(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
