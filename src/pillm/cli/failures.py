"""What the user is told when a command does not end well, and its exit code."""

from __future__ import annotations

import datetime
import errno
import os
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from cyclopts import CycloptsError, UnknownCommandError

from pillm import __version__
from pillm.cli.screen import Screen
from pillm.core.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    FindingsError,
    MissingError,
    PillmError,
    ProfileError,
    ResourceError,
    UsageError,
)
from pillm.core.paths import cache_dir


def tell(error: BaseException, argv: Sequence[str], screen: Screen) -> int:
    """Show an error on the screen; returns the exit code. A bug gets a log file instead of a traceback."""
    if isinstance(error, KeyboardInterrupt):
        forced = any(word.startswith("--from") for word in argv)
        again = "the same command without --from" if forced else "the same command"
        return screen.fail("stopped", f"{again} goes on from here", EXIT_INTERRUPTED)
    known = _known(error, argv)
    if known:
        found = known.findings if isinstance(known, FindingsError | ProfileError) else ()
        return screen.fail(known.message, known.hint, known.exit_code, tuple(found))
    log = _write_log(error, argv)
    last = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
    return screen.fail(f"this is a bug in pillm: {last}", f"please report it with {log}", EXIT_BUG)


def _known(error: BaseException, argv: Sequence[str]) -> PillmError | None:
    """The error as one of ours; None if nobody thought of it."""
    if isinstance(error, PillmError):
        return error
    if isinstance(error, CycloptsError):
        words = argv[:1] if argv and not argv[0].startswith("-") and not isinstance(error, UnknownCommandError) else ()
        return UsageError(str(error).strip(), f"see: {' '.join(('pillm', *words))} --help")
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] != "pillm":
        package = (error.name or "a package").partition(".")[0]
        return MissingError(f"{package} is not installed", "run: pip install 'pi-llm-optimizer[train]'")
    if isinstance(error, MemoryError):
        return ResourceError("the machine has no memory left", "give the stage less to do at once, or close programs")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{error.filename or 'the disk'}: the disk is full", "free some space, then run again")
    return None


def _write_log(error: BaseException, argv: Sequence[str]) -> Path:
    from pillm.models.redact import redact

    time = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    text = f"pillm {__version__}\n{' '.join(argv)}\n\n{''.join(traceback.format_exception(error))}"
    for folder in (cache_dir() / "logs", Path(tempfile.gettempdir())):
        path = folder / f"pillm-bug-{time}-{os.getpid()}.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(redact(text), encoding="utf-8", errors="replace")
        except OSError:
            continue
        return path
    return Path(os.devnull)
