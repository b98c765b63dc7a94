"""Keys that stand twice in one object of a line. JSON readers keep one of the two, and not all the same."""

from __future__ import annotations

import json
from typing import Any

from pillm.data.validation.characters import member
from pillm.data.validation.codes import Fault


def duplicate_keys(data: bytes, path: str = "$") -> tuple[Fault, ...]:
    """Every doubled key of valid JSON, with the path of its object."""
    doubled: dict[int, tuple[dict[str, Any], list[str]]] = {}

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            again = [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
            doubled[id(found)] = (found, list(dict.fromkeys(again)))
        return found

    value = json.loads(data, object_pairs_hook=keep)
    if not doubled:
        return ()
    found: list[Fault] = []
    todo: list[tuple[str, Any]] = [(path, value)]
    while todo:
        where, item = todo.pop()
        if isinstance(item, dict):
            for key in doubled[id(item)][1] if id(item) in doubled else ():
                found.append(
                    Fault("duplicate-key", member(where, key), f"the key {key[:60]!r} stands here more than once")
                )
            todo += [(member(where, key), inner) for key, inner in reversed(item.items())]
        elif isinstance(item, list):
            todo += [(f"{where}[{index}]", inner) for index, inner in reversed(list(enumerate(item)))]
    if len({id(entry[0]) for entry in doubled.values()}) and not found:
        # The doubled object was itself the value of a key that another one replaced.
        found.append(Fault("duplicate-key", path, "a key stands twice in an object that another key replaced"))
    return tuple(found)
