"""Where a JSON Schema refers to, and how much work it can make: asked of the schema, before a value meets it.

References are resolved as the drafts say: against the nearest `$id` (draft 4: `id`), by JSON pointer or
by anchor. What is not in the document is never fetched; of other documents only the drafts' own
meta-schemas are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

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
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_KNOWN = ("json-schema.org/draft", "json-schema.org/schema")
Steps = tuple[str | int, ...]


class Elsewhere(NamedTuple):
    """What a reference to another document leads to; `is_known` if that is a meta-schema of a draft."""

    is_known: bool


class Document:
    """Every schema of a schema document, and what each reference in it leads to."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.nodes: list[tuple[Steps, dict[str, Any]]] = []
        self._bases: dict[int, str] = {}
        self._resources: dict[str, Any] = {"": schema}
        self._anchors: dict[str, Any] = {}
        self._add(schema, (), "")
        self.has_references = any(key in node for _, node in self.nodes for key in _REFERENCES)
        if not self.has_references:
            return
        # What a pointer leads to is a schema, too, wherever it stands; it may hold references itself.
        for steps, node in self.nodes:
            for key in _REFERENCES:
                target = self.target(node, key)
                if isinstance(target, dict) and id(target) not in self._bases:
                    self._add(target, (*steps, key), self._bases[id(node)])

    def target(self, node: dict[str, Any], key: str) -> Any:
        """What `node[key]` leads to: a schema, Elsewhere, or None if there is nothing (or no reference)."""
        reference = node.get(key)
        if not isinstance(reference, str):
            return None
        base = self._bases[id(node)]
        try:
            where, fragment = urldefrag(urljoin(base, reference))
        except ValueError:
            return None
        # A base without a scheme swallows what urljoin does not understand (urn:).
        if reference.startswith("#"):
            where, fragment = urldefrag(base)[0], reference[1:]
        if where not in self._resources:
            return Elsewhere(any(known in where for known in _KNOWN))
        if not fragment:
            return self._resources[where]
        if not fragment.startswith("/"):
            return self._anchors.get(f"{where}#{fragment}")
        return _at(self._resources[where], fragment)

    def _add(self, schema: Any, steps: Steps, base: str) -> None:
        todo = [(schema, steps, base)]
        while todo:
            node, path, inside = todo.pop()
            if not isinstance(node, dict) or id(node) in self._bases:
                continue
            inside = self._based(node, inside)
            self._bases[id(node)] = inside
            self.nodes.append((path, node))
            for key in ("$anchor", "$dynamicAnchor"):
                if isinstance(name := node.get(key), str):
                    self._anchors.setdefault(f"{urldefrag(inside)[0]}#{name}", node)
            found = [(inner, (*path, *more), inside) for _, _, more, inner in subschemas(node)]
            for key in _NAMED:
                if isinstance(members := node.get(key), dict):
                    found += [(inner, (*path, key, name), inside) for name, inner in members.items()]
            todo += reversed(found)

    def _based(self, node: dict[str, Any], base: str) -> str:
        """The base of a schema's references, with its own identifier registered."""
        for key in ("$id", "id"):
            name = node.get(key)
            if not isinstance(name, str) or not name:
                continue
            if name.startswith("#"):
                # Drafts 6 and 7 write anchors like this.
                self._anchors.setdefault(f"{urldefrag(base)[0]}{name}", node)
                continue
            try:
                base = urldefrag(urljoin(base, name))[0]
            except ValueError:
                continue
            self._resources.setdefault(base, node)
        return base


def subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, bool, Steps, Any]]:
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


def faults(document: Document, path: str) -> Iterator[Fault]:
    """References that leave the document, lead nowhere, loop, or make the work double again and again."""
    if not document.has_references and len(document.nodes) <= MAX_STEPS:
        return
    broken = False
    for steps, node in document.nodes:
        for key in _REFERENCES:
            if not isinstance(reference := node.get(key), str):
                continue
            where, target = place(path, [*steps, key]), document.target(node, key)
            if isinstance(target, Elsewhere) and not target.is_known:
                broken = True
                yield Fault("remote-ref", where, f"{reference[:80]} is in another document, and nothing is fetched")
            elif target is None:
                broken = True
                yield Fault("dangling-ref", where, f"{reference[:80]!r} leads to nothing in this schema")
    if broken:
        return
    try:
        steps_of_work = _steps(document)
    except LoopError as loop:
        yield Fault("ref-loop", path, f"{loop.args[0][:80]} leads back to itself at the same place of the value")
        return
    if steps_of_work > MAX_STEPS:
        yield Fault("costly-schema", path, f"one value could take {steps_of_work:.3g} steps to judge")


class LoopError(Exception):
    """A reference leads back to itself at the same place of the value."""


def _beside(document: Document, node: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas that judge what `node` judges, one step away."""
    found = [inner for _, in_place, _, inner in subschemas(node) if in_place]
    found += [document.target(node, key) for key in _REFERENCES]
    return [inner for inner in found if isinstance(inner, dict)]


def _steps(document: Document) -> int:
    """How many schemas judge one place of a value, at most."""
    costs: dict[int, int] = {}
    active: set[int] = set()

    def cost(node: dict[str, Any]) -> int:
        if id(node) in costs:
            return costs[id(node)]
        if id(node) in active:
            raise LoopError(str(node.get("$ref", "#")))
        active.add(id(node))
        total = 1 + sum(map(cost, _beside(document, node)))
        active.discard(id(node))
        costs[id(node)] = total
        return total

    return max(cost(node) for _, node in document.nodes)


def ways(document: Document) -> int:
    """In how many ways a schema that refers to itself can judge one member of what it judges.

    With more than one, the work for a value is exponential in its depth. Raises RecursionError where
    references follow one another too long.
    """
    if not document.has_references:
        return 1
    return _doubling([node for _, node in document.nodes], lambda node: _beside(document, node))


def _doubling(nodes: list[dict[str, Any]], beside: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> int:
    places: dict[int, Counter[int]] = {}
    members: dict[int, dict[str, Counter[int]]] = {}

    def at_place(node: dict[str, Any]) -> Counter[int]:
        """Every schema that judges the same place as `node`, with how often it does."""
        if id(node) not in places:
            found = Counter({id(node): 1})
            for inner in beside(node):
                found += at_place(inner)
            places[id(node)] = found
        return places[id(node)]

    def below(node: dict[str, Any]) -> dict[str, Counter[int]]:
        """The same for each member of what `node` judges; "*" is any member."""
        if id(node) not in members:
            found: dict[str, Counter[int]] = {}
            for label, in_place, _, inner in subschemas(node):
                if not in_place and isinstance(inner, dict):
                    found[label] = found.get(label, Counter()) + at_place(inner)
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


def _at(resource: Any, pointer: str) -> Any:
    """What a JSON pointer (in a URI, so with percent signs) leads to; None if it leads nowhere."""
    for step in pointer[1:].split("/"):
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(resource, dict) and name in resource:
            resource = resource[name]
        elif isinstance(resource, list) and name.isdigit() and int(name) < len(resource):
            resource = resource[int(name)]
        else:
            return None
    return resource
