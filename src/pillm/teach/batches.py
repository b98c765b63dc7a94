"""Which prompts are answered together, and behind which shared beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pillm.teach.ask import Ask

WORTH = 16
"""Tokens; a beginning that is longer by fewer is not worth a batch of its own."""
_LEVELS = 100
"""Beginnings within beginnings; deeper ones are no dataset's."""


class Group(NamedTuple):
    """Prompts (token ids) that share their first `shared` tokens, the longest first."""

    prompts: list[tuple[Ask, list[int]]]
    shared: int


def groups(prompts: Sequence[tuple[Ask, list[int]]], least: int) -> list[Group]:
    """Groups of at least `least` prompts that share a beginning, and one of all others.

    A group's beginning is at least WORTH tokens longer than what its prompts share with the others. Each prompt
    keeps one token of its own, from which its answer goes on.
    """
    if not prompts:
        return []
    ordered = sorted(prompts, key=lambda item: item[1])
    found, rest = _split(ordered, max(2, least))
    if rest:
        found.append(rest)
    result: list[Group] = []
    for members in found:
        shared = min(_common(members), *(len(ids) - 1 for _, ids in members)) if len(members) > 1 else 0
        result.append(Group(sorted(members, key=lambda item: -len(item[1])), shared))
    return sorted(result, key=lambda group: -len(group.prompts[0][1]))


def _split(
    ordered: list[tuple[Ask, list[int]]], least: int, level: int = 0
) -> tuple[list[list[tuple[Ask, list[int]]]], list[tuple[Ask, list[int]]]]:
    """Groups among prompts in order of their tokens, and what is left."""
    depth = _common(ordered)
    found: list[list[tuple[Ask, list[int]]]] = []
    rest: list[tuple[Ask, list[int]]] = []
    first = 0
    while first < len(ordered):
        ids = ordered[first][1]
        last = first + 1
        if len(ids) > depth:
            while last < len(ordered) and ordered[last][1][depth : depth + 1] == ids[depth : depth + 1]:
                last += 1
        run = ordered[first:last]
        first = last
        # A run that is all there is has no common token beyond `depth` only if its prompts end there.
        if len(run) < least or len(run) == len(ordered) or level == _LEVELS:
            rest += run
            continue
        deeper, left = _split(run, least, level + 1)
        found += deeper
        if len(left) >= least and _common(left) - depth >= WORTH:
            found.append(left)
        else:
            rest += left
    return found, rest


def _common(ordered: Sequence[tuple[Ask, list[int]]]) -> int:
    """Length of the beginning that prompts in order of their tokens share: that of the first and the last."""
    a, b = ordered[0][1], ordered[-1][1]
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
