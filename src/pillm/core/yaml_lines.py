"""YAML with the line of every key: what profiles and other files of settings are read with.

Scalars follow YAML 1.2's core schema, not PyYAML's 1.1: `on`, `off` and `no` are words (options
have such values), and `1e-3` is a number.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from pillm.core.findings import Finding

Place = tuple[str | int, ...]
"""Keys and indexes from the top of a document to a value."""

# Such a file is a page of text. The limit is on nodes after aliases are followed, since eight lines
# of aliases can stand for a billion of them.
MAX_NODES = 20_000


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with YAML 1.2's idea of what a plain scalar means."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's way of saying it


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


class Document:
    """A YAML file's data, the line of each place in it, and what is wrong with it as YAML."""

    def __init__(self, file: str, data: bytes) -> None:
        self.file = file
        self.lines: dict[Place, int] = {}
        self.findings: list[Finding] = []
        self.data: Any = None
        self._nodes = 0
        try:
            node = yaml.compose(data.decode("utf-8"), Loader=_Loader)
        except UnicodeDecodeError as error:
            self._wrong("not-utf8", "the file is not UTF-8", data[: error.start].count(b"\n") + 1, "save it as UTF-8")
            return
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            words = ", ".join(part for part in (error.context, error.problem) if part)
            hint = "check the indentation, colons and quotes around this line"
            self._wrong("not-yaml", words, mark.line + 1 if mark else 0, hint)
            return
        except (yaml.YAMLError, RecursionError) as error:
            self._wrong("not-yaml", str(error).splitlines()[0], 0)
            return
        if node is not None:
            self.data = self._value(node, (), ())

    def line(self, place: Place) -> int:
        """The line of a place, or of the nearest place above it that is in the file."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def _wrong(self, code: str, message: str, line: int, hint: str = "", path: str = "") -> None:
        self.findings.append(Finding(file=self.file, line=line, path=path, code=code, message=message, hint=hint))

    def _value(self, node: yaml.Node, place: Place, above: tuple[int, ...]) -> Any:
        self.lines.setdefault(place, node.start_mark.line + 1)
        self._nodes += 1
        if id(node) in above or self._nodes > MAX_NODES:
            if self._nodes <= MAX_NODES or not any(item.code == "too-large" for item in self.findings):
                self._wrong("too-large", "aliases make this larger than such a file can be", node.start_mark.line + 1)
            return None
        above = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place, above)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*place, index), above) for index, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, place: Place, above: tuple[int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._wrong("not-a-key", "a key must be a word", line)
                continue
            key = str(key_node.value)
            here = (*place, key)
            if key in result:
                message = f"the key stands already in line {self.lines[here]}"
                self._wrong("duplicate-key", message, line, "keep one of the two", dotted(here))
                continue
            self.lines[here] = line
            result[key] = self._value(value_node, here, above)
        return result

    def _scalar(self, node: yaml.Node) -> Any:
        kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), node.value
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind in ("int", "float"):
            try:
                return int(text) if kind == "int" else float(text)
            except ValueError:
                return text
        if kind != "str":
            self._wrong("tag", f"the tag {node.tag} has no meaning here", node.start_mark.line + 1, "leave it out")
        return text


def dotted(place: Place) -> str:
    """A place as people write it: `stages.bench.depth[0]`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def scalar(text: str) -> Any:
    """A value as it would be read from a YAML file; text that is not YAML is taken as it stands."""
    document = Document("", text.encode())
    return text if document.findings else document.data
