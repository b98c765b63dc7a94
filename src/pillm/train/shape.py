"""The shape that `--init prune:...` asks for, as text. Light: no torch."""

from __future__ import annotations

from typing import NamedTuple

from pillm.core.errors import UsageError

KEYS = ("layers", "ffn", "heads", "hidden")
_FORM = "write --init prune:layers=20, and as you like ffn=1024, heads=6, hidden=512, with commas"


class Shape(NamedTuple):
    """What a student is cut down to: layers, neurons of a feed-forward layer, query heads, embedding channels."""

    layers: int | None = None
    ffn: int | None = None
    heads: int | None = None
    hidden: int | None = None


def parse(text: str) -> Shape | None:
    """`prune:layers=20,ffn=1024` as a shape; None for an empty text. Raises UsageError for anything else."""
    if not text:
        return None
    kind, _, rest = text.partition(":")
    if kind != "prune" or not rest:
        raise UsageError(f"--init {text}: unknown way to make a student", _FORM)
    found: dict[str, int] = {}
    for part in rest.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in KEYS:
            raise UsageError(f"--init {text}: {key!r} cannot be pruned", f"possible are {', '.join(KEYS)}; {_FORM}")
        if key in found:
            raise UsageError(f"--init {text}: {key} is given twice", _FORM)
        if not (value.isascii() and value.isdigit() and int(value) > 0):
            raise UsageError(f"--init {text}: {key}={value} is not a whole number above 0", _FORM)
        found[key] = int(value)
    return Shape(**found)
