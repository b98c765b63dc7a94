"""Models of a hub: what a revision holds, which of it a model needs, and getting it sound onto this disk."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import HfApi, constants
from huggingface_hub.utils import build_hf_headers

import pillm
from pillm.core.artifacts import publish
from pillm.core.errors import MissingError, NetworkError, ResourceError, UsageError
from pillm.core.events import Emit, Log
from pillm.models import hub_cache
from pillm.models.caching import caching, locked, space_hint
from pillm.models.hub_cache import RemoteFile
from pillm.models.hub_errors import OFFLINE_HINT, Unreachable, diagnosing, host, page
from pillm.models.redact import redact
from pillm.models.refs import HubRef, is_plain, missing_shards
from pillm.models.transfer import Tally, append, patiently

_SMALL = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("*.tiktoken", "*.model", "chat_template*", "additional_chat_templates/*"),
    *("LICEN[CS]E*", "COPYING*", "NOTICE*", "USE_POLICY*", "README.md"),
)
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.(?P<ending>gguf|safetensors)")


def resolve(ref: HubRef, emit: Emit) -> Path:
    """The snapshot's folder, or the .gguf file in it. What is cached is checked, what is missing is fetched.

    A commit that is complete in the cache needs no request. A branch is asked for where it points now;
    if no answer comes, the commit it pointed to last is used, with a warning. Errors: see `refs.resolve`.
    """
    with _client_logs(emit):
        commit = ref.commit
        if commit and (found := _cached(ref, commit, emit)):
            return found
        if constants.is_offline_mode():
            return _offline(ref, emit)
        with diagnosing(ref.repo, ref.revision):
            headers = build_hf_headers(library_name="pillm", library_version=pillm.__version__)
        try:
            commit, listing = ask(ref, headers, emit)
        except Unreachable as error:
            if (commit := hub_cache.cached_commit(ref)) and (found := _cached(ref, commit, emit, foreign=True)):
                emit(Log(f"{error.message}; using what was fetched before: {ref.repo} at {commit[:12]}", "warning"))
                return found
            raise
        with caching(hub_cache.store(ref.repo), "HF_HOME"):
            hub_cache.remember_commit(ref, commit)
            return _fetch(ref, commit, listing, headers, emit)


def choose(ref: HubRef, listing: list[RemoteFile]) -> list[RemoteFile]:
    """The files of a commit that the reference needs: weights first, then what belongs to them.

    Raises MissingError if the named file is not there, UsageError if there are no weights that can be used.
    """
    by_path = {file.path: file for file in listing}
    ggufs = [path for path in by_path if path.endswith(".gguf") and not Path(path).name.startswith("mmproj")]
    if ref.file:
        if ref.file not in by_path:
            raise MissingError(
                f"hf:{ref.repo}@{ref.revision} has no file {ref.file}", _alternatives(ref, ref.file, ggufs)
            )
        return [by_path[path] for path in _parts(ref.file, by_path)]
    small = [file for file in listing if any(_matches(file.path, pattern) for pattern in _SMALL)]
    weights = [path for path in by_path if "/" not in path and path.endswith(".safetensors")]
    if not weights:
        firsts = [path for path in ggufs if "/" not in path and not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", path)]
        if len(firsts) == 1:
            return [*(by_path[path] for path in _parts(firsts[0], by_path)), *small]
        if ggufs:
            raise UsageError(f"{ref}: holds several .gguf files", _alternatives(ref, "", ggufs))
        raise UsageError(
            f"{ref}: holds neither safetensors nor GGUF weights",
            f"look at {page(ref.repo)}; a revision refs/pr/N may hold converted weights",
        )
    if "config.json" not in by_path:
        adapter = "adapter_config.json" in by_path
        raise UsageError(
            f"{ref}: {'is an adapter, not a model' if adapter else 'has weights but no config.json'}",
            "give the merged model" if adapter else f"look at {page(ref.repo)}",
        )
    indexes = [file for file in listing if file.path == "model.safetensors.index.json"]
    if indexes:
        chosen = [path for path in weights if path.startswith("model-") and _PART.fullmatch(path)]
    elif "model.safetensors" in by_path:
        chosen = ["model.safetensors"]
    else:
        chosen = [path for path in weights if not path.startswith(("consolidated", "adapter"))]
    return [*(by_path[path] for path in chosen), *indexes, *small]


def _matches(path: str, pattern: str) -> bool:
    return fnmatch(path, pattern) and path.count("/") == pattern.count("/")


def _parts(first: str, by_path: dict[str, RemoteFile]) -> list[str]:
    """All parts of a split GGUF, of which `first` is one; or `first` alone."""
    match = _PART.fullmatch(first)
    if not match:
        return [first]
    count = match["count"]
    names = [f"{match['stem']}-{number:05d}-of-{count}.gguf" for number in range(1, int(count) + 1)]
    if missing := [name for name in names if name not in by_path]:
        raise MissingError(f"{missing[0]} is missing in the repository", "choose another file of it")
    return names


def _alternatives(ref: HubRef, wanted: str, ggufs: list[str]) -> str:
    if not ggufs:
        return f"it holds no .gguf file; look at {page(ref.repo)}"
    near = difflib.get_close_matches(wanted, ggufs, n=3, cutoff=0.5) or sorted(ggufs)[:8]
    at = "" if ref.revision == "main" else f"@{ref.revision}"
    return "write one of: " + ", ".join(f"hf:{ref.repo}{at}:{redact(path)}" for path in near)


def ask(ref: HubRef, headers: dict[str, str], emit: Emit) -> tuple[str, list[RemoteFile]]:
    """The commit that the revision points to, and all that it holds."""
    with diagnosing(ref.repo, ref.revision, token="authorization" in headers):
        api = HfApi(headers=headers, library_name="pillm", library_version=pillm.__version__)
        info = patiently(
            lambda: api.model_info(
                ref.repo, revision=ref.revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ),
            emit,
            f"asking {host()} for {ref.repo}",
            connect_retries=1,
        )
        commit, files = info.sha or "", []
        for sibling in info.siblings or ():
            size = sibling.lfs.size if sibling.lfs else sibling.size
            file = RemoteFile(
                sibling.rfilename,
                -1 if size is None else size,
                sibling.blob_id or "",
                sibling.lfs.sha256 if sibling.lfs else None,
            )
            if file.size < 0 or not hub_cache.is_checksum(file.blob):
                raise ValueError(f"{file.path} without size or checksum")
            if is_plain(file.path):
                files.append(file)
        if len(commit) != 40 or not hub_cache.is_checksum(commit):
            raise ValueError("no commit")
    with caching(hub_cache.store(ref.repo), "HF_HOME"):
        hub_cache.save_listing(ref.repo, commit, files)
    return commit, files


def _cached(ref: HubRef, commit: str, emit: Emit, *, foreign: bool = False) -> Path | None:
    """The result, if all of it lies sound in the cache.

    `foreign`: a snapshot that another tool fetched will do as well. That all of it is there can only be
    guessed then, so it is for when the hub cannot be asked.
    """
    listing = hub_cache.load_listing(ref.repo, commit)
    if listing is None and foreign:
        listing = hub_cache.listing_of_snapshot(ref.repo, commit)
    if not listing:
        return None
    folder = hub_cache.snapshot(ref.repo, commit)
    try:
        files = choose(ref, listing)
        if not all((folder / file.path).is_file() for file in files) or (not ref.file and missing_shards(folder)):
            return None
        damaged = [file.path for file in files if not hub_cache.is_sound(folder / file.path, file, emit)]
    except (MissingError, UsageError):
        # What another tool fetched may be a part only. If the repository itself is wrong, asking it will say so.
        return None
    for path in damaged:
        emit(Log(f"{ref.repo}: {path} in the cache is damaged: its checksum is wrong", "warning"))
    return None if damaged else _result(ref, commit, files)


def _offline(ref: HubRef, emit: Emit) -> Path:
    commit = hub_cache.cached_commit(ref)
    if commit and (found := _cached(ref, commit, emit, foreign=True)):
        return found
    if commit and hub_cache.snapshot(ref.repo, commit).is_dir():
        raise MissingError(f"{ref} is incomplete or damaged in the cache, and HF_HUB_OFFLINE is set", OFFLINE_HINT)
    raise MissingError(f"{ref} is not in the cache, and HF_HUB_OFFLINE is set", OFFLINE_HINT)


def _fetch(ref: HubRef, commit: str, listing: list[RemoteFile], headers: dict[str, str], emit: Emit) -> Path:
    files = list({file.path: file for file in choose(ref, listing)}.values())
    blobs = hub_cache.store(ref.repo) / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if not _have(ref, commit, file, emit)]
    total = sum(file.size for file in missing)
    partials = [blobs / (file.blob + hub_cache.PARTIAL) for file in missing]
    lacking = total - sum(path.stat().st_size for path in partials if path.is_file())
    free = shutil.disk_usage(blobs).free
    if lacking > free:
        raise ResourceError(
            f"{ref} needs {lacking / 1e6:,.0f} MB more, and {blobs} has {free / 1e6:,.0f} MB free",
            space_hint("HF_HOME"),
        )
    tally = Tally(ref.repo, total, emit)
    for file in missing:
        _fetch_file(ref, commit, file, headers, tally, emit)
    if tally.received:
        emit(Log(f"{ref.repo}: {tally.summary()}"))
    folder = hub_cache.snapshot(ref.repo, commit)
    if not ref.file and (shards := missing_shards(folder)):
        raise MissingError(
            f"{ref}: the repository lacks {', '.join(shards[:3])}, which its index names", f"look at {page(ref.repo)}"
        )
    return _result(ref, commit, files)


def _result(ref: HubRef, commit: str, files: list[RemoteFile]) -> Path:
    folder = hub_cache.snapshot(ref.repo, commit)
    return folder / files[0].path if files[0].path.endswith(".gguf") else folder


def _have(ref: HubRef, commit: str, file: RemoteFile, emit: Emit) -> bool:
    """Whether the file lies sound in the cache; what is damaged is taken away, so that it is fetched anew."""
    blob = hub_cache.store(ref.repo) / "blobs" / file.blob
    pointer = hub_cache.snapshot(ref.repo, commit) / file.path
    for path in (pointer, blob):
        if path.is_file():
            if hub_cache.is_sound(path, file, emit):
                if path is blob:
                    hub_cache.link(ref.repo, commit, file)
                return True
            emit(Log(f"{ref.repo}: {file.path} in the cache is damaged; it is fetched again", "warning"))
            path.unlink()
            blob.unlink(missing_ok=True)
    return False


def _fetch_file(ref: HubRef, commit: str, file: RemoteFile, headers: dict[str, str], tally: Tally, emit: Emit) -> None:
    """Get one file, check it, and put it in the cache. A killed run's part is gone on with."""
    blob = hub_cache.store(ref.repo) / "blobs" / file.blob
    partial = blob.with_name(blob.name + hub_cache.PARTIAL)
    with locked(hub_cache.lock_path(ref.repo, file.blob), file.path, emit):
        if blob.is_file():
            # Another process fetched it while we waited, and checked it as we do.
            tally.already(file.size)
            hub_cache.link(ref.repo, commit, file)
            return
        kept = partial.stat().st_size if partial.is_file() else 0
        if kept > file.size:
            partial.unlink()
        elif kept:
            emit(Log(f"{file.path}: going on after {kept / 1e6:,.1f} MB"))
            tally.already(kept)
        for last in (False, True):
            _transfer(ref, commit, file, partial, headers, tally, emit)
            if hub_cache.is_sound(partial, file, emit):
                break
            partial.unlink()
            tally.already(-file.size)
            if last:
                raise NetworkError(
                    f"{file.path}: what {host()} sends is not what it lists (checksum mismatch)",
                    "a proxy or a mirror may change it: try another network, check HF_ENDPOINT, or try later",
                )
            emit(Log(f"{file.path}: the checksum is wrong; fetching it again from the start", "warning"))
        with partial.open("rb") as opened:
            os.fsync(opened.fileno())
        publish(partial, blob)
        hub_cache.link(ref.repo, commit, file)


def _transfer(
    ref: HubRef, commit: str, file: RemoteFile, partial: Path, headers: dict[str, str], tally: Tally, emit: Emit
) -> None:
    if not file.size:
        partial.touch()
    url = f"{constants.ENDPOINT}/{ref.repo}/resolve/{commit}/{quote(file.path)}"
    with diagnosing(ref.repo, commit, token="authorization" in headers):
        patiently(
            lambda: append(url, partial, file.size, headers, tally),
            emit,
            file.path,
            advanced=lambda: tally.received,
        )


@contextlib.contextmanager
def _client_logs(emit: Emit) -> Iterator[None]:
    """What the client would write to stderr becomes events."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            level = "warning" if record.levelno >= logging.WARNING else "debug"
            emit(Log(redact(record.getMessage()), level))

    logger = logging.getLogger("huggingface_hub")
    before, propagate = logger.handlers[:], logger.propagate
    logger.handlers[:], logger.propagate = [Handler()], False
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = before, propagate
