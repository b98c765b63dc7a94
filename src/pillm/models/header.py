"""The beginning of a hub's files, without the files: a model's config, or the header of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import msgspec
from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

import pillm
from pillm.core.events import Emit
from pillm.models import hub, hub_cache
from pillm.models.hub_cache import RemoteFile
from pillm.models.hub_errors import Unreachable, diagnosing
from pillm.models.refs import HubRef
from pillm.models.transfer import patiently


class Remote(msgspec.Struct, frozen=True):
    """A commit of a repository: its files, and `begin(path, count)` for the first `count` bytes of one."""

    commit: str
    files: tuple[RemoteFile, ...]
    begin: Callable[[str, int], bytes]


def remote(ref: HubRef, emit: Emit) -> Remote:
    """What `ref` holds, for reading beginnings of files. Where no answer comes, what was fetched before is used.

    Raises MissingError (there is no such thing), NetworkError (no answer and nothing in the cache, or a refusal).
    """
    cached = hub_cache.cached_commit(ref)
    listing = hub_cache.load_listing(ref.repo, cached) if cached else None
    if listing and (ref.commit or constants.is_offline_mode()):
        return _remote(ref, cached or "", listing, emit)
    with diagnosing(ref.repo, ref.revision):
        headers = build_hf_headers(library_name="pillm", library_version=pillm.__version__)
    try:
        commit, files = hub.ask(ref, headers, emit)
    except Unreachable:
        if cached and listing:
            return _remote(ref, cached, listing, emit)
        raise
    return _remote(ref, commit, files, emit)


def _remote(ref: HubRef, commit: str, files: list[RemoteFile], emit: Emit) -> Remote:
    sizes = {file.path: file.size for file in files}

    def begin(path: str, count: int) -> bytes:
        count = min(count, sizes[path])
        local = hub_cache.snapshot(ref.repo, commit) / path
        if local.is_file():
            with local.open("rb") as file:
                return file.read(count)
        headers = build_hf_headers(library_name="pillm", library_version=pillm.__version__)
        url = f"{constants.ENDPOINT}/{ref.repo}/resolve/{commit}/{quote(path)}"
        with diagnosing(ref.repo, commit, token="authorization" in headers):
            return patiently(lambda: _first(url, headers, count), emit, path)

    return Remote(commit, tuple(files), begin)


def _first(url: str, headers: dict[str, str], count: int) -> bytes:
    """The first `count` bytes at `url`; a server that sends more than was asked for is not read further."""
    asked = {**headers, "Accept-Encoding": "identity", "Range": f"bytes=0-{max(count, 1) - 1}"}
    found = bytearray()
    with get_session().stream("GET", url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        for block in response.iter_bytes():
            found += block
            if len(found) >= count:
                break
    return bytes(found[:count])
