"""Changes to a profile's text that leave every other byte of it as it was: comments, order, quotes, empty lines.

A value is replaced between the marks that PyYAML gives it; a key is added after the last one of its section, at its
indentation; a key is removed with its line, and what stands behind it there. A list of one item a line is changed item
by item (see items). What comes out is read again, and must say what was meant; text that is put together in a way this
does not know (anchors, line ends of two kinds), or in which a comment would go with something else than its own line,
is refused, never spoilt. A round-trip YAML library would rewrap lines and indentation of the whole file instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from pillm.core.errors import UsageError
from pillm.core.yaml_lines import Document
from pillm.tui.forms.values import yaml_text
from pillm.tui.profiles import items
from pillm.tui.profiles.items import end_of, refuse_comment

_INDENT = "  "


def put(text: str, step: str, values: Mapping[str, Any], uses: str = "") -> str:
    """The profile's text with the options of a step being `values`, and nothing else; a new step is added at the end.

    Raises UsageError where the text cannot be changed without touching more than that.
    """
    if "\r" in text:
        return _with_line_ends(text, lambda plain: put(plain, step, values, uses))
    before = _data(text)
    stages = dict(before.get("stages") or {})
    section = dict(stages.get(step) or {})
    wanted = {**({"uses": section["uses"]} if "uses" in section else {"uses": uses} if uses else {}), **values}
    new = text if step in stages else _added(text, f"{_INDENT}{step}:")
    for name in [name for name in section if name not in wanted]:
        new = _without(new, step, name)
    # Between braces, fewer words can stand without quotes.
    flow = bool(getattr(_section(new, step)[1], "flow_style", False))
    for name, value in wanted.items():
        if name not in section:
            new = _with(new, step, name, yaml_text(value, inside=flow))
        elif section[name] != value or type(section[name]) is not type(value):
            new = _changed(new, step, name, section[name], value)
    stages[step] = wanted or stages.get(step)
    if (_data(new).get("stages") or {}) != {**stages, step: wanted or None} and _plain(new) != {
        **before,
        "stages": {**stages, step: wanted},
    }:
        raise UsageError(
            f"the section {step} is written in a way that cannot be changed here", "change it in an editor"
        )
    return new


def removed(text: str, step: str) -> str:
    """The profile's text without a step: its lines go, and what stands behind its options there.

    Raises UsageError where a comment on a line of its own would go with them.
    """
    if "\r" in text:
        return _with_line_ends(text, lambda plain: removed(plain, step))
    before = _data(text)
    head, node = _section(text, step)
    start, end = text.rfind("\n", 0, head.start_mark.index) + 1, _last_line_end(text, head, node)
    if text[start : head.start_mark.index].strip():
        raise UsageError(f"the section {step} does not stand on lines of its own", "change it in an editor")
    refuse_comment(text, start, end, head, node, own_line=True)
    new = text[:start] + text[end + 1 :]
    stages = {name: section for name, section in before["stages"].items() if name != step}
    if _data(new) != {**before, "stages": stages}:
        raise UsageError(
            f"the section {step} is written in a way that cannot be changed here", "change it in an editor"
        )
    return new


def renamed(text: str, name: str) -> str:
    """The profile's text under another name."""
    if "\r" in text:
        return _with_line_ends(text, lambda plain: renamed(plain, name))
    root = _root(text)
    for key, value in root.value:
        if key.value == "name":
            return _splice(text, value, yaml_text(name))
    at = next((value.end_mark.index for key, value in root.value if key.value == "profile"), 0)
    return f"{text[:at]}\nname: {yaml_text(name)}{text[at:]}"


def _with_line_ends(text: str, change: Callable[[str], str]) -> str:
    """A change to a text whose lines end as on Windows."""
    plain = text.replace("\r\n", "\n")
    new = change(plain)
    if new == plain:
        return text
    if plain.replace("\n", "\r\n") != text:
        raise UsageError("the profile's lines end in two ways, LF and CR LF", "save it with one of them in an editor")
    return new.replace("\n", "\r\n")


def _plain(text: str) -> dict[str, Any]:
    data = _data(text)
    return {**data, "stages": {name: section or {} for name, section in (data.get("stages") or {}).items()}}


def _data(text: str) -> dict[str, Any]:
    document = Document("", text.encode())
    if document.findings or not isinstance(document.data, dict):
        message = document.findings[0].message if document.findings else "it is no mapping"
        raise UsageError(f"the profile cannot be changed: {message}", "mend it in an editor")
    return document.data


def _root(text: str) -> yaml.MappingNode:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        raise UsageError("the profile cannot be changed: it is no mapping", "mend it in an editor")
    return node


