"""What goes to a board: package files, and what they say of themselves."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec

from pillm.core.artifacts import sha256_file
from pillm.core.errors import MissingError, UsageError

_FIELDS = ("Package", "Version", "Architecture", "Installed-Size", "Pillm-Name", "Pillm-Memory")


class Package(msgspec.Struct, frozen=True):
    """A `.deb` file. `size` and `installed` are in bytes; `memory` is what its model's server needs, 0 where it has none."""

    path: Path
    name: str
    version: str
    architecture: str
    size: int
    installed: int
    sha256: str
    model: str
    memory: int

    @property
    def place(self) -> str:
        """Its file on a host, below pillm's cache."""
        return f"debs/{self.sha256[:16]}/{self.path.name}"

    def entry(self) -> dict[str, str]:
        """What a board writes down of it."""
        return {
            "package": self.name,
            "version": self.version,
            "architecture": self.architecture,
            "sha256": self.sha256,
            "file": self.path.name,
        }


def read(path: Path) -> Package:
    """The package of a file. Raises UsageError (no file; no package), MissingError (no dpkg-deb here)."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file", "check the path")
    if not shutil.which("dpkg-deb"):
        raise MissingError("dpkg-deb: no such program", "Debian, Ubuntu: sudo apt install dpkg")
    done = subprocess.run(["dpkg-deb", "-f", path, *_FIELDS], capture_output=True, text=True, check=False)
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    if done.returncode or not {"Package", "Version", "Architecture"} <= said.keys():
        reason = (done.stderr.strip().splitlines() or ["it has no name, version or architecture"])[-1]
        raise UsageError(
            f"{path}: is no Debian package ({reason})", "make one with: pillm package runtime, pillm package model"
        )
    return Package(
        path=path,
        name=said["Package"],
        version=said["Version"],
        architecture=said["Architecture"],
        size=path.stat().st_size,
        installed=_number(said.get("Installed-Size")) * 1024,
        sha256=sha256_file(path),
        model=said.get("Pillm-Name", said["Package"].removeprefix("pillm-model-")),
        memory=_number(said.get("Pillm-Memory")),
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
