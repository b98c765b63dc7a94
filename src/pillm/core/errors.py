"""What can go wrong, and the exit code each kind gives.

    PillmError                     1
    ├── FindingsError              1   the data has findings (all of them are carried along)
    ├── GateError                  1   a check on a result failed: the result is not to be trusted
    ├── UsageError                 2   a wrong option, path or profile
    │   └── ProfileError           2   findings in a YAML profile
    ├── MissingError               3   a tool, model, extra or compiler is not there
    ├── NetworkError               4   the other side did not answer, or said no
    └── ResourceError              5   no disk, no memory, no right to write
    (Ctrl-C)                     130
    (any other exception: a bug)  70

A message says what is wrong in the user's words; a hint says what to do about it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

from pillm.core.findings import Finding

EXIT_INTERRUPTED = 130
EXIT_BUG = 70


class PillmError(Exception):
    """Base of all errors that are shown to the user as `message`, then `hint`."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class FindingsError(PillmError):
    """The data has findings that make it unusable; `findings` holds all that were gathered."""

    def __init__(self, message: str, findings: Sequence[Finding], hint: str = "") -> None:
        super().__init__(message, hint)
        self.findings = tuple(findings)


class GateError(PillmError):
    """A result did not pass its check."""


class UsageError(PillmError):
    """An option, a path or a profile is wrong."""

    exit_code = 2


class ProfileError(UsageError):
    """A YAML profile has findings."""

    def __init__(self, message: str, findings: Sequence[Finding], hint: str = "") -> None:
        super().__init__(message, hint)
        self.findings = tuple(findings)


class MissingError(PillmError):
    """A tool, a model, an optional dependency or a compiler is not there."""

    exit_code = 3


class NetworkError(PillmError):
    """The other side did not answer, or refused."""

    exit_code = 4


class ResourceError(PillmError):
    """The machine has no more disk or memory, or does not let us write."""

    exit_code = 5


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing `path` into errors a user can act on."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in _NO_SPACE:
            raise ResourceError(
                f"{where}: the disk is full",
                "free some space or choose another folder with --out, then run the same command again",
            ) from error
        if error.errno in _NO_RIGHT:
            raise ResourceError(
                f"{where}: this folder cannot be written to ({error.strerror})",
                "choose another folder with --out, or change the folder's permissions",
            ) from error
        if error.errno in {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}:
            raise UsageError(f"{where}: {error.strerror}", "choose another path with --out") from error
        raise
