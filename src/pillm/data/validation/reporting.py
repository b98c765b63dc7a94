"""Findings as people, editors and CI systems read them: text, JSON lines, SARIF 2.1.0, GitHub annotations."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from pillm import __version__
from pillm.core.events import Emit, Output
from pillm.core.findings import Finding
from pillm.data.validation.codes import CODES

_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_GITHUB = {"error": "error", "warning": "warning", "note": "notice"}


class Report:
    """Prints findings as they come, up to a limit."""

    def __init__(self, form: str, limit: int, emit: Emit) -> None:
        self._form, self._limit, self._emit = form, limit, emit
        self._kept: list[Finding] = []
        self.shown = 0

    def add(self, item: Finding) -> None:
        """Print a finding, if not enough were printed."""
        if self.shown >= self._limit:
            return
        self.shown += 1
        if self._form == "sarif":
            self._kept.append(item)
        else:
            line = {"text": text, "jsonl": jsonl, "github": github}[self._form](item)
            self._emit(Output(line))

    def close(self) -> None:
        """Print what can only be printed as a whole."""
        if self._form == "sarif":
            self._emit(Output(json.dumps(sarif(self._kept), indent=2, ensure_ascii=False)))


def text(item: Finding) -> str:
    """`file:line:byte $.path CODE message; fix` on one line."""
    return _seen(f"{item.file}:{item.line}:{item.byte} {item.path} {item.code} {item.message}; {item.hint}")


def jsonl(item: Finding) -> str:
    """The finding as one line of JSON."""
    return msgspec.json.encode(item).decode()


def github(item: Finding) -> str:
    """A workflow command, which GitHub shows beside the line."""
    title = f"{item.code} at {item.path}"
    place = f"file={_escaped(item.file)},line={item.line},title={_escaped(title)}"
    return f"::{_GITHUB[item.severity]} {place}::{_data(f'{item.message}; {item.hint}')}"


def sarif(items: list[Finding]) -> dict[str, Any]:
    """A SARIF log with one run."""
    used = sorted({item.code for item in items})
    rules = [
        {
            "id": code,
            "shortDescription": {"text": CODES[code].meaning},
            "help": {"text": CODES[code].fix},
            "defaultConfiguration": {"level": CODES[code].severity},
        }
        for code in used
    ]
    results = [
        {
            "ruleId": item.code,
            "ruleIndex": used.index(item.code),
            "level": item.severity,
            "message": {"text": f"{item.message}; {item.hint}"},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": item.file.replace("\\", "/")},
                        "region": {"startLine": item.line, "byteOffset": item.byte},
                    },
                    "logicalLocations": [{"fullyQualifiedName": item.path}],
                }
            ],
        }
        for item in items
    ]
    driver = {"name": "pillm", "version": __version__, "rules": rules}
    return {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _seen(line: str) -> str:
    """The line with what a terminal would not show, or would obey, written as escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode()
        for letter in line
    )


def _data(value: str) -> str:
    return _seen(value).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escaped(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")
