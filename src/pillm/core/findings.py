"""A finding: one thing wrong in a file, with the place and what to do."""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["error", "warning", "note"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing wrong at one place.

    `line` counts from 1; `byte` is the offset of the line's first byte in the file; `path` is a
    JSONPath into the line (`$.messages[0].content`) or a dotted key of a profile.
    """

    file: str
    line: int = 0
    byte: int | None = None
    path: str = ""
    code: str
    severity: Severity = "error"
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        where = f" {self.path}" if self.path and self.path != "$" else ""
        hint = f"\n    {self.hint}" if self.hint else ""
        return f"{place}:{where} {self.code}: {self.message}{hint}"
