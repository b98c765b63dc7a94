"""Lists of one item a line in a profile's text, changed item by item: each comment stays with the item it stands behind."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any, NoReturn

import yaml

from pillm.core.errors import UsageError
from pillm.tui.forms.values import yaml_text


def changed(text: str, node: yaml.SequenceNode, old: list[Any], new: list[Any]) -> str:
    """The text with the list at a node being `new`: items are changed in their place, added and removed with their line.

    Raises UsageError where a comment would be lost otherwise than with the item that is removed, or stand at another.
    """
    places: list[yaml.Node] = node.value
    edits = SequenceMatcher(None, [repr(item) for item in old], [repr(item) for item in new], autojunk=False)
    # From the last to the first, so that the marks before stay right.
    for tag, start, end, new_start, new_end in reversed(edits.get_opcodes()):
        if tag == "equal":
            continue
        wanted = new[new_start:new_end]
        for index in range(start, end):
            if old.count(old[index]) <= new.count(old[index]):
                _refuse_behind(text, places[index], "the item moves, and the comment there would be lost")
            if tag == "replace" and end - start != len(wanted):
                _refuse_behind(text, places[index], "which item the comment there is about cannot be told")
        shared = min(end - start, len(wanted))
        if len(wanted) > shared:
            text = _inserted(text, node, end, wanted[shared:])
        for index in range(end - 1, start + shared - 1, -1):
            text = _removed(text, places[index])
        for index in range(start + shared - 1, start - 1, -1):
            place = places[index]
            _dash(text, place)
            text = text[: place.start_mark.index] + yaml_text(wanted[index - start]) + text[end_of(text, place) :]
    return text


def end_of(text: str, node: yaml.Node) -> int:
    """Where a value's text ends. A block's end mark is at the next token, past the comments between."""
    if isinstance(node, (yaml.MappingNode, yaml.SequenceNode)) and not node.flow_style:
        if not node.value:
            return node.start_mark.index
        last = node.value[-1]
        return end_of(text, last[1] if isinstance(node, yaml.MappingNode) else last)
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        end = start + len(text[start:end].rstrip())
    return end


def refuse_comment(text: str, start: int, end: int, *inside: yaml.Node, own_line: bool = False) -> None:
    """Raise UsageError if there is a comment in this part of the text, but for the values of `inside`.

    `own_line`: only if it stands on a line of its own.
    """
    rest = list(text[start:end])
    for node in inside:
        for scalar in _scalars(node):
            first = scalar.start_mark.index
            if scalar.style in ("|", ">"):
                # The line with the bar may have a comment.
                first = max(first, text.find("\n", first))
            for place in range(max(first, start), min(scalar.end_mark.index, end)):
                rest[place - start] = "_" if text[place] != "\n" else "\n"
    for number, line in enumerate("".join(rest).split("\n")):
        if "#" in line and not (own_line and line.partition("#")[0].strip()):
            _refuse(text.count("\n", 0, start) + 1 + number, "the comment there would be lost")


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(item)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(key)
            yield from _scalars(value)


def _refuse(line: int, words: str) -> NoReturn:
    raise UsageError(f"line {line} of the profile cannot be changed here: {words}", "change it in an editor")


def _dash(text: str, item: yaml.Node) -> tuple[int, int]:
    """Start and end of the line of an item, which is refused if it is not alone on one line behind its dash."""
    start = text.rfind("\n", 0, item.start_mark.index) + 1
    end = text.find("\n", item.start_mark.index)
    end = len(text) if end < 0 else end
    one_line = isinstance(item, yaml.ScalarNode) and end_of(text, item) <= end and item.style not in ("|", ">")
    if not one_line or text[start : item.start_mark.index].strip() != "-":
        _refuse(item.start_mark.line + 1, "the item is not one value behind a dash, on one line")
    return start, end


def _refuse_behind(text: str, item: yaml.Node, words: str) -> None:
    _, end = _dash(text, item)
    if "#" in text[end_of(text, item) : end]:
        _refuse(item.start_mark.line + 1, words)


def _removed(text: str, item: yaml.Node) -> str:
    start, end = _dash(text, item)
    return text[:start] + text[end + 1 :]


def _inserted(text: str, node: yaml.SequenceNode, index: int, values: list[Any]) -> str:
    """The text with values at this index: behind the item before it, or before the first."""
    start, end = _dash(text, node.value[max(index - 1, 0)])
    lines = "\n".join(f"{' ' * node.start_mark.column}- {yaml_text(value)}" for value in values)
    return f"{text[:end]}\n{lines}{text[end:]}" if index else f"{text[:start]}{lines}\n{text[start:]}"
