"""Where the tool keeps things outside a project: one cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from pillm.core.errors import UsageError


def expanded(text: str) -> Path:
    """A path as a person writes it, with `~` and `~user` replaced. Raises UsageError for a user unknown here."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{text}: the home folder of this user is not known here", "write the path out") from error


def cache_dir() -> Path:
    """`$PILLM_CACHE`, else `$XDG_CACHE_HOME/pillm`, else `~/.cache/pillm`. Not created here."""
    if own := os.environ.get("PILLM_CACHE"):
        return expanded(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else expanded("~/.cache")) / "pillm"
