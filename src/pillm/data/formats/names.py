"""What readers and writers of other tools' formats have in common."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

PLAIN_FIELDS = ("locale", "register", "source", "license")
"""Fields of text that every format can hold beside the dialogue."""
OBSERVATIONS = "\n</tool_response>\n<tool_response>\n"
"""What LLaMA-Factory puts between the results of several calls, since its turns must alternate."""
Lost = Counter[str]
"""What a format could not hold: what it is, and how often."""


class Misfit(ValueError):
    """A record that cannot be converted: the JSONPath of what is in the way, and what is wrong with it."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path, self.message = path, message


def parsed(text: str, path: str) -> Any:
    """The value of JSON that stands in a text. Raises Misfit."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Misfit(path, f"{text[:60]!r} is no JSON") from error
