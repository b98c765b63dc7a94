"""`pillm package repo`: a folder of packages as a signed apt repository of static files, which any web server can serve.

Packages stay where they lie; beside them come `dists/SUITE` with the lists, signed by the user's own key
(https://wiki.debian.org/DebianRepository/Format), the public key, and a sources file to copy to the boards.
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pillm.core.artifacts import atomic_folder, clear_partials, sha256_file, write_atomic
from pillm.core.errors import MissingError, PillmError, UsageError, writing
from pillm.core.events import Emit, Log
from pillm.core.stage import Result
from pillm.deploy.package.options import RepoOptions

COMPONENT = "main"
KEYRING = "pillm-archive-keyring.gpg"
ARCHITECTURES = ("amd64", "arm64")
"""Listed even where no package is for them, since a board asks for the list of its own."""


def run(options: RepoOptions, emit: Emit) -> Result:
    """Write `dists/SUITE`, the public key and `pillm.sources` into the folder.

    Raises UsageError (no folder, no packages, a file that is none, no such key), MissingError (gpg, dpkg-deb),
    PillmError (gpg's words), ResourceError.
    """
    folder = options.folder
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: there is no such folder", "put .deb files into it first: pillm package runtime --out ..."
        )
    for tool in ("gpg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise MissingError(f"{tool} is not on this machine", "Debian, Ubuntu: sudo apt install gnupg dpkg")
    files = sorted(path for path in folder.rglob("*.deb") if path.is_file() and ".partial-" not in path.as_posix())
    if not files:
        raise UsageError(
            f"{folder}: there is no .deb file in it", "make one: pillm package runtime --out " + str(folder)
        )
    fields = {path: _fields(path) for path in files}
    _twice(fields)
    key = options.key or _only_key()
    public = _gpg(["--export", "--", key])
    if not public:
        raise UsageError(
            f"{key}: gpg has no such key",
            "gpg --list-secret-keys shows the keys; gpg --quick-generate-key makes one",
        )
    with writing(folder):
        clear_partials(folder)
        architectures = sorted({*ARCHITECTURES, *(each["Architecture"] for each in fields.values())} - {"all"})
        with atomic_folder(folder / "dists" / options.suite) as dist:
            for architecture in architectures:
                entries = [
                    _entry(path, folder, text)
                    for path, text in fields.items()
                    if text["Architecture"] in (architecture, "all")
                ]
                _write_list(dist / COMPONENT / f"binary-{architecture}", "\n".join(entries).encode())
            (dist / "Release").write_text(_release(dist, options, architectures))
            for how, name in ((["--clearsign"], "InRelease"), (["--detach-sign", "--armor"], "Release.gpg")):
                _gpg(["--local-user", key, *how, "--output", str(dist / name), str(dist / "Release")])
        write_atomic(folder / KEYRING, public)
        write_atomic(folder / "pillm.sources", _sources(options.suite))
    emit(
        Log(
            f"{folder}: {len(files)} packages; serve the folder, copy {KEYRING} to /usr/share/keyrings and pillm.sources to /etc/apt/sources.list.d"
        )
    )
    return Result({"repository": folder}, {"packages": len(files), "suite": options.suite})


def _only_key() -> str:
    """Fingerprint of gpg's secret key where it has one. Raises UsageError where it has none or several."""
    said = _gpg(["--list-secret-keys", "--with-colons"]).decode("utf-8", "replace").splitlines()
    # The first fingerprint behind a `sec` line is that key's, the others are its subkeys'.
    found = [said[at + 1 :] for at, line in enumerate(said) if line.startswith("sec:")]
    keys = [next(line.split(":")[9] for line in rest if line.startswith("fpr:")) for rest in found]
    if len(keys) != 1:
        raise UsageError(
            f"gpg has {len(keys) or 'no'} secret key{'s' if keys else ''}",
            "say which signs with --key; gpg --list-secret-keys shows them" if keys else "make one: gpg --quick-generate-key you@example.org",
        )  # fmt: skip
    return keys[0]


def _fields(path: Path) -> dict[str, str]:
    """A package's control fields, with continuation lines in them. Raises UsageError for what is no package."""
    said = subprocess.run(
        ["dpkg-deb", "-f", path], capture_output=True, text=True, errors="replace", env={**os.environ, "LC_ALL": "C"}
    )
    found: dict[str, str] = {}
    name = ""
    for line in said.stdout.splitlines():
        if line.startswith((" ", "\t")) and name:
            found[name] += "\n" + line
        else:
            name, _, value = line.partition(": ")
            found[name] = value
    if said.returncode or not {"Package", "Version", "Architecture"} <= found.keys():
        raise UsageError(f"{path}: is no whole Debian package", "copy it again, or take it out of the folder")
    return found


def _twice(fields: dict[Path, dict[str, str]]) -> None:
    """One name, version and architecture must be one content: apt would take either."""
    seen: dict[tuple[str, str, str], Path] = {}
    for path, text in fields.items():
        other = seen.setdefault((text["Package"], text["Version"], text["Architecture"]), path)
        if other != path and sha256_file(other) != sha256_file(path):
            raise UsageError(
                f"{path}: has the name and version of {other}, and another content",
                "make it again with a larger --package-version",
            )


def _entry(path: Path, folder: Path, fields: dict[str, str]) -> str:
    extra = {
        "Filename": path.relative_to(folder).as_posix(),
        "Size": str(path.stat().st_size),
        "SHA256": sha256_file(path),
    }
    return "".join(f"{name}: {value}\n" for name, value in {**fields, **extra}.items())


def _write_list(place: Path, data: bytes) -> None:
    """A list in the forms that apt asks for, by its name and by its hash, so that a list that is just replaced can still be had."""
    place.mkdir(parents=True)
    for name, form in (
        ("Packages", data),
        ("Packages.gz", gzip.compress(data, 9, mtime=0)),
        ("Packages.xz", lzma.compress(data)),
    ):
        (place / name).write_bytes(form)
        by_hash = place / "by-hash/SHA256"
        by_hash.mkdir(parents=True, exist_ok=True)
        (by_hash / hashlib.sha256(form).hexdigest()).write_bytes(form)


def _release(dist: Path, options: RepoOptions, architectures: Sequence[str]) -> str:
    said = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = (
        datetime.datetime.fromtimestamp(int(said), datetime.UTC)
        if said.isdigit()
        else datetime.datetime.now(datetime.UTC)
    )
    listed = sorted(path for path in (dist / COMPONENT).rglob("Packages*") if path.is_file())
    sums = "".join(
        f" {sha256_file(path)} {path.stat().st_size} {path.relative_to(dist).as_posix()}\n" for path in listed
    )
    return (
        f"Origin: {options.origin}\nLabel: {options.origin}\nSuite: {options.suite}\nCodename: {options.suite}\n"
        f"Date: {now.strftime('%a, %d %b %Y %H:%M:%S +0000')}\nArchitectures: {' '.join(architectures)}\n"
        f"Components: {COMPONENT}\nAcquire-By-Hash: yes\nSHA256:\n{sums}"
    )


def _sources(suite: str) -> str:
    return (
        "# Copy to /etc/apt/sources.list.d, with the address that the repository is served at.\n"
        f"Types: deb\nURIs: https://REPOSITORY.EXAMPLE/\nSuites: {suite}\nComponents: {COMPONENT}\n"
        f"Signed-By: /usr/share/keyrings/{KEYRING}\n"
    )


def _gpg(arguments: list[str]) -> bytes:
    said = subprocess.run(
        ["gpg", "--batch", "--yes", "--quiet", *arguments], capture_output=True, stdin=subprocess.DEVNULL
    )
    if said.returncode:
        words = said.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {said.returncode}"]
        hint = "give a key whose passphrase gpg-agent has; gpg --list-secret-keys shows the keys"
        raise (UsageError if "No secret key" in words[0] else PillmError)(f"gpg: {words[-1]}", hint)
    return said.stdout
