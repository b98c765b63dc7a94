"""The hub's cache on this disk, in the layout that `huggingface_hub` documents and other tools share.

    models--org--name/refs/main                   the commit that the branch pointed to when last asked
    models--org--name/blobs/<sha256 or git id>    the bytes, named after their checksum
    models--org--name/snapshots/<commit>/FILE     a link to the blob

What a commit holds, with sizes and checksums, is kept as `hub/org--name/<commit>.json` in our own
cache: with it a snapshot is known to be complete and sound without a request.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import msgspec
from huggingface_hub import constants

from pillm.core.artifacts import write_atomic
from pillm.core.events import Emit
from pillm.core.paths import cache_dir
from pillm.models.hashing import content_sha256
from pillm.models.refs import HubRef

PARTIAL = ".pillm-partial"


class RemoteFile(msgspec.Struct, frozen=True):
    """A file of a commit: bytes, and their checksum. Large files have a sha256, small ones a git blob id."""

    path: str
    size: int
    git_id: str = ""
    sha256: str | None = None

    @property
    def blob(self) -> str:
        """The name of the file's bytes in the cache."""
        return self.sha256 or self.git_id


_listing_decoder = msgspec.json.Decoder(list[RemoteFile])
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def is_checksum(text: str) -> bool:
    """Whether `text` has the form of a git id or of a sha256: it becomes a file's name here."""
    return _CHECKSUM.fullmatch(text) is not None


def store(repo: str) -> Path:
    """The repository's folder in the cache ($HF_HUB_CACHE, $HF_HOME)."""
    return Path(constants.HF_HUB_CACHE) / "--".join(["models", *repo.split("/")])


def snapshot(repo: str, commit: str) -> Path:
    """Where a commit's files lie."""
    return store(repo) / "snapshots" / commit


def lock_path(repo: str, blob: str) -> Path:
    """The lock that `huggingface_hub` takes for a blob, so that it and we wait for each other."""
    return Path(constants.HF_HUB_CACHE) / ".locks" / store(repo).name / f"{blob}.lock"


def cached_commit(ref: HubRef) -> str | None:
    """The commit of `ref` as far as it is known here."""
    if ref.commit:
        return ref.commit
    try:
        text = (store(ref.repo) / "refs" / ref.revision).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if re.fullmatch(r"[0-9a-f]{40}", text) else None


def remember_commit(ref: HubRef, commit: str) -> None:
    """Note what the revision points to."""
    if ref.revision != commit and cached_commit(ref) != commit:
        write_atomic(store(ref.repo) / "refs" / ref.revision, commit)


def load_listing(repo: str, commit: str) -> list[RemoteFile] | None:
    """What the commit holds, if we have asked before."""
    try:
        return _listing_decoder.decode(_listing_path(repo, commit).read_bytes())
    except (OSError, msgspec.MsgspecError):
        return None


def save_listing(repo: str, commit: str, files: list[RemoteFile]) -> None:
    """Keep what the commit holds."""
    write_atomic(_listing_path(repo, commit), msgspec.json.encode(files))


def listing_of_snapshot(repo: str, commit: str) -> list[RemoteFile] | None:
    """What lies there of a commit that another tool fetched; its links name the checksums."""
    folder = snapshot(repo, commit)
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            blob = path.readlink().name if path.is_symlink() else ""
            blob = blob if is_checksum(blob) else ""
            large = len(blob) == 64
            files.append(
                RemoteFile(
                    path.relative_to(folder).as_posix(),
                    path.stat().st_size,
                    "" if large else blob,
                    blob if large else None,
                )
            )
    return files or None


def is_sound(path: Path, file: RemoteFile, emit: Emit) -> bool:
    """Whether `path` holds exactly the file's bytes, by size and checksum (size alone, if none is known)."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256:
        return content_sha256(path, emit) == file.sha256
    return not file.git_id or git_blob_id(path) == file.git_id


def git_blob_id(path: Path) -> str:
    """Git's name for a file's content: the sha1 of `blob SIZE\\0` and the bytes."""
    # Git's own choice of hash; the attacker it would have to withstand is the hub itself.
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def link(repo: str, commit: str, file: RemoteFile) -> Path:
    """Make the snapshot's entry for a blob that lies in the cache; a hard link where symbolic ones cannot be made."""
    blob, pointer = store(repo) / "blobs" / file.blob, snapshot(repo, commit) / file.path
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.with_name(f".{pointer.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(os.path.relpath(blob, pointer.parent))
    except (OSError, NotImplementedError):
        os.link(blob, temporary)
    temporary.replace(pointer)
    return pointer


def _listing_path(repo: str, commit: str) -> Path:
    return cache_dir() / "hub" / repo.replace("/", "--") / f"{commit}.json"
