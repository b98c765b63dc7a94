"""One board: look, decide, copy, and have `on_board.py` do the rest there.

Everything is done by the system's ssh with the user's configuration and keys (core/ssh.py). The program that works on
the board comes with each call and is not kept there; the packages are copied below `~/.cache/pillm/debs`, go on where
they were cut off, and are moved from there by the installation.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pillm.core import ssh
from pillm.core.amounts import amount
from pillm.core.errors import MissingError, NetworkError, PillmError, ResourceError, UsageError
from pillm.core.events import Emit, Progress, silent
from pillm.core.follow import follow
from pillm.deploy.options import DeployOptions
from pillm.deploy.packages import Package

PROGRAM = Path(__file__).with_name("on_board.py")
_NO_PYTHON = 97
_KINDS: dict[int, type[PillmError]] = {2: UsageError, 3: MissingError, 4: NetworkError, 5: ResourceError}
_SYSTEM_BYTES = 120 * 10**6
"""What a system without a desktop takes of the memory beside the server."""
_SPARE_BYTES = 64 * 10**6
"""Disk that stays free: logs, and what apt writes while it works."""


class Facts(msgspec.Struct, frozen=True):
    """What a board is and has, in bytes; `sizes` are those of files below `base`, pillm's cache there."""

    architecture: str
    machine: str
    system: str
    board: str
    memory_bytes: int
    base: str
    home_free_bytes: int
    usr_free_bytes: int
    one_disk: bool
    root: bool
    systemd: bool
    packages: dict[str, tuple[str, str]]
    sizes: dict[str, int]
    release: dict[str, Any] | None
    previous: dict[str, Any] | None

    @property
    def title(self) -> str:
        """What it is, in words."""
        return f"{self.board or self.machine}, {self.system or 'unknown system'}, {amount(self.memory_bytes, 'bytes')} memory"


class Done(msgspec.Struct, frozen=True):
    """How it ended on a board; seconds. Nothing but `changed` where a rollback left nothing to ask."""

    changed: bool
    release: dict[str, Any] | None = None
    url: str = ""
    answer: str = ""
    healthy_s: float = 0.0
    first_token_s: float = 0.0
    answer_s: float = 0.0


def look(host: ssh.Host, emit: Emit, packages: Sequence[Package] = ()) -> Facts:
    """What the board is and has. Nothing is written there.

    Raises NetworkError (as `core.ssh`), MissingError (no Python there), PillmError.
    """
    emit(Progress("look", 0))
    places = [place for package in packages for place in (package.place, f"{package.place}.part")]
    asked = {"files": places, "packages": [package.name for package in packages]}
    return msgspec.convert(_call(host, "facts", asked, silent, root=False), Facts)


def suits(host: ssh.Host, facts: Facts) -> None:
    """Whether pillm's packages can be installed there at all. Raises MissingError, ResourceError, UsageError."""
    if not facts.architecture:
        raise MissingError(
            f"{host.name}: it has no dpkg, so it is no Debian", "install Raspberry Pi OS or Debian, 64 bit"
        )
    if facts.architecture not in ("arm64", "amd64"):
        raise UsageError(
            f"{host.name}: its system is {facts.architecture}, and pillm-runtime is for arm64 and amd64",
            "install the 64-bit Raspberry Pi OS there" if facts.architecture == "armhf" else "",
        )
    if not facts.systemd:
        raise MissingError(f"{host.name}: systemd does not run there, and it starts the service", "")
    if not facts.root:
        raise ResourceError(
            f"{host.name}: this user may not install there: sudo asks for a password",
            'use root@..., or give the user the right: echo "$USER ALL=(ALL) NOPASSWD: ALL" | sudo tee /etc/sudoers.d/pillm',
        )


