"""A dataset line as it stands in the file, decoded just as far as judging and counting need.

`core.records.Record` is what training takes, with defaults filled in. Here fields that are not there
stay UNSET, so that encoding gives the same keys again; the role is the type, so that msgspec checks in
C what each role may have; and what is the same in thousands of lines (tools, schemas) stays bytes.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType


class FunctionCall(Struct, forbid_unknown_fields=True, gc=False):
    """The function that is called."""

    name: str
    arguments: dict[str, Any]


class Call(Struct, forbid_unknown_fields=True, gc=False):
    """One tool call."""

    function: FunctionCall
    type: Literal["function"] | UnsetType = UNSET
    id: str | UnsetType = UNSET


class System(Struct, tag_field="role", tag="system", forbid_unknown_fields=True, gc=False):
    """What the assistant is."""

    content: str
    name: str | UnsetType = UNSET


class Developer(System, tag="developer"):
    """What newer servers call the system's turn."""


class User(System, tag="user"):
    """The person's turn."""


class Assistant(Struct, tag_field="role", tag="assistant", forbid_unknown_fields=True, gc=False):
    """What is learned: text, calls, or both."""

    content: str | UnsetType | None = UNSET
    tool_calls: list[Call] | UnsetType = UNSET
    name: str | UnsetType = UNSET


class ToolResult(Struct, tag_field="role", tag="tool", forbid_unknown_fields=True, gc=False):
    """What a called tool gave back."""

    content: str
    tool_call_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET


Turn = System | Developer | User | Assistant | ToolResult


class Line(Struct, forbid_unknown_fields=True, gc=False, omit_defaults=True):
    """One record."""

    id: str
    messages: list[Turn]
    tools: Raw = Raw()
    response_schema: Raw = Raw()
    locale: str = ""
    register: str = ""
    tags: list[str] = []
    source: str = ""
    license: str = ""
    meta: Raw = Raw()

    @property
    def is_prompt(self) -> bool:
        """Whether the assistant's answer is still missing."""
        return not isinstance(self.messages[-1], Assistant)


decode = msgspec.json.Decoder(Line).decode
encode = msgspec.json.Encoder().encode
