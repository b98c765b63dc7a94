"""What the terminal UI remembers between starts: theme, last screen, what stood in forms. A small file in the cache."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from pillm.core.artifacts import write_atomic
from pillm.core.errors import PillmError
from pillm.core.paths import cache_dir

NAME = "ui.json"


class State(msgspec.Struct):
    """All that is kept. Values of forms are by the words of their command."""

    theme: str = ""
    panel: str = ""
    forms: dict[str, dict[str, Any]] = {}


def load(path: Path | None = None) -> State:
    """What was kept; what cannot be read is as if there were nothing."""
    with contextlib.suppress(OSError, PillmError, msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode((path or cache_dir() / NAME).read_bytes(), type=State)
    return State()


def save(state: State, path: Path | None = None) -> None:
    """Keep it. A cache that cannot be written to is no reason to stop; a token is never written."""
    kept = msgspec.structs.replace(state, forms={name: _shown(values) for name, values in state.forms.items()})
    with contextlib.suppress(OSError, PillmError):
        write_atomic(path or cache_dir() / NAME, msgspec.json.encode(kept))


def _shown(values: dict[str, Any]) -> dict[str, Any]:
    """Values without those that hold what would let a reader act in the user's name."""
    from pillm.models.redact import redact

    texts = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return {
        name: values[name] for name, items in texts.items() if all(redact(str(item)) == str(item) for item in items)
    }