def check(host: ssh.Host, facts: Facts, packages: Sequence[Package]) -> None:
    """Whether these packages fit there: processor, memory, disk. Raises UsageError, ResourceError."""
    for package in packages:
        if package.architecture not in ("all", facts.architecture):
            raise UsageError(
                f"{host.name}: {package.path.name} is for {package.architecture}, and the board is {facts.architecture}",
                f"pillm package runtime --target {facts.architecture}",
            )
        room = facts.memory_bytes - _SYSTEM_BYTES
        if package.memory > room:
            raise ResourceError(
                f"{host.name}: too little memory: {package.model} needs {amount(package.memory, 'bytes')}, and of the board's "
                f"{amount(facts.memory_bytes, 'bytes')} at most {amount(room, 'bytes')} are free for it",
                "take a smaller model or quantization; pillm plan says what fits",
            )
    fresh = [package for package in packages if facts.packages.get(package.name) != ("installed", package.version)]
    sizes = {
        package: max(facts.sizes.get(package.place, 0), facts.sizes.get(f"{package.place}.part", 0))
        for package in fresh
    }
    missing = sum(package.size - min(sizes[package], package.size) for package in fresh)
    written = sum(package.installed for package in fresh)
    at_home = missing + (written if facts.one_disk else 0) + _SPARE_BYTES
    # The package files are kept beside what they install, to be rolled back to.
    at_usr = written + (missing if facts.one_disk else sum(package.size for package in fresh)) + _SPARE_BYTES
    for free, needed, where in ((facts.home_free_bytes, at_home, "~"), (facts.usr_free_bytes, at_usr, "/usr")):
        if fresh and free < needed:
            raise ResourceError(
                f"{host.name}: the disk is too full: {amount(free, 'bytes')} are free in {where}, "
                f"{amount(needed, 'bytes')} are needed",
                "free some space there, then run the same command again",
            )


def is_there(facts: Facts, release: dict[str, Any]) -> bool:
    """Whether this very release is what the last deploy left there."""
    return facts.release == release and all(
        facts.packages.get(one["package"]) == ("installed", one["version"]) for one in release["packages"]
    )


def release_of(name: str, packages: Sequence[Package]) -> dict[str, Any]:
    """What a board writes down of what it was given."""
    return {
        "name": name,
        "unit": f"pillm-server@{name}.service",
        "packages": [package.entry() for package in packages],
    }


def copy(host: ssh.Host, facts: Facts, packages: Sequence[Package], emit: Emit) -> None:
    """The package files, each from where it was cut off, with every byte checked there. Raises as `core.ssh`."""
    for package in packages:
        if facts.sizes.get(package.place) == package.size:
            continue
        begin = min(facts.sizes.get(f"{package.place}.part", 0), package.size)
        ssh.send(host, package.path, package.place, package.sha256, begin, facts.home_free_bytes, emit)


def install(host: ssh.Host, facts: Facts, options: DeployOptions, release: dict[str, Any], emit: Emit) -> Done:
    """Install, start, check; what was there before comes back if that fails. Raises PillmError of the fault's kind."""
    return _work(host, "install", {**_plan(options), "base": facts.base, "release": release}, emit)


def rollback(host: ssh.Host, options: DeployOptions, emit: Emit) -> Done:
    """Go back to what the last deploy found. Raises as `install`."""
    return _work(host, "rollback", _plan(options), emit)


def _plan(options: DeployOptions) -> dict[str, Any]:
    return {"wait": options.wait, "limit": options.limit, "prompt": options.prompt, "tokens": options.gen_tokens}


def _work(host: ssh.Host, action: str, plan: dict[str, Any], emit: Emit) -> Done:
    key = hashlib.sha256(json.dumps([action, plan], sort_keys=True).encode() + PROGRAM.read_bytes()).hexdigest()[:16]
    told = _call(host, action, {**plan, "key": key}, emit, root=True)
    if not told["ok"]:
        raise _KINDS.get(told["code"], PillmError)(f"{host.name}: {told['message']}", told["hint"])
    return msgspec.convert(told, Done)


def _call(host: ssh.Host, action: str, plan: dict[str, Any], emit: Emit, *, root: bool) -> dict[str, Any]:
    """What `on_board.py` answers there."""
    packed = base64.b64encode(zlib.compress(PROGRAM.read_bytes(), 9)).decode()
    # `__name__` is "__main__" under -c, too.
    code = f"import base64,zlib;exec(zlib.decompress(base64.b64decode('{packed}')))"
    sudo = '[ "$(id -u)" = 0 ] || set -- sudo -n "$@"' if root else ":"
    script = (
        f"command -v python3 >/dev/null || exit {_NO_PYTHON}\n"
        f'set -- python3 -c {shlex.quote(code)} {action} {shlex.quote(json.dumps(plan))}\n{sudo}\nexec "$@"'
    )
    ended = follow(ssh.command(host, script), emit)
    if ended.code == ssh.LOST:
        hint = "; what was begun there goes on to its end" if root else ""
        raise ssh.lost(host, ended, f"the connection was lost{hint}")
    if ended.code == _NO_PYTHON:
        raise MissingError(f"{host.name}: there is no python3", "Debian, Raspberry Pi OS: sudo apt install python3")
    try:
        return json.loads(ended.stdout)
    except ValueError as error:
        last = ended.noise[-1] if ended.noise else f"exit code {ended.code}"
        raise PillmError(f"{host.name}: {action} gave no answer there ({last})", "try it by hand with ssh") from error
