"""A Debian binary package from a tree of files: the same tree gives the same bytes, on any machine.

Times are those of SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs/source-date-epoch/), owners are root, the
order is dpkg-deb's, and compression runs in one thread, since more of them would cut the stream at other places.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from importlib import resources
from pathlib import Path

from pillm.core.artifacts import PARTIAL, publish
from pillm.core.errors import MissingError, PillmError, UsageError, writing

EPOCH = 1_796_000_000
"""When the packages of this version say that they were made (2026-11-30), where SOURCE_DATE_EPOCH is not set."""
_MAINTAINER = "Pi-LLM Optimizer <pi-llm-optimizer@invalid.example.org>"


def sources() -> Path:
    """The folder `packaging`: inside the installed package, or at the top of a checkout. Raises MissingError."""
    inside = Path(str(resources.files("pillm"))) / "deploy/packaging"
    for place in (inside, Path(str(resources.files("pillm"))).parents[1] / "packaging"):
        if (place / "runtime/debian/control").is_file():
            return place
    raise MissingError(f"{inside}: the sources of the packages are not there", "install pi-llm-optimizer again")


def epoch() -> int:
    """Seconds since 1970 that every file of a package is dated. Raises UsageError for a variable that is no number."""
    said = os.environ.get("SOURCE_DATE_EPOCH", "")
    if said and not said.isdigit():
        raise UsageError(f"SOURCE_DATE_EPOCH={said}: is no number of seconds", "unset it, or give seconds since 1970")
    return int(said) if said else EPOCH


def maintainer(said: str | None) -> str:
    """Who answers for a package, as `Name <address>`. Raises UsageError for what has no address."""
    name, address = os.environ.get("DEBFULLNAME"), os.environ.get("DEBEMAIL")
    found = said or (f"{name} <{address}>" if name and address else _MAINTAINER)
    if "\n" in found or not found.endswith(">") or "<" not in found or "@" not in found:
        raise UsageError(f"--maintainer {found}: is no `Name <address>`", "write it as: Ada Lovelace <ada@example.org>")
    return found


def filled(text: str, words: Mapping[str, str]) -> str:
    """A template with `@WORD@` replaced."""
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def date() -> str:
    """The packages' date in a changelog's form."""
    return formatdate(epoch(), usegmt=True).replace("GMT", "+0000")


def write(path: Path, data: str | bytes, mode: int = 0o644) -> None:
    """One file of a tree."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(mode)


def zipped(text: str) -> bytes:
    """As `gzip -9n`: without name and time."""
    return gzip.compress(text.encode(), 9, mtime=0)


@contextmanager
def tree(out: Path) -> Iterator[Path]:
    """A folder beside the package to be, which is gone after the block."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=PARTIAL, suffix="-tree", dir=out))
        try:
            folder.chmod(0o755)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def installed_kib(folder: Path) -> int:
    """What dpkg counts as a tree's size: KiB of each file, rounded up, and one for everything else."""
    size = 0
    for path in folder.rglob("*"):
        size += -(-path.lstat().st_size // 1024) if path.is_file() and not path.is_symlink() else 1
    return size


def build(folder: Path, control: str, scripts: Mapping[str, str], place: Path, *, compression: str) -> None:
    """Pack a tree and publish it as `place`. `scripts` are maintainer scripts by name.

    Raises MissingError (no dpkg-deb), PillmError with dpkg-deb's words, ResourceError.
    """
    if shutil.which("dpkg-deb") is None:
        raise MissingError(
            "dpkg-deb is not on this machine", "Debian, Ubuntu: sudo apt install dpkg; macOS: brew install dpkg"
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    sums = "".join(f"{_md5(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    write(folder / "DEBIAN/control", control)
    write(folder / "DEBIAN/md5sums", sums)
    for name, text in scripts.items():
        write(folder / "DEBIAN" / name, text, 0o755)
    when = epoch()
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
        os.utime(path, (when, when), follow_symlinks=False)
    partial = place.with_name(f"{PARTIAL}{os.getpid()}-{place.name}")
    try:
        said = subprocess.run(
            ["dpkg-deb", "--root-owner-group", f"-Z{compression}", *(["-z1"] if compression == "gzip" else []), "--build", folder, partial],
            env={**os.environ, "SOURCE_DATE_EPOCH": str(when), "DPKG_DEB_THREADS_MAX": "1", "LC_ALL": "C"},
            capture_output=True, text=True, errors="replace",
        )  # fmt: skip
        if said.returncode:
            if "No space left" in said.stderr:
                raise OSError(28, "No space left on device", str(place))
            raise PillmError(
                f"dpkg-deb failed: {said.stderr.strip().splitlines()[-1] if said.stderr.strip() else said.returncode}"
            )
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        publish(partial, place)
    finally:
        partial.unlink(missing_ok=True)


def _md5(path: Path) -> str:
    """The checksum that dpkg --verify reads; it is no protection, and not meant as one."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
