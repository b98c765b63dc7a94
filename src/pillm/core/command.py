"""A stage as a shell line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import msgspec


class Command(msgspec.Struct, frozen=True):
    """What to execute: argument list, extra environment variables, working directory."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = {}
    cwd: str | None = None

    def __str__(self) -> str:
        """The line as one would type it in a POSIX shell."""
        line = shlex.join(self.argv)
        env = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.env.items())
        line = f"{env} {line}" if env else line
        return f"cd {shlex.quote(self.cwd)} && {line}" if self.cwd else line
