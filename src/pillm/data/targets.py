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
import yaml

from pillm.core.errors import ProfileError, UsageError
from pillm.core.findings import Finding


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


_KEYS = {"locale": str, "register": str, "tool": str, "records": int, "share": float}


def read(path: Path) -> tuple[Target, ...]:
    """The targets of a file. Raises UsageError, or ProfileError with all that is wrong by line."""
    try:
        node = yaml.compose(path.read_bytes().decode("utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: the file is not UTF-8", "save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise UsageError(f"{path}:{line}: {getattr(error, 'problem', None) or 'no YAML'}", "check this line") from error
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deeply", "see docs/dataset.md") from error
    found: list[Finding] = []
    targets = [_target(item, str(path), found) for item in _items(node, str(path), found)]
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


def _wrong(file: str, node: yaml.Node | None, where: str, message: str, hint: str) -> Finding:
    line = node.start_mark.line + 1 if node else 1
    return Finding(file=file, line=line, path=where, code="target", message=message, hint=hint)


def _items(node: yaml.Node | None, file: str, found: list[Finding]) -> list[yaml.Node]:
    hint = "write `targets:`, then one `- {locale: fr-CA, records: 50}` a line"
    keys = {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
    for key in keys:
        if key != "targets":
            found.append(_wrong(file, node, str(key), "this key is not known", "the only key is `targets`"))
    listed = keys.get("targets")
    if isinstance(listed, yaml.SequenceNode) and listed.value:
        return listed.value
    found.append(_wrong(file, listed or node, "targets", "there is no list of targets", hint))
    return []


def _target(node: yaml.Node, file: str, found: list[Finding]) -> Target | None:
    before, given = len(found), {}
    for key_node, value_node in node.value if isinstance(node, yaml.MappingNode) else ():
        key = str(key_node.value)
        value = _value(value_node, _KEYS.get(key))
        if key not in _KEYS:
            found.append(
                _wrong(file, key_node, f"targets.{key}", "this key is not known", f"known are {', '.join(_KEYS)}")
            )
        elif key in given:
            found.append(_wrong(file, key_node, f"targets.{key}", "this key stands here twice", "keep one of the two"))
        elif value is None:
            wanted = {"records": "a whole number from 1", "share": "a number above 0 and up to 1"}.get(key, "a word")
            found.append(
                _wrong(file, value_node, f"targets.{key}", f"{value_node.value!r} is not {wanted}", "mend the value")
            )
        else:
            given[key] = value
    if len(found) == before and ("records" in given) == ("share" in given):
        found.append(_wrong(file, node, "targets", "a target has either `records` or `share`", "give one of the two"))
    return Target(node.start_mark.line + 1, **given) if len(found) == before else None


def _value(node: yaml.Node, kind: type | None) -> Any:
    """The value if it is of this kind and in its range, else None. `on` and `no` are words here."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    if kind is str:
        return node.value
    try:
        number = kind(node.value) if kind else None
    except ValueError:
        return None
    if number is None or not number > 0 or (kind is float and number > 1):
        return None
    return number