def _find(node: yaml.Node, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((name, value) for name, value in node.value if name.value == key), None)
    return None


def _section(text: str, step: str) -> tuple[yaml.Node, yaml.Node]:
    """The nodes of a step's id and of its section."""
    stages = _find(_root(text), "stages")
    found = _find(stages[1], step) if stages else None
    if found is None:
        raise UsageError(f"the profile has no stage {step}")
    return found


def _option(text: str, step: str, name: str) -> tuple[yaml.Node, yaml.Node]:
    """The nodes of an option's key and value."""
    found = _find(_section(text, step)[1], name)
    if found is None:
        raise UsageError(f"{step} has no {name} of its own")
    return found


def _splice(text: str, node: yaml.Node, new: str) -> str:
    """The text with another value at a node's place."""
    start, end = node.start_mark.index, end_of(text, node)
    refuse_comment(text, start, end, node)
    line_start = text.rfind("\n", 0, start) + 1
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and text[line_start:start].strip() == "":
        # A list of several lines becomes one of one line, behind its key.
        between = text.rfind(":", 0, start) + 1
        refuse_comment(text, between, start)
        return f"{text[:between]} {new}{text[end:]}"
    if start == end and text[start - 1 : start] == ":":
        new = f" {new}"
    return f"{text[:start]}{new}{text[end:]}"


def _changed(text: str, step: str, name: str, old: Any, value: Any) -> str:
    node = _option(text, step, name)[1]
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and isinstance(value, list) and value:
        return items.changed(text, node, old, value)
    flow = bool(getattr(_section(text, step)[1], "flow_style", False))
    return _splice(text, node, yaml_text(value, inside=flow))


def _with(text: str, step: str, name: str, value: str) -> str:
    head, node = _section(text, step)
    if isinstance(node, yaml.MappingNode) and node.flow_style:
        at = node.end_mark.index - 1
        inner = text[node.start_mark.index + 1 : at].strip()
        before = text[:at].rstrip() if inner else text[:at]
        return f"{before}{', ' if inner else ''}{name}: {value}{text[at:]}"
    if isinstance(node, yaml.MappingNode):
        last = node.value[-1][1]
        indent = " " * node.value[0][0].start_mark.column
        end = _last_line_end(text, node.value[-1][0], last)
        return f"{text[:end]}\n{indent}{name}: {value}{text[end:]}"
    # An empty section: behind its colon.
    indent = " " * head.start_mark.column + _INDENT
    end = text.find("\n", head.end_mark.index)
    end = len(text) if end < 0 else end
    return f"{text[:end]}\n{indent}{name}: {value}{text[end:]}"


def _without(text: str, step: str, name: str) -> str:
    node = _section(text, step)[1]
    key, value = _option(text, step, name)
    if isinstance(node, yaml.MappingNode) and node.flow_style:
        pairs = node.value
        index = next(i for i, pair in enumerate(pairs) if pair[0].value == name)
        if index + 1 < len(pairs):
            start, end = key.start_mark.index, pairs[index + 1][0].start_mark.index
        else:
            start = pairs[index - 1][1].end_mark.index if index else key.start_mark.index
            end = value.end_mark.index
        refuse_comment(text, start, end, key, value)
        return text[:start] + text[end:]
    start, end = text.rfind("\n", 0, key.start_mark.index) + 1, _last_line_end(text, key, value)
    # A comment behind a value goes with its line; one on a line of its own may be about more.
    refuse_comment(text, start, end, key, value, own_line=True)
    return text[:start] + text[end + 1 :]


def _last_line_end(text: str, key: yaml.Node, value: yaml.Node) -> int:
    """The end of the last line of a key's value, without the comments and empty lines that follow it."""
    newline = text.find("\n", max(end_of(text, value), key.end_mark.index))
    return len(text) if newline < 0 else newline


def _added(text: str, line: str) -> str:
    """The text with a line after the last section of `stages`, at the sections' own indentation."""
    stages = _find(_root(text), "stages")
    if stages is None or not isinstance(stages[1], yaml.MappingNode) or stages[1].flow_style:
        raise UsageError("the profile has no list of stages that could be added to", "change it in an editor")
    key, value = stages[1].value[-1]
    indent = " " * stages[1].value[0][0].start_mark.column
    end = _last_line_end(text, key, _deepest(value))
    return f"{text[:end]}\n{indent}{line.strip()}{text[end:]}"


def _deepest(node: yaml.Node) -> yaml.Node:
    while isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        node = node.value[-1][1]
    return node
