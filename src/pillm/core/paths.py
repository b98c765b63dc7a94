"""Where the tool keeps things outside a project: one cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$PILLM_CACHE`, else `$XDG_CACHE_HOME/pillm`, else `~/.cache/pillm`. Not created here."""
    if own := os.environ.get("PILLM_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pillm"
