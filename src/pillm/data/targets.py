"""How many records of what are wanted: a YAML file, and how far a dataset is from it.

    targets:
      - {locale: fr-CA, register: formal, tool: set_timer, records: 50}
      - {locale: pt-BR, share: 0.2}

What is left out (locale, register, tool) stands for any. `share` is of all records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from pillm.core.errors import ProfileError, UsageError
from pillm.core.findings import Finding
from pillm.core.yaml_lines import Document, Place, dotted


class Target(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is wanted, and the line that says so. Either `records` or `share` is given."""

    line: int
    locale: str | None = None
    register: str | None = None
    tool: str | None = None
    records: int | None = None
    share: float | None = None

    @property
    def name(self) -> str:
        """What is wanted, in words: `fr-CA, formal, set_timer`."""
        given = [part or "undeclared" for part in (self.locale, self.register, self.tool) if part is not None]
        return ", ".join(given) or "all"


class Met(msgspec.Struct, frozen=True):
    """A target and what there is. `shown` of the `found` records show their variety, `against` speak against it."""

    target: Target
    wanted: int
    found: int
    shown: int
    against: int
    missing: int

    @property
    def warning(self) -> str:
        """The gap in words, or nothing if there is none."""
        if not self.missing:
            return ""
        are = "is" if self.missing == 1 else "are"
        return f"{self.target.name}: {self.found:,} of {self.wanted:,} records, {self.missing:,} {are} missing"


class Cell(msgspec.Struct, frozen=True):
    """Records of a locale and register that call a tool (or, with no tool, all of them).

    `shown` have evidence for the declared variety, `against` for others, `other_language` are in another language.
    """

    locale: str
    register: str
    tool: str | None
    records: int
    shown: int = 0
    against: int = 0
    other_language: int = 0


_KINDS = {
    "locale": "a word",
    "register": "a word",
    "tool": "a word",
    "records": "a whole number from 1",
    "share": "a number above 0 and up to 1",
}


def read(path: Path) -> tuple[Target, ...]:
    """The targets of a file. Raises UsageError, or ProfileError with all that is wrong by line."""
    try:
        document = Document(str(path), path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from error
    found = list(document.findings)
    targets = [] if found else [_target(document, item, place, found) for item, place in _items(document, found)]
    if found:
        raise ProfileError(f"{path}: {len(found)} findings" if len(found) > 1 else f"{path}: 1 finding", found)
    return tuple(target for target in targets if target)


def met(target: Target, cells: Iterable[Cell], records: int) -> Met:
    """The target beside what the cells hold; `records` is how many there are in all."""
    chosen = [
        cell
        for cell in cells
        if target.locale in (None, cell.locale)
        and target.register in (None, cell.register)
        and cell.tool == target.tool
    ]
    # Without the rounding, a share such as 0.07 of 100 records asks for 8 of them.
    wanted = target.records if target.records is not None else math.ceil(round((target.share or 0) * records, 6))
    found = sum(cell.records for cell in chosen)
    return Met(
        target,
        wanted,
        found,
        shown=sum(cell.shown for cell in chosen),
        against=sum(cell.against + cell.other_language for cell in chosen),
        missing=max(0, wanted - found),
    )


def _wrong(document: Document, place: Place, message: str, hint: str) -> Finding:
    line, path = document.line(place), dotted(place) or "targets"
    return Finding(file=document.file, line=line, path=path, code="target", message=message, hint=hint)


def _items(document: Document, found: list[Finding]) -> list[tuple[Any, Place]]:
    keys = document.data if isinstance(document.data, dict) else {}
    for key in keys:
        if key != "targets":
            found.append(_wrong(document, (key,), "this key is not known", "the only key is `targets`"))
    listed = keys.get("targets")
    if isinstance(listed, list) and listed:
        return [(item, ("targets", index)) for index, item in enumerate(listed)]
    hint = "write `targets:`, then one `- {locale: fr-CA, records: 50}` a line"
    found.append(_wrong(document, ("targets",), "there is no list of targets", hint))
    return []


def _target(document: Document, item: Any, place: Place, found: list[Finding]) -> Target | None:
    before, given = len(found), item if isinstance(item, dict) else {}
    for key, value in given.items():
        if key not in _KINDS:
            hint = f"known are {', '.join(_KINDS)}"
            found.append(_wrong(document, (*place, key), "this key is not known", hint))
        elif not _fits(key, value):
            message = f"{str(value)[:40]!r} is not {_KINDS[key]}"
            hint = "put it in quotes if it is a name" if _KINDS[key] == "a word" else "mend the value"
            found.append(_wrong(document, (*place, key), message, hint))
    if len(found) == before and ("records" in given) == ("share" in given):
        message = "a target has either `records` or `share`"
        found.append(_wrong(document, place, message, "give one of the two"))
    return Target(document.line(place), **given) if len(found) == before else None


def _fits(key: str, value: Any) -> bool:
    if _KINDS[key] == "a word":
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) and value > 0 if key == "records" else 0 < value <= 1
