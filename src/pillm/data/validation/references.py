"""Where a JSON Schema refers to, and how much work it can make: asked of the schema, before a value meets it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pillm.data.validation.characters import place
from pillm.data.validation.codes import Fault

MAX_STEPS = 100_000
"""Schemas that may judge one value, at most."""
# Where schemas stand inside a schema: under the keyword itself, in its array, or as its members' values;
# and whether they judge the same place of the instance, or one that lies deeper.
_IN_PLACE = ("not", "if", "then", "else")
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE_MAPS = ("dependentSchemas", "dependencies")
_DEEPER = (
    "items",
    "additionalItems",
    "unevaluatedItems",
    "contains",
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
)
_DEEPER_LISTS = ("prefixItems", "items")
_DEEPER_MAPS = ("properties", "patternProperties")
_NAMED = ("$defs", "definitions")


def subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, bool, tuple[str | int, ...], Any]]:
    """The schemas directly inside one: label of the instance's member, whether in place, steps to it, schema.

    The label is a property's name, or "*" for what can be any member.
    """
    for key in _IN_PLACE:
        if key in schema:
            yield "", True, (key,), schema[key]
    for key in (*_IN_PLACE_LISTS, *_DEEPER_LISTS):
        if isinstance(items := schema.get(key), list):
            for index, item in enumerate(items):
                yield "*" if key in _DEEPER_LISTS else "", key in _IN_PLACE_LISTS, (key, index), item
    for key in _DEEPER:
        if isinstance(schema.get(key), dict | bool):
            yield "*", False, (key,), schema[key]
    for key in (*_IN_PLACE_MAPS, *_DEEPER_MAPS):
        if isinstance(members := schema.get(key), dict):
            for name, item in members.items():
                label = "" if key in _IN_PLACE_MAPS else name if key == "properties" else "*"
                yield label, key in _IN_PLACE_MAPS, (key, name), item


def everywhere(schema: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """Every schema object inside a schema with the steps to it, itself first."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for _, _, steps, inner in subschemas(schema):
        yield from everywhere(inner, (*path, *steps))
    for key in _NAMED:
        if isinstance(members := schema.get(key), dict):
            for name, inner in members.items():
                yield from everywhere(inner, (*path, key, name))


def faults(schema: dict[str, Any], path: str) -> Iterator[Fault]:
    """References that leave the document, loop, or make the work double at every level."""
    pointers: list[tuple[str, str]] = []
    # Identifiers change what a relative reference means; the compiler resolves those, offline.
    own_ids = {str(inner["$id"]) for _, inner in everywhere(schema) if isinstance(inner.get("$id"), str)}
    for steps, inner in everywhere(schema):
        for key in ("$ref", "$dynamicRef", "$recursiveRef"):
            if not isinstance(target := inner.get(key), str):
                continue
            where = place(path, [*steps, key])
            if target.startswith("#"):
                pointers.append((where, target))
            elif not any(target.split("#")[0] in (known, known.rpartition("/")[2]) for known in own_ids):
                yield Fault("remote-ref", where, f"{target[:80]} is in another document, and nothing is fetched")
    if pointers:
        yield from _cycles(schema, path, dict(pointers))


def resolve(schema: dict[str, Any], reference: str) -> Any:
    """What a JSON-pointer reference such as `#/$defs/x` leads to; None if it leads nowhere or is an anchor."""
    target: Any = schema
    if reference in ("#", "#/"):
        return schema
    if not reference.startswith("#/"):
        name = reference[1:]
        return next(
            (inner for _, inner in everywhere(schema) if name in (inner.get("$anchor"), inner.get("$dynamicAnchor"))),
            None,
        )
    for step in reference[2:].split("/"):
        step = (
            re.sub("%([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), step)
            .replace("~1", "/")
            .replace("~0", "~")
        )
        if isinstance(target, dict) and step in target:
            target = target[step]
        elif isinstance(target, list) and step.isdigit() and int(step) < len(target):
            target = target[int(step)]
        else:
            return None
    return target


def _cycles(schema: dict[str, Any], path: str, pointers: dict[str, str]) -> Iterator[Fault]:
    for where, reference in pointers.items():
        if resolve(schema, reference) is None:
            yield Fault("dangling-ref", where, f"{reference[:80]} leads to nothing in this schema")
    try:
        steps, _ = work(schema)
    except LoopError as loop:
        yield Fault("ref-loop", path, f"{loop.args[0][:80]} leads back to itself at the same place of the value")
        return
    if steps > MAX_STEPS:
        yield Fault("costly-schema", path, f"one value could take {steps:.3g} steps to judge")


class LoopError(Exception):
    """A reference leads back to itself at the same place of the value."""


def work(schema: dict[str, Any]) -> tuple[int, int]:
    """How many schemas judge one place of a value at most, and how often a recursive one judges the place below.

    Raises LoopError with the reference that comes back to itself without going deeper.
    """
    targets: dict[str, Any] = {}
    costs: dict[int, int] = {}
    active: set[int] = set()

    def beside(node: dict[str, Any]) -> list[Any]:
        """The schemas that judge what `node` judges, one step away."""
        found = [inner for _, in_place, _, inner in subschemas(node) if in_place]
        for key in ("$ref", "$dynamicRef", "$recursiveRef"):
            if isinstance(reference := node.get(key), str) and reference.startswith("#"):
                if reference not in targets:
                    targets[reference] = resolve(schema, reference)
                found.append(targets[reference])
        return [inner for inner in found if isinstance(inner, dict)]

    def cost(node: dict[str, Any]) -> int:
        if id(node) in costs:
            return costs[id(node)]
        if id(node) in active:
            raise LoopError(str(node.get("$ref", "#")))
        active.add(id(node))
        total = 1 + sum(cost(inner) for inner in beside(node))
        active.discard(id(node))
        costs[id(node)] = total
        return total

    nodes = [node for _, node in everywhere(schema)]
    most = max(cost(node) for node in nodes)
    if most > MAX_STEPS or not any(isinstance(target, dict) for target in targets.values()):
        return most, 1
    return most, _doubling(nodes, beside)


def _doubling(nodes: list[dict[str, Any]], beside: Callable[[dict[str, Any]], list[Any]]) -> int:
    """In how many ways a schema that refers to itself can judge one member of what it judges."""
    places: dict[int, Counter[int]] = {}
    members: dict[int, dict[str, Counter[int]]] = {}

    def place(node: dict[str, Any]) -> Counter[int]:
        """Every schema that judges the same place as `node`, with how often it does."""
        if id(node) not in places:
            found = Counter({id(node): 1})
            for inner in beside(node):
                found += place(inner)
            places[id(node)] = found
        return places[id(node)]

    def below(node: dict[str, Any]) -> dict[str, Counter[int]]:
        """The same for each member of what `node` judges; "*" is any member."""
        if id(node) not in members:
            found: dict[str, Counter[int]] = {}
            for label, in_place, _, inner in subschemas(node):
                if not in_place and isinstance(inner, dict):
                    found[label] = found.get(label, Counter()) + place(inner)
            for inner in beside(node):
                for label, counts in below(inner).items():
                    found[label] = found.get(label, Counter()) + counts
            members[id(node)] = found
        return members[id(node)]

    most = 1
    for node in nodes:
        inner = dict(below(node))
        anywhere = inner.pop("*", Counter())
        most = max([most, anywhere[id(node)], *(counts[id(node)] + anywhere[id(node)] for counts in inner.values())])
    return most
